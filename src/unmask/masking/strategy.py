"""The contract of a strategy, and how scores of cells become a mask."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unmask.mask import Mask
from unmask.settings import Ratio


class Masking(ABC):
    """The contract of a strategy.

    `ratio` may be a number, a range or a schedule (see `Ratio`); `prepare` fixes this step's value on the host, so that
    the counts, and with them all shapes, are known before the step.
    """

    rated = True  # whether `ratio` says how much is masked

    def __init__(self, ratio: Ratio | float | str = 0.75):
        self.ratio = Ratio.of(ratio)
        self.now = self.ratio.first

    def prepare(self, progress: float, u: float) -> None:
        """Set the ratio of one step from the run's progress and one uniform number: pure, so nothing to save."""
        self.now = self.ratio.at(progress, u)

    def keep(self, cells: int) -> int:
        """How many of `cells` stay visible: MAE's int(N·(1 − ratio)), at least one seen and one masked."""
        return min(max(int(cells * (1 - self.now)), 1), cells - 1)

    @abstractmethod
    def draws(self, grid: tuple[int, ...]) -> int:
        """How many uniform numbers a row wants."""

    @abstractmethod
    def __call__(self, grid: tuple[int, ...], noise: Tensor, scores: Tensor | None = None) -> Mask:
        """The mask of every row of `noise` (B, draws)."""


def cells_of(grid: tuple[int, ...], cell: int | tuple[int, ...]) -> tuple[tuple[int, ...], Tensor]:
    """The grid of cells, and the patches in each: (cells, patches a cell), raster order in a cell."""
    shape = (cell,) * len(grid) if isinstance(cell, int) else tuple(cell)
    if len(shape) != len(grid) or any(side % size for side, size in zip(grid, shape)):
        raise ValueError(f"a grid of {'x'.join(map(str, grid))} patches cannot be cut into cells of {'x'.join(map(str, shape))}")
    coarse, n = tuple(side // size for side, size in zip(grid, shape)), len(grid)
    ids = torch.arange(math.prod(grid)).reshape([size for pair in zip(coarse, shape) for size in pair])
    return coarse, ids.permute(*range(0, 2 * n, 2), *range(1, 2 * n, 2)).reshape(math.prod(coarse), -1)


def highest(scores: Tensor, keep: int, grid: tuple[int, ...], cell: int | tuple[int, ...] = 1, skip: int = 0) -> Mask:
    """Mask all but the `keep` cells of lowest score (B, cells); one argsort makes both lists, in the order of the scores.

    The next `skip` cells are in neither list: hidden, and not asked about.
    """
    order = scores.argsort(dim=1, stable=True)  # (B, cells); stable: equal scores fall the same way on every machine
    if math.prod(grid) == scores.shape[1]:
        return Mask(order[:, :keep], order[:, keep + skip :], grid)
    members = cells_of(grid, cell)[1].to(scores.device)
    return Mask(members[order[:, :keep]].flatten(1), members[order[:, keep + skip :]].flatten(1), grid)
