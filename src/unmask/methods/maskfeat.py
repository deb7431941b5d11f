"""MaskFeat: Masked Feature Prediction for Self-Supervised Visual Pre-Training (Wei et al., 2021, arXiv:2112.09133)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from unmask import losses
from unmask.decoders import Linear
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build
from unmask.masking import Block
from unmask.model import MaskedModel, Predict
from unmask.settings import Ratio, Train, Views
from unmask.targets.hog import HOG


@dataclass(frozen=True)
class MaskFeat:
    """Put a token over blocks of the picture, and say which way the edges run under them.

    The target is the histogram of oriented gradients of each hidden patch: blind to colour and brightness, so nothing is spent
    on them. Loss: mean squared error.
    """

    sentence = "replace 40 % of the picture, in blocks, by a token; predict histograms of oriented gradients (HOG)"
    source = "Wei et al. 2021, arXiv:2112.09133"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 31.3 (30.2) and linear 44.5 (40.5) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=300, batch_size=2048, base_lr=2e-4, min_lr=1e-6, warmup_epochs=30, weight_decay=0.05, betas=(0.9, 0.999), clip=0.02)
    views = Views(scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # appendix: no colour augmentation
    row = ("patches", "block .4", "token", "linear", "HOG → mse")

    mask_ratio: Ratio = Ratio(0.4, 0.4)  # share of patches hidden (configs/masked_ssl): number, range .2-.5 or schedule .2:.5
    bins: int = 9  # directions that are told apart (section 3.2)
    cell: int | None = None  # pixels a side of a histogram's cell; paper: 8; not given: the largest part of the patch up to that

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        for name in ("bins", "cell"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Block:
        """Which patches are hidden."""
        return Block(self.mask_ratio, smallest=max(1, round(self.mask_ratio.first * math.prod(grid)) // 5))

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over any timm network that can hide by a token. The final norm is the one before the paper's head."""
        encoder = build(model, img_size, in_chans, patch_size, masked="token", **sizes)
        target = HOG(encoder.patch, self.bins, self.cell)
        decoder = Linear(encoder.width, target.values(encoder.in_chans))
        start(encoder, decoder)
        return MaskedModel(encoder, self.strategy(encoder.own_grid, encoder.patch), {"hog": Predict(decoder, target, losses.mse)}, pooling="avg")


def start(encoder: Adapter, decoder: Linear) -> None:
    """SlowFast's initial values: weights normal .02; biases of the blocks' layers and norms .02 too, not 0; the head's 0."""
    for name, layer in (*encoder.named_modules(), *decoder.named_modules()):
        inside = ".blocks." in name
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
            nn.init.ones_(layer.weight)
        if isinstance(layer, nn.Linear | nn.LayerNorm) and layer.bias is not None:
            nn.init.constant_(layer.bias, 0.02 if inside else 0.0)
    for name, token in encoder.named_parameters():
        if name.rpartition(".")[2] in ("cls_token", "mask_token", "pos_embed"):
            nn.init.trunc_normal_(token, std=0.02)
