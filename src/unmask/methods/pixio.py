"""Pixio: In Pursuit of Pixel Supervision for Visual Pre-training (Yang et al., 2025, arXiv:2512.15715)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from unmask import losses
from unmask.decoders import Transformer, decoder_size, default_size, patch_values
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build, drop_path
from unmask.encoders.vit import mae_init
from unmask.errors import Refused
from unmask.masking import Random
from unmask.model import MaskedModel, Predict
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.pixels import Pixels

CLEAR = 16  # cells a picture has in the paper: fewer, and a draw hides too much alike


@dataclass(frozen=True)
class Pixio:
    """MAE once more, with larger things to imagine: squares of patches are hidden together, and a deep decoder says their pixels.

    Three changes to MAE: hidden squares of 4×4 patches, a decoder as deep as the encoder, and several class tokens, which have places of
    their own in encoder and decoder. All places are learned. Loss: mean squared error over hidden patches.
    """

    sentence = "MAE with squares of 4×4 patches hidden together, a decoder of 32 blocks and 8 class tokens"
    source = "Yang et al. 2025, arXiv:2512.15715"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 33.5 (29.5) and linear 43.4 (39.2) %; in brackets random weights (docs/evidence.md)"
    # scripts/pretrain_pixio_vith16_imagenet.sh: 400 × 1,605 steps, 400 times the pictures of ImageNet-21k
    paper = Train(epochs=400, batch_size=8192, base_lr=2.5e-5, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.0)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")
    row = ("patches", "random .75, squares of 4×4 patches", "dropped", "transformer 512×32", "pixels, per-patch normalised → mse")

    mask_ratio: Ratio = Ratio(0.75, 0.75)  # share of squares hidden: number, range .6-.9 or schedule .5:.75
    cell: int | None = None  # patches a side of a square; paper: 4; not given: that, or less where a picture would have fewer than 16 squares
    cls_tokens: int = 8  # class tokens; the further ones are timm's registers
    norm_pix: bool = True  # normalise each target patch by its own mean and standard deviation
    drop_path: float | None = None  # chance to leave out the last block's branches; paper: .4 for ViT-H; not given: that from its width on, else 0
    decoder_width: int | None = None  # paper: 512; not given: two thirds of the encoder's width below ViT-B
    decoder_depth: int | None = None  # paper: 32 blocks; not given: as many as the encoder has
    decoder_heads: int | None = None  # paper: 16; not given: 32 columns a head

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "cell cls_tokens decoder_width decoder_depth decoder_heads", 1)
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie between 0 and 1, got {self.drop_path:g}")

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Random:
        """Which patches are hidden."""
        return Random(self.mask_ratio, self.side(grid))

    def decoder_size(self, encoder: Adapter) -> tuple[int, int, int]:
        """Width, blocks and heads of the decoder over that encoder."""
        return decoder_size(self, default_size(encoder.width)[0], len(encoder.trunk.blocks))

    def build(
        self,
        model: str | nn.Module = "vit_huge_patch14_224",
        img_size: tuple[int, int] = (256, 256),
        in_chans: int = 3,
        patch_size: int | None = 16,
        mlp_ratio: float = 4.0,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a plain VisionTransformer of timm; one that is given instead of named keeps its own prefix tokens."""
        further: dict[str, Any] = {"registers": self.cls_tokens - 1} if isinstance(model, str) else {}
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", **further, **sizes)
        width, depth, heads = self.decoder_size(encoder)
        grid = encoder.own_grid
        values, prefix = patch_values(encoder.patch, encoder.in_chans), encoder.trunk.num_prefix_tokens
        decoder = Transformer(encoder.width, values, grid, width, depth, heads, mlp_ratio, learned=prefix)
        mae_init(encoder)
        mae_init(decoder)
        if encoder.trunk.pos_embed is not None:
            nn.init.trunc_normal_(encoder.trunk.pos_embed, std=0.02)
        drop_path(encoder, self.drop_path if self.drop_path is not None else 0.4 if encoder.width >= 1280 else 0.0)
        predict = Predict(decoder, Pixels(encoder.patch, self.norm_pix), losses.mse)
        return MaskedModel(encoder, self.strategy(grid, encoder.patch), {"pixels": predict})

    def side(self, grid: tuple[int, ...]) -> int:
        """The patches a side of a square on this grid."""
        if self.cell and any(length % self.cell for length in grid):
            raise Refused(f"squares of {self.cell}x{self.cell} patches do not fill a picture of {'x'.join(map(str, grid))}: change --method.cell or --img_size")
        fits = (side for side in (4, 3, 2) if all(length % side == 0 for length in grid) and grid[0] * grid[1] >= CLEAR * side**2)
        return self.cell or next(fits, 1)
