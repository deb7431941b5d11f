"""Hiera: a Hierarchical Vision Transformer without the Bells-and-Whistles (Ryali et al., 2023, arXiv:2306.00989), pre-trained as an MAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from unmask import losses
from unmask.decoders import Transformer, decoder_size, default_size, patch_values
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build
from unmask.encoders.features import Features
from unmask.encoders.hiera import Hiera
from unmask.encoders.vit import mae_init
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import Random
from unmask.model import MaskedModel, Predict
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.pixels import Pixels


@dataclass(frozen=True)
class HieraMAE:
    """Hide squares of 32 pixels from a transformer of stages, join what its stages say of the others, and predict the hidden pixels as MAE does.

    The network pools once less than when it classifies, so that 2×2 features stand in a square, and 16 pixels are predicted by each. The same
    weights fit both. Loss: mean squared error over hidden patches, each normalised.
    """

    sentence = "hide 60 % of the picture, in squares of 32 pixels, from a Hiera; join its stages, predict the hidden pixels as MAE does"
    source = "Ryali et al. 2023, arXiv:2306.00989"
    standing = "experimental"
    network = "hiera_tiny_224"
    kinds, patches = ("Hiera",), (1, 2, 4)  # networks, and patches that fit them, for small pictures and large ones
    # section 4.1: 1600 epochs for the published weights; the other numbers are MAE's: the recipe is not in the repository
    paper = Train(epochs=1600, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.0)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # MAE's
    row = ("mask units", "random .6, squares of 32 px", "dropped", "stages joined, transformer 512×8", "pixels, per-patch normalised → mse")

    mask_ratio: Ratio = Ratio(0.6, 0.6)  # share of squares hidden: number, range .5-.7 or schedule .5:.75
    decoder_width: int | None = None  # paper: 512; not given: two thirds of the encoder's last width where that is below 768
    decoder_depth: int | None = None  # paper: 8 blocks; not given: 4 below a last width of 768
    decoder_heads: int | None = None  # paper: 16; not given: 32 columns a head

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "decoder_width decoder_depth decoder_heads", 1)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Random:
        """Which patches are hidden: mask units of 2×2 features."""
        return Random(self.mask_ratio, cell=2)

    def decoder_size(self, encoder: Adapter) -> tuple[int, int, int]:
        """Width, blocks and heads of the decoder over that encoder."""
        return decoder_size(self, *default_size(encoder.width)[:2])

    def build(
        self,
        model: str | nn.Module = "hiera_tiny_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a timm Hiera; `patch_size`: pixels a token of the first stage (4), a square has eight a side."""
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", q_pool=2, **sizes)
        if not isinstance(encoder, Hiera):
            raise Refused(f"hiera_mae is for a Hiera, and this is a {type(encoder.trunk).__name__}")
        if encoder.unit != 2:
            raise Refused("hiera_mae wants a Hiera that pools twice: build it with q_pool=2")
        stages = encoder.trunk.stage_ends[: encoder.trunk.q_pool]  # the third is not joined: it has the last one's resolution
        encoder.layers = tuple(stages)
        width, depth, heads = self.decoder_size(encoder)
        grid = encoder.own_grid
        values = patch_values(encoder.patch, encoder.in_chans)
        decoder = Transformer(encoder.width, values, grid, width, depth, heads, learned=0)
        mae_init(encoder.trunk)
        mae_init(decoder)
        columns = [encoder.trunk.blocks[i].dim_out * 4 ** (len(stages) - n) for n, i in enumerate(stages)]
        predict = Predict(decoder, Pixels(encoder.patch), losses.mse, through=Joined(columns, encoder.width))
        return MaskedModel(encoder, self.strategy(grid, encoder.patch), {"pixels": predict}, pooling="avg")


class Joined(nn.Module):
    """The stages' features, each a linear layer on a feature's tokens, summed with the last ones, and normed (multi_scale_fusion_heads, encoder_norm)."""

    def __init__(self, columns: list[int], width: int):
        super().__init__()
        self.scales = nn.ModuleList(nn.Linear(column, width) for column in columns)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, features: Features, mask: Mask) -> Features:
        parts = [scale(layer) for scale, layer in zip(self.scales, features.layers, strict=True)]  # (B, V, D) each
        return Features(self.norm(sum(parts, features.patches)), features.prefix)
