"""Pictures to patch vectors and back, and the places of patches: for any number of spatial axes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def grid_of(space: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """How many patches lie along each axis; a side that is no multiple of the patch is refused."""
    if any(side % p for side, p in zip(space, patch, strict=True)):
        raise ValueError(f"a picture of {'x'.join(map(str, space))} cannot be cut into patches of {'x'.join(map(str, patch))}")
    return tuple(side // p for side, p in zip(space, patch))


def patchify(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Cut `x` (B, C, *space) into patch vectors (B, N, C·prod(patch)): raster order, channel first within a vector."""
    B, C, *space = x.shape
    grid, n = grid_of(tuple(space), patch), len(patch)
    x = x.reshape(B, C, *(size for pair in zip(grid, patch) for size in pair))  # (B, C, g1, p1, g2, p2, …)
    x = x.permute(0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2))  # (B, g1, g2, …, C, p1, p2, …)
    return x.reshape(B, math.prod(grid), -1)  # (B, N, C·p1·p2·…)


def unpatchify(patches: Tensor, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The inverse of `patchify`: (B, N, C·prod(patch)) to (B, C, *space)."""
    B, n = patches.shape[0], len(patch)
    C = patches.shape[-1] // math.prod(patch)
    x = patches.reshape(B, *grid, C, *patch)  # (B, g1, g2, …, C, p1, p2, …)
    x = x.permute(0, 1 + n, *(axis for i in range(n) for axis in (1 + i, 2 + n + i)))  # (B, C, g1, p1, g2, p2, …)
    return x.reshape(B, C, *(g * p for g, p in zip(grid, patch)))


def enlarged(cells: Tensor, grid: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Values of the cells of a grid (B, N) as a map of a finer one (B, *size), whose sides are multiples."""
    whole = cells.unflatten(1, grid)
    for axis, (side, coarse) in enumerate(zip(size, grid, strict=True), 1):
        whole = whole.repeat_interleave(side // coarse, axis)
    return whole


def sincos(grid: tuple[int, ...], width: int) -> Tensor:
    """Fixed sine-cosine places (N, width) of a grid, raster order, computed in float64.

    As in MAE's code: every axis has an equal part of the width, the *last* axis (the column) comes first, and a part
    is all sines, then all cosines, of index · 10000^(-k/K). Columns left over by the division are zero.
    """
    part = width // (2 * len(grid))  # K: frequencies an axis
    omega = 10000.0 ** (-torch.arange(part, dtype=torch.float64) / part)  # (K,)
    places = torch.zeros(math.prod(grid), width, dtype=torch.float64)
    indices = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    for i, index in enumerate(reversed(indices)):
        angle = index.reshape(-1, 1) * omega  # (N, K)
        places[:, 2 * part * i : 2 * part * (i + 1)] = torch.cat([angle.sin(), angle.cos()], dim=1)
    return places.float()


def row_first(places: Tensor) -> Tensor:
    """Sine-cosine places with the row in the first half of the columns, as MoCo v3 and BootMAE have them, from MAE's."""
    return places.roll(places.shape[-1] // 2, dims=-1)


def resize_places(places: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int = 0, more: float = 0.0) -> Tensor:
    """Places (1, prefix + N, D) of an `old` grid, for a `new` one: bicubic, no antialiasing, prefix rows as they are.

    Source: MAE, util/pos_embed.py (there for square grids); equal grids leave the table untouched. With `more` the table is read at multiples of
    a scale, (new + more) / old, which is another answer (DINO, vision_transformer.py, with .1).
    """
    if tuple(old) == tuple(new):
        return places
    rows = places[:, prefix:].reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, D, H, W)
    how = {"scale_factor": tuple((n + more) / o for n, o in zip(new, old))} if more else {"size": tuple(new)}
    rows = F.interpolate(rows.float(), mode="bicubic", align_corners=False, **how)
    rows = rows.permute(0, 2, 3, 1).flatten(1, 2).to(places.dtype)  # (1, N, D)
    return torch.cat([places[:, :prefix], rows], dim=1)
