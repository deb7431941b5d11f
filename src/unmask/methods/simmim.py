"""SimMIM: a Simple Framework for Masked Image Modeling (Xie et al., 2021, arXiv:2111.09886)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from unmask import losses
from unmask.decoders import Linear, patch_values
from unmask.encoders.beit import Beit
from unmask.encoders.build import build, drop_path
from unmask.encoders.initial import beit_init, spread
from unmask.encoders.vit import ViT
from unmask.errors import Refused
from unmask.masking import Random
from unmask.model import MaskedModel, Predict
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.pixels import Pixels


@dataclass(frozen=True)
class SimMIM:
    """Put a token over large squares of the picture, and read the raw pixels under them off with one linear layer.

    The encoder sees all places; what is hidden is a learned token from the first layer on. Loss: mean absolute error over
    hidden pixels. Large squares, because under small ones the pixels next door would do (Table 1).
    """

    sentence = "replace 60 % of the picture, in squares of 32 pixels, by a token; predict raw pixels with one linear layer"
    source = "Xie et al. 2021, arXiv:2111.09886"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 26.3 (30.2) and linear 46.4 (40.5) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=800, batch_size=2048, base_lr=5e-5, warmup_epochs=10, weight_decay=0.05, betas=(0.9, 0.999), clip=5.0)
    views = Views(scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bilinear")  # data/data_simmim.py
    row = ("patches", "random .6, squares of 32 px", "token", "linear", "raw pixels → L1")

    mask_ratio: Ratio = Ratio(0.6, 0.6)  # share of squares hidden (section 4.1): number, range .6-.9 or schedule .5:.75
    cell: int | None = None  # pixels a side of a square; paper: 32; not given: that, on small pictures a sixth of the shorter side
    norm_pix: bool = False  # normalise each target patch by its own mean and standard deviation, as MAE does
    init_std: float | None = None  # deviation of the first weights; paper: .02; not given: that, below ViT-B's width more, as √(768 / width)
    drop_path: float | None = None  # chance to leave out the last block's branches; paper: .1, Swin 0; not given: these

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        if self.cell is not None and self.cell < 1:
            raise ValueError(f"cell must be at least 1, got {self.cell}")
        within(self, "init_std", 0, above=True)
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie between 0 and 1, got {self.drop_path:g}")

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Random:
        """Which patches are hidden."""
        return Random(self.mask_ratio, self.cells(patch, tuple(rows * side for rows, side in zip(grid, patch))))

    def build(
        self,
        model: str | nn.Module = "beit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a timm VisionTransformer, Eva, Beit (the paper's ViT-B), SwinTransformer, Hiera or ConvNeXt."""
        encoder = build(model, img_size, in_chans, patch_size, masked="token", **sizes)
        stages = not isinstance(encoder, ViT | Beit)
        if not stages:
            beit_init(encoder, spread(encoder.width, self.init_std))  # Swin keeps timm's values, which are the paper's: normal .02, not cut; so do its like
        drop_path(encoder, self.drop_path if self.drop_path is not None else 0.0 if stages else 0.1)
        decoder = Linear(encoder.width, patch_values(encoder.patch, encoder.in_chans))
        predict = Predict(decoder, Pixels(encoder.patch, self.norm_pix), losses.l1)
        undecayed = ("cls_token", "pos_embed", *(("mask_token",) if stages else ()))
        return MaskedModel(encoder, self.strategy(encoder.own_grid, encoder.patch), {"pixels": predict}, undecayed=undecayed, pooling="avg")

    def cells(self, patch: tuple[int, ...], img_size: tuple[int, ...]) -> tuple[int, ...]:
        """The patches down and across of a square."""
        wanted = self.cell or min(32, min(img_size) // 6)
        fits = [size for size in range(wanted, 0, -1) if all(size % side == 0 and length % size == 0 for side, length in zip(patch, img_size))]
        if self.cell and fits[:1] != [self.cell]:
            raise Refused(f"cell {self.cell} is no whole number of patches of {patch[0]}x{patch[1]} pixels, or does not divide the picture")
        size = fits[0] if fits else max(patch)
        return tuple(max(1, size // side) for side in patch)
