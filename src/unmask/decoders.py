"""From features to predictions. A decoder never sees pixels, so it cannot leak."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.encoders.features import Features
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.patches import resize_places, sincos


class Decoder(nn.Module, ABC):
    """The contract: `(features, mask) -> prediction (B, M, out)`, one row for each of `mask.masked_ids`."""

    @abstractmethod
    def forward(self, features: Features, mask: Mask) -> Tensor: ...


class Linear(Decoder):
    """One linear layer on the features of the masked patches (SimMIM, BEiT): for encoders that hide by a token."""

    def __init__(self, width: int, out: int, bias: bool = True):
        super().__init__()
        self.predict = nn.Linear(width, out, bias)

    def forward(self, features, mask):
        return self.predict(mask.masked(features.patches))  # (B, M, out)


def default_size(width: int) -> tuple[int, int, int]:
    """Width, depth and heads of a decoder for an encoder of that width: MAE's 512×8×16, smaller for small encoders.

    Below ViT-B about two thirds of the encoder's width in steps of 32, and four blocks; heads are 32 wide as in the paper.
    """
    if width >= 768:
        return 512, 8, 16
    size = max(32, round(width * 2 / 3 / 32) * 32)
    return size, 4, size // 32


def decoder_size(asked: Any, width: int, depth: int, columns: int = 32) -> tuple[int, int, int]:
    """Width, blocks and heads of a decoder: what a method's `decoder_width`, `decoder_depth` and `decoder_heads` say, else these, with so many columns a head.

    Raises `Refused` where the heads do not divide the width.
    """
    width = asked.decoder_width or width
    heads = asked.decoder_heads or next((width // some for some in (columns, 32) if width % some == 0), 1)
    if width % heads:
        raise Refused(f"decoder_heads {heads} does not divide the decoder's width {width}: change it, or give decoder_width")
    return width, asked.decoder_depth or depth, heads


class Transformer(Decoder):
    """MAE's decoder: project the visible features, add a mask token for every masked place, a few blocks, one linear layer.

    No unshuffle: the sequence is [prefix, visible + place, mask token + place] and the answer its last M rows, since
    attention minds no order. In the last block only those rows are computed. Places are sines and cosines, of patches only; with `learned`, the
    number of the encoder's prefix tokens, they are learned, and those tokens have places of their own (Pixio).
    """

    def __init__(
        self,
        encoder_width: int,
        out: int,
        grid: tuple[int, ...],
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        learned: int | None = None,
    ):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)])
        self.norm = norm(width)
        self.predict = nn.Linear(width, out)
        self.grid, self.learned = tuple(grid), learned
        places = sincos(self.grid, width).unsqueeze(0)  # (1, N, width)
        if learned is None:
            self.register_buffer("places", places, persistent=False)
        else:
            self.places = nn.Parameter(nn.init.trunc_normal_(places.new_empty(1, learned + places.shape[1], width), std=0.02))

    def placed(self, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Places of the prefix tokens, (1, P, width) or a zero, and of the patches of a grid (1, N, width)."""
        if self.learned is not None:
            table = resize_places(self.places, self.grid, grid, self.learned)  # type: ignore[arg-type]
            return table[:, : self.learned], table[:, self.learned :]
        table = self.places if grid == self.grid else sincos(grid, self.places.shape[-1]).unsqueeze(0).to(self.places)
        return table.new_zeros(()), table

    def forward(self, features, mask):
        own, places = self.placed(mask.grid)
        places = places.expand(len(mask.masked_ids), -1, -1)
        x = self.embed(torch.cat([features.prefix, features.patches], dim=1))  # (B, P + V, width)
        P, M = features.prefix.shape[1], mask.masked_ids.shape[1]
        prefix, visible, masked = x[:, :P] + own, x[:, P:] + mask.visible(places), self.mask_token + mask.masked(places)
        x = torch.cat([prefix, visible, masked], dim=1)  # (B, P + V + M, width)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.predict(self.norm(last_rows(self.blocks[-1], x, M)))  # (B, M, out)


class Cross(nn.Module):
    """Attention of some rows to others: `asking` (B, M, width) to `known` (B, N, known width)."""

    def __init__(self, width: int, known_width: int, heads: int):
        super().__init__()
        self.heads, inner = heads, width // heads * heads  # columns that do not divide are left out (BootMAE)
        self.q = nn.Linear(width, inner)
        self.kv = nn.Linear(known_width, 2 * inner)
        self.proj = nn.Linear(inner, width)

    def forward(self, asking: Tensor, known: Tensor) -> Tensor:
        q = self.q(asking).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, M, d)
        k, v = self.kv(known).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # (B, M, width)


