"""Cells that fall one by one: at random, in a pattern, or where a teacher looks away."""

from __future__ import annotations

import math

import torch

from unmask.masking.strategy import Masking, cells_of, highest
from unmask.settings import Ratio


class Random(Masking):
    """Cells drawn uniformly without replacement (MAE; SimMIM with cells of 32 pixels).

    The noise is the score: MAE's argsort, so that its masks come out bit for bit from its noise. `predicted`: the share of all cells that is
    asked about, where that is not all that is hidden (CrossMAE).
    """

    def __init__(self, ratio: Ratio | float | str = 0.75, cell: int | tuple[int, ...] = 1, predicted: float | None = None):
        super().__init__(ratio)
        self.cell, self.predicted = cell, predicted

    def draws(self, grid):
        return math.prod(cells_of(grid, self.cell)[0])

    def __call__(self, grid, noise, scores=None):
        cells = noise.shape[1]
        keep = self.keep(cells)
        skip = 0 if self.predicted is None else min(max(int(cells * (self.now - self.predicted)), 0), cells - keep - 1)
        return highest(noise, keep, grid, self.cell, skip)


class Grid(Masking):
    """A regular pattern: at .75 one patch of every 2×2 is seen, at .5 a chequerboard (MAE, section 4.1 and Figure 6).

    The order in which patches fall is a 4×4 ordered dither (Bayer), moved by a random offset a picture; ratios between
    its sixteenths mask some of the next rank at random.
    """

    BAYER = ((0, 8, 2, 10), (12, 4, 14, 6), (3, 11, 1, 9), (15, 7, 13, 5))

    def draws(self, grid):
        return 2 + math.prod(grid)

    def __call__(self, grid, noise, scores=None):
        if len(grid) != 2:
            raise ValueError(f"grid masking is for pictures, not for a grid of {len(grid)} axes")
        H, W = grid
        dither = torch.tensor(self.BAYER, device=noise.device)
        top, left = (noise[:, :2, None] * 4).long().unbind(1)  # (B, 1) each
        rows = (torch.arange(H, device=noise.device) + top) % 4  # (B, H)
        columns = (torch.arange(W, device=noise.device) + left) % 4  # (B, W)
        ranks = dither[rows[:, :, None], columns[:, None, :]].flatten(1)  # (B, N)
        return highest(ranks + noise[:, 2:], self.keep(H * W), grid)


class Attended(Masking):
    """What a teacher looks at is what stays visible: patches are drawn one after the other, each with a chance that is its share of the attention
    (MILAN, section 3.3 and models_milan.py, attention_masking).

    `scores` (B, N): attention, at any scale; not given: the same everywhere, which is random masking. Drawing without putting back is a race of
    exponential clocks, each as fast as its share (Efraimidis and Spirakis 2006): the first to ring stay.
    """

    def draws(self, grid):
        return math.prod(grid)

    def __call__(self, grid, noise, scores=None):
        clocks = -torch.log1p(-noise)  # (B, N) exponential
        if scores is not None:
            clocks = clocks / scores.clamp(min=torch.finfo(torch.float32).tiny)
        return highest(clocks, self.keep(noise.shape[1]), grid)
