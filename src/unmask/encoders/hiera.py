"""timm's Hiera: squares of 32 pixels ("mask units") that go through the early stages each by itself, so that hidden ones are dropped whole.

A feature of the last stage stands for 32 pixels a side, or for 16 where the network pools once less (`q_pool` 2, as it is while it is
pre-trained): then 2×2 features make a unit, and masks hide whole units (`unit`). Source: Ryali et al. 2023, Hiera (arXiv:2306.00989),
section 3, hiera.py and hiera_utils.py; proved by the golden `trunks_hiera` and `hiera_image`.

timm attributes used that are not public: `blocks`, `pos_embed`, `pos_embed_win`, `tokens_spatial_shape`, `patch_stride`, `mask_unit_size`,
`q_pool`, `stage_ends`, `grad_checkpointing`, of a block `attn.q_stride`.
"""

from __future__ import annotations

import math

import timm.models.hiera
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unmask.encoders.adapter import Adapter, Hiding
from unmask.encoders.features import Features, Layer, kept
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import cells_of
from unmask.patches import enlarged, resize_places


class Hiera(Adapter):
    """`trunk` with masked units dropped (`"drop"`), or replaced by a learned token (`"token"`); the first convolution, whose windows overlap, sees zeros there.

    `layers`: blocks whose outputs are kept. Each feature's finer tokens stand side by side there, (B, V or N, tokens·C), row by row. The norm of timm's
    head is no part of the features; it is not trained.
    """

    def __init__(self, trunk: timm.models.hiera.Hiera, masked: Hiding = "drop", layers: tuple[Layer, ...] = ()):
        super().__init__(trunk, masked, trunk.patch_embed.proj.out_channels)
        self.levels = int(math.log2(trunk.mask_unit_size[0]))  # how often a unit's side can be halved
        if tuple(trunk.q_stride) != (2, 2) or tuple(trunk.mask_unit_size) != (2**self.levels,) * 2:
            raise Refused("a Hiera for pictures is wanted, with square mask units that are pooled two by two")
        if any(side % 2**self.levels for side in trunk.tokens_spatial_shape):
            side = trunk.patch_stride[0] * 2**self.levels
            raise Refused(f"--img_size {' '.join(map(str, self.img_size))} is no multiple of {side}, the side of a mask unit: change it, or give --patch_size")
        self.layers = kept(layers, len(trunk.blocks))
        trunk.head.requires_grad_(False)

    @property
    def width(self) -> int:
        return self.trunk.num_features

    @property
    def unit(self) -> int:
        """Features a side of what is hidden together."""
        return 2 ** (self.levels - self.trunk.q_pool)

    @property
    def patch(self) -> tuple[int, int]:
        rows, columns = self.trunk.patch_stride
        return rows * 2**self.trunk.q_pool, columns * 2**self.trunk.q_pool

    def grid(self, x: Tensor) -> tuple[int, ...]:
        grid = super().grid(x)
        if any(side % self.unit for side in grid):
            sides = [side * self.unit for side in self.patch]
            raise ValueError(f"pictures of {x.shape[2]}x{x.shape[3]} pixels are no whole number of mask units of {sides[0]}x{sides[1]}")
        return grid

    def forward(self, x: Tensor, mask: Mask | None = None) -> Features:
        grid = self.grid(x)
        members = cells_of(grid, self.unit)[1].to(x.device)  # (U, S) the features of each unit
        shown = None
        if mask is not None:
            shown = ~mask.map if self.mask_token is not None else torch.zeros_like(mask.map).scatter(1, mask.visible_ids, True)  # (B, N)
            x = torch.where(enlarged(shown, grid, tuple(x.shape[2:])).unsqueeze(1), mask.fold(x), 0)
        tokens = x.shape[2] // self.trunk.patch_stride[0], x.shape[3] // self.trunk.patch_stride[1]
        x = self.trunk.patch_embed(x)  # (B, H·W, C)
        if shown is not None and self.mask_token is not None:
            x = torch.where(enlarged(shown, grid, tokens).flatten(1).unsqueeze(-1), x, self.mask_token.to(x.dtype))
        x = sorted_by_halves(x + self.places(tokens), tokens, self.levels)  # (B, 4^levels, U, C)
        ids = members.flatten().expand(len(x), -1)  # (B, N)
        if mask is not None and shown is not None and self.mask_token is None:
            units = shown[:, members].sum(-1).argsort(dim=1, descending=True, stable=True)  # visible ones first, raster order
            units = units[:, : mask.visible_ids.shape[1] // members.shape[1]]  # (B, K)
            x = x.gather(2, units[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1]))
            ids = members[units].flatten(1)  # (B, V)
        found = [self.placed(part, ids, grid) for part in self.blocks(x)]  # (B, N, …) each
        if mask is not None and self.mask_token is None:
            found = [mask.visible(part) for part in found]
        return Features(found[-1], found[-1][:, :0], tuple(found[:-1]), tuple(part[:, :0] for part in found[:-1]))

    def places(self, tokens: tuple[int, int]) -> Tensor:
        """The learned places (1, H·W, C) for a grid of tokens: interpolated where it is another than the network was built for."""
        trunk = self.trunk
        if trunk.pos_embed_win is not None:  # one table within a unit and one over the picture (Bolya et al. 2023)
            within = trunk.pos_embed_win.tile([side // unit for side, unit in zip(tokens, trunk.mask_unit_size)])
            return (F.interpolate(trunk.pos_embed, size=tokens, mode="bicubic", antialias=True) + within).flatten(2).transpose(1, 2)
        return resize_places(trunk.pos_embed, tuple(trunk.tokens_spatial_shape), tokens, 0)

    def blocks(self, x: Tensor) -> list[Tensor]:
        """The kept blocks' outputs, and the last one's: (B, K, S, tokens·C), units and their features row by row."""
        units, left, found = x.shape[2], self.levels, []
        x = x.flatten(1, 2)
        for i, block in enumerate(self.trunk.blocks):
            x = checkpoint(block, x, use_reentrant=False) if self.trunk.grad_checkpointing and self.training else block(x)
            left -= block.attn.q_stride > 1
            if i in self.layers:
                found.append(self.rolled(x.unflatten(1, (-1, units)), left))
        return [*found, self.rolled(x.unflatten(1, (-1, units)), left)]

    def rolled(self, x: Tensor, left: int) -> Tensor:
        """(B, 4^left, K, C), as `sorted_by_halves` gives them, to (B, K, S, 4^(left − last)·C): the features of a unit, and the tokens of a feature, row by row."""
        last = self.levels - self.trunk.q_pool
        x = x.unflatten(1, (2,) * 2 * left) if left else x.squeeze(1)  # (B, y_1, x_1, …, y_left, x_left, K, C)
        down, across = list(range(2 * left - 1, 0, -2)), list(range(2 * left, 0, -2))  # coarse to fine
        x = x.permute(0, 2 * left + 1, *down[:last], *across[:last], *down[last:], *across[last:], 2 * left + 2)
        return x.reshape(*x.shape[:2], 4**last, -1)

    def as_timm(self, features: Features, grid: tuple[int, ...]) -> Tensor:
        """(B, N, D), the features of a unit as `sorted_by_halves` gives them: timm leaves them so."""
        last = self.levels - self.trunk.q_pool
        return sorted_by_halves(features.patches, grid, last).flatten(1, 2)

    def placed(self, x: Tensor, ids: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Features of some units (B, K, S, C) at their places of the grid (B, N, C); the rest is zero."""
        x = x.flatten(1, 2)  # (B, K·S, C)
        return x.new_zeros(len(x), math.prod(grid), x.shape[-1]).scatter(1, ids.unsqueeze(-1).expand_as(x), x)


def sorted_by_halves(x: Tensor, grid: tuple[int, ...], levels: int) -> Tensor:
    """A grid's tokens (B, H·W, C) sorted by their place in a unit of 2^levels a side, finest halving first, and then by unit: (B, 4^levels, U, C), as timm's blocks want them."""
    coarse = [side >> levels for side in grid]
    x = x.unflatten(1, (coarse[0], *[2] * levels, coarse[1], *[2] * levels))  # (B, rows, y_n … y_1, columns, x_n … x_1, C)
    halves = [axis for level in range(1, levels + 1) for axis in (2 + levels - level, 3 + 2 * levels - level)]  # y_1, x_1, …, y_n, x_n
    return x.permute(0, *halves, 1, 2 + levels, 3 + 2 * levels).reshape(len(x), 4**levels, math.prod(coarse), -1)
