"""Histograms of oriented gradients (Dalal and Triggs 2005), as MaskFeat predicts them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.errors import Refused
from unmask.patches import patchify
from unmask.targets.target import Target

EPS = 1e-12  # least length of a histogram (SlowFast, operators.py)
LARGEST = 8  # pixels a side of a cell (MaskFeat, section 3.2)


class HOG(Target):
    """How strong the edges of each direction are in every cell of a patch: C · bins · cells numbers.

    Source: MaskFeat, section 3.2, and SlowFast's operators.py: of the normalised picture, channel by channel; gradients by
    3×3 Sobel kernels, directions without sign in `bins` bins, each pixel wholly in one and weighted by its magnitude; each cell's histogram
    has length 1, and there is no normalisation over blocks. `cell` is the side of a cell in pixels: not given, the largest
    part of the patch up to 8. The order within a vector: channel, bin, row and column of the cell.
    """

    def __init__(self, patch: tuple[int, ...], bins: int = 9, cell: int | None = None):
        super().__init__()
        self.patch, self.bins = tuple(patch), bins
        self.cell = cell or max(side for side in range(1, LARGEST + 1) if all(length % side == 0 for length in patch))
        if any(length % self.cell for length in patch):
            raise Refused(f"patches of {'x'.join(map(str, patch))} pixels cannot be cut into cells of {self.cell}")

    @property
    def cells(self) -> tuple[int, ...]:
        """Cells down and across in a patch."""
        return tuple(length // self.cell for length in self.patch)

    def values(self, in_chans: int) -> int:
        """How many numbers a patch vector has."""
        return in_chans * self.bins * math.prod(self.cells)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        cells = self.histograms(x)  # (B, C, bins, H / cell, W / cell)
        return patchify(cells.flatten(1, 2), self.cells)  # (B, N, C·bins·cells)

    def histograms(self, x: Tensor) -> Tensor:
        """The histogram of every cell of `x` (B, C, H, W): (B, C, bins, H / cell, W / cell)."""
        x = F.pad(x.float(), (1, 1, 1, 1), mode="reflect")
        across, down = x[..., :-2] - x[..., 2:], x[..., :-2, :] - x[..., 2:, :]  # differences first: equal pixels cancel exactly
        gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]  # (B, C, H, W): left minus right
        gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]  # upper minus lower
        direction = torch.atan2(gx, gy) / math.pi * self.bins  # the arguments this way round, as in the source
        bin = direction.floor().long().remainder(self.bins).unsqueeze(2)  # (B, C, 1, H, W)
        strength = (gx.square() + gy.square()).sqrt().unsqueeze(2)
        spread = strength.new_zeros(*strength.shape[:2], self.bins, *strength.shape[3:]).scatter_(2, bin, strength)  # (B, C, bins, H, W)
        rows, columns = (side // self.cell for side in spread.shape[3:])
        sums = spread.reshape(*spread.shape[:3], rows, self.cell, columns, self.cell).sum((4, 6))
        return F.normalize(sums, dim=2, eps=EPS)

    def baseline(self, truth, loss):
        """The mean vector, the best constant for a squared error."""
        rows = truth.flatten(0, -2)  # (B·M, values)
        return loss(rows.mean(0).expand_as(rows), rows).mean()
