"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., 2021, arXiv:2111.06377)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from unmask import losses
from unmask.decoders import Transformer, decoder_size, default_size, patch_values
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build
from unmask.encoders.vit import fix_places, mae_init
from unmask.masking import STRATEGIES, Block, Masking
from unmask.model import MaskedModel, Predict
from unmask.settings import Ratio, Train, Views
from unmask.targets.hog import HOG
from unmask.targets.pixels import Pixels


@dataclass(frozen=True)
class MAE:
    """Hide three quarters of the patches, encode the rest, and let a light decoder say the pixels of what is hidden.

    The encoder sees visible patches only; mask tokens enter in the decoder. The target is each hidden patch, normalised
    by its own mean and standard deviation. Loss: mean squared error over hidden patches.
    """

    sentence = "hide 75 % of the patches, encode the visible ones, predict the pixels of the hidden ones"
    source = "He et al. 2021, arXiv:2111.06377"
    standing = "proven: CIFAR-10, 250,000 pictures seen, kNN 45.2 (32.6) and linear 56.6 (47.2) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=800, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.0)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # appendix A.1: crop and flip only
    row = ("patches", "random .75", "dropped", "transformer 512×8", "pixels, per-patch normalised → mse")

    mask_ratio: Ratio = Ratio(0.75, 0.75)  # share of patches hidden (section 4.1): number, range .6-.9, schedule .5:.75, or video audio images medical
    masking: Literal["random", "block", "grid"] = "random"  # which patches are hidden together (Figure 6)
    norm_pix: bool = True  # normalise each target patch by its own mean and standard deviation (section 3)
    target: Literal["pixels", "hog"] = "pixels"  # what is predicted: pixels, or histograms of oriented gradients (MaskFeat's target)
    decoder_width: int | None = None  # paper: 512; not given: two thirds of the encoder's width below ViT-B
    decoder_depth: int | None = None  # paper: 8 blocks; not given: 4 below ViT-B
    decoder_heads: int | None = None  # paper: 16; not given: 32 columns a head

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        for name in ("decoder_width", "decoder_depth", "decoder_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.decoder_width and self.decoder_heads and self.decoder_width % self.decoder_heads:
            raise ValueError(f"decoder_width {self.decoder_width} is no multiple of decoder_heads {self.decoder_heads}")

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Masking:
        """Which patches are hidden. Dropping wants rows of equal length: blocks are filled up."""
        return Block(self.mask_ratio, exact=True) if self.masking == "block" else STRATEGIES[self.masking](self.mask_ratio)

    def decoder_size(self, encoder: Adapter) -> tuple[int, int, int]:
        """Width, blocks and heads of the decoder over that encoder."""
        return decoder_size(self, *default_size(encoder.width)[:2])

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a timm VisionTransformer or Eva; `sizes`: its width, depth and heads where not its own.

        Of a model that is given instead of named, size and form are taken; its weights are drawn anew all the same.
        """
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", **sizes)
        width, depth, heads = self.decoder_size(encoder)
        grid = encoder.own_grid
        hog = HOG(encoder.patch)
        values = hog.values(encoder.in_chans) if self.target == "hog" else patch_values(encoder.patch, encoder.in_chans)
        decoder = Transformer(encoder.width, values, grid, width, depth, heads)
        mae_init(encoder)
        mae_init(decoder)
        fix_places(encoder.trunk)
        predict = Predict(decoder, hog if self.target == "hog" else Pixels(encoder.patch, self.norm_pix), losses.mse)
        return MaskedModel(encoder, self.strategy(grid, encoder.patch), {self.target: predict})