class CrossBlock(nn.Module):
    """Rows look at what is known, which is normed already, and change: never at each other."""

    def __init__(self, width: int, known_width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.cross_attn = Cross(width, known_width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        x = x + self.cross_attn(self.norm1(x), known)
        return x + self.mlp(self.norm2(x))


class CrossAttention(Decoder):
    """Hidden places ask the encoder's layers, each for itself (CrossMAE, section 3).

    Nothing is projected or joined: a block's keys and values come from its own mixture of the kept layers, class tokens included. Hidden
    places do not see each other, so any part of them can be asked. Source: models_cross.py and transformer_utils.py.
    """

    def __init__(
        self, encoder_width: int, out: int, grid: tuple[int, ...], layers: int, width: int = 512, depth: int = 12, heads: int = 16, mlp_ratio: float = 4.0
    ):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mix = nn.Linear(layers, depth, bias=False)  # the share of each layer in what each block sees
        self.norms = nn.ModuleList(nn.LayerNorm(encoder_width, eps=1e-6) for _ in range(depth))
        self.blocks = nn.ModuleList(CrossBlock(width, encoder_width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, out)
        self.grid = tuple(grid)
        self.register_buffer("places", sincos(self.grid, width).unsqueeze(0), persistent=False)  # (1, N, width)

    def forward(self, features, mask):
        places = self.places if mask.grid == self.grid else sincos(mask.grid, self.places.shape[-1]).unsqueeze(0).to(self.places)
        x = self.mask_token + mask.masked(places.expand(len(mask.masked_ids), -1, -1))  # (B, M, width)
        layers = [torch.cat(both, dim=1) for both in zip(features.prefixes, features.layers, strict=True)]  # (B, P + V, D) each
        mixed = self.mix(torch.stack(layers, dim=-1))  # (B, P + V, D, depth)
        for block, norm, known in zip(self.blocks, self.norms, mixed.unbind(-1), strict=True):
            x = block(x, norm(known))
        return self.predict(self.norm(x))  # (B, M, out)


def last_rows(block: Block, x: Tensor, rows: int) -> Tensor:
    """The last `rows` rows of `block(x)`: everybody is a key, only they ask. Equal to slicing, with less work."""
    attention, normed = block.attn, block.norm1(x)
    B, N, D = normed.shape
    query, key_value = attention.qkv.weight.split([D, 2 * D])
    query_bias, key_value_bias = attention.qkv.bias.split([D, 2 * D])
    heads = (B, -1, attention.num_heads, D // attention.num_heads)
    q = F.linear(normed[:, -rows:], query, query_bias).reshape(heads).transpose(1, 2)  # (B, heads, M, d)
    k, v = F.linear(normed, key_value, key_value_bias).reshape(B, N, 2, *heads[2:]).permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, rows, D)  # (B, M, D)
    x = x[:, -rows:] + attention.proj(y)
    return x + block.mlp(block.norm2(x))


class Convolutions(Decoder):
    """Visible features back on their grid, faint noise elsewhere, and a few grouped convolutions over it (data2vec 2.0, section 3.2).

    No mask token and no places: what a hidden patch is comes from its neighbours. A layer: convolution, norm over channels without scale and
    shift, GELU, plus its input where the width stays (fairseq, modalities/modules.py, Decoder2d). The noise is drawn while training only.
    """

    def __init__(self, encoder_width: int, out: int, width: int, depth: int = 6, kernel: int = 3, groups: int = 16, noise: float = 0.01):
        super().__init__()
        widths = [encoder_width, *[width] * depth]
        self.layers = nn.ModuleList(nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups) for before, after in pairwise(widths))
        self.predict = nn.Linear(width, out)
        self.noise = noise

    def fill(self, like: Tensor) -> Tensor:
        """What stands where nothing is seen."""
        return torch.randn_like(like) * self.noise if self.training and self.noise else torch.zeros_like(like)

    def forward(self, features, mask):
        hidden = self.fill(features.patches.new_empty(*mask.masked_ids.shape, features.patches.shape[-1]))  # (B, M, D)
        x = mask.join(features.patches, hidden).transpose(1, 2).unflatten(2, mask.grid)  # (B, D, H, W)
        for layer in self.layers:
            y = layer(x).movedim(1, -1)  # (B, H, W, D)
            y = F.gelu(F.layer_norm(y, y.shape[-1:])).movedim(-1, 1)
            x = x + y if x.shape == y.shape else y
        return self.predict(mask.masked(x.flatten(2).transpose(1, 2)))  # (B, M, out)


def patch_values(patch: tuple[int, ...], in_chans: int) -> int:
    """How many numbers a patch vector has."""
    return in_chans * math.prod(patch)
