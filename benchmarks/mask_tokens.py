"""The masked autoencoder that wastes: mask tokens go through the encoder, too. An experiment of its paper (arXiv:2111.06377, Table 1c), no method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn

from unmask import losses
from unmask.decoders import Decoder, patch_values
from unmask.encoders.build import build
from unmask.encoders.vit import fix_places, mae_init
from unmask.masking import Random
from unmask.model import MaskedModel, Predict
from unmask.patches import sincos
from unmask.settings import Ratio, Train, Views
from unmask.targets.pixels import Pixels


@dataclass(frozen=True)
class MaskTokens:
    """MAE with one thing changed: the encoder sees a token at every hidden place, so that it does four times the work and meets at
    training what it never meets afterwards."""

    sentence = "MAE, but mask tokens go through the encoder"
    source = "He et al. 2021, arXiv:2111.06377, Table 1c"
    standing = "an experiment"
    paper = Train(epochs=800, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.0)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")

    mask_ratio: Ratio = Ratio(0.75, 0.75)  # share of patches hidden
    decoder_width: int = 512  # of its blocks
    decoder_depth: int = 8  # blocks

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))

    def build(self, model="vit_base_patch16_224", img_size=(224, 224), in_chans=3, patch_size=None, **sizes: Any) -> MaskedModel:
        encoder = build(model, img_size, in_chans, patch_size, masked="token", **sizes)
        grid = tuple(side // patch for side, patch in zip(encoder.img_size, encoder.patch))
        decoder = Whole(encoder.width, patch_values(encoder.patch, encoder.in_chans), grid, self.decoder_width, self.decoder_depth)
        mae_init(encoder)
        mae_init(decoder)
        fix_places(encoder.trunk)
        return MaskedModel(encoder, Random(self.mask_ratio), {"pixels": Predict(decoder, Pixels(encoder.patch, normalize=True), losses.mse)})


class Whole(Decoder):
    """MAE's decoder over features of all places; the answer is the rows of the hidden ones."""

    def __init__(self, encoder_width: int, out: int, grid: tuple[int, ...], width: int, depth: int):
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.blocks = nn.ModuleList(Block(width, width // 32, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, out)
        self.register_buffer("places", sincos(grid, width).unsqueeze(0), persistent=False)  # (1, N, width)

    def forward(self, features, mask):
        prefix, patches = self.embed(features.prefix), self.embed(features.patches) + self.places  # (B, P, width), (B, N, width)
        x = torch.cat([prefix, patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(mask.masked(x[:, prefix.shape[1] :])))  # (B, M, out)
