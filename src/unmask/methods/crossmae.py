"""CrossMAE: Rethinking Patch Dependence for Masked Autoencoders (Fu et al., 2024, arXiv:2401.14391)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from unmask import losses
from unmask.decoders import CrossAttention, decoder_size, default_size, patch_values
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build
from unmask.encoders.features import Layer
from unmask.encoders.vit import fix_places, mae_init
from unmask.masking import Random
from unmask.model import MaskedModel, Predict
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.pixels import Pixels


@dataclass(frozen=True)
class CrossMAE:
    """Encode a quarter of the patches, and let each hidden patch ask the encoder's layers for its pixels, by itself.

    The decoder only looks across: hidden patches do not see each other, so a third of them is as good as all, and its blocks each see a
    mixture of the encoder's layers that they learn. The encoder has no final norm; ours keeps one that is not trained. Loss: mean squared error.
    """

    sentence = "hide 75 % of the patches, and let a third of them ask the encoder's layers for their pixels, each by itself"
    source = "Fu et al. 2024, arXiv:2401.14391"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 38.3 (30.5) and linear 51.7 (44.8) %; in brackets random weights (docs/evidence.md)"
    # the README's 1.5e-4 is multiplied by predicted/mask_ratio in the code (main_pretrain.py), unless --no_lr_scale
    paper = Train(epochs=800, batch_size=4096, base_lr=5e-5, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.0)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # MAE's
    row = ("patches", "random .75, a third of it predicted", "dropped", "cross-attention 512×12 to all layers", "pixels, per-patch normalised → mse")

    mask_ratio: Ratio = Ratio(0.75, 0.75)  # share of patches hidden: number, range .6-.9 or schedule .5:.75
    predicted: float = 0.25  # share of all patches that is predicted; the published weights predicted .75, all that is hidden
    norm_pix: bool = True  # normalise each target patch by its own mean and standard deviation
    use_input: bool = True  # what goes into the encoder's first block is a layer to be asked, too
    decoder_width: int | None = None  # paper: 512, 256 for ViT-S; not given: two thirds of the encoder's width below ViT-B
    decoder_depth: int | None = None  # paper: 12 blocks; not given: 4 below ViT-B
    decoder_heads: int | None = None  # paper: 16; not given: 32 columns a head

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "predicted", 0, 1, above=True)
        within(self, "decoder_width decoder_depth decoder_heads", 1)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Random:
        """Which patches are hidden."""
        return Random(self.mask_ratio, predicted=self.predicted)

    def decoder_size(self, encoder: Adapter) -> tuple[int, int, int]:
        """Width, blocks and heads of the decoder over that encoder."""
        return decoder_size(self, default_size(encoder.width)[0], 12 if encoder.width >= 768 else 4)

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        mlp_ratio: float = 4.0,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a timm VisionTransformer, Eva or Beit; `mlp_ratio`: the decoder's."""
        layers: tuple[Layer, ...] = ("input", "blocks") if self.use_input else ("blocks",)
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", layers=layers, **sizes)
        width, depth, heads = self.decoder_size(encoder)
        grid = encoder.own_grid
        values = patch_values(encoder.patch, encoder.in_chans)
        seen = len(encoder.trunk.blocks) + self.use_input
        decoder = CrossAttention(encoder.width, values, grid, seen, width, depth, heads, mlp_ratio)
        mae_init(encoder)
        mae_init(decoder)
        fix_places(encoder.trunk)
        encoder.trunk.norm.requires_grad_(False)
        predict = Predict(decoder, Pixels(encoder.patch, self.norm_pix), losses.mse)
        return MaskedModel(encoder, self.strategy(grid, encoder.patch), {"pixels": predict})
