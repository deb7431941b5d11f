"""Strategies: which patches are masked, as a pure function of uniform numbers.

A strategy scores *cells*: sets of patches that are masked together (one patch, SimMIM's 32-pixel square, a tube through
time). The cells with the highest scores are masked. `strategy(grid, noise)` takes noise (B, draws(grid)) in [0, 1).
"""

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


def highest(scores: Tensor, keep: int, grid: tuple[int, ...], cell: int | tuple[int, ...] = 1) -> Mask:
    """Mask all but the `keep` cells of lowest score (B, cells); one argsort makes both lists, in the order of the scores."""
    order = scores.argsort(dim=1, stable=True)  # (B, cells); stable: equal scores fall the same way on every machine
    if math.prod(grid) == scores.shape[1]:
        return Mask(order[:, :keep], order[:, keep:], grid)
    members = cells_of(grid, cell)[1].to(scores.device)
    return Mask(members[order[:, :keep]].flatten(1), members[order[:, keep:]].flatten(1), grid)


class Random(Masking):
    """Cells drawn uniformly without replacement (MAE; SimMIM with cells of 32 pixels).

    The noise is the score: MAE's argsort, so that its masks come out bit for bit from its noise.
    """

    def __init__(self, ratio: Ratio | float | str = 0.75, cell: int | tuple[int, ...] = 1):
        super().__init__(ratio)
        self.cell = cell

    def draws(self, grid):
        return math.prod(cells_of(grid, self.cell)[0])

    def __call__(self, grid, noise, scores=None):
        return highest(noise, self.keep(noise.shape[1]), grid, self.cell)


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


class Block(Masking):
    """Rectangles, put down until the budget is reached (BEiT, section 2.3 and masking_generator.py).

    A try: an area uniform in [smallest, what is left], an aspect log-uniform in [.3, 1/.3], a place; it counts if it
    fits strictly inside and covers between one and all of what is left. After ten tries in vain a picture is done, so
    the count varies below the budget: shorter lists are padded (weight 0). With `exact` they are filled up at random, as
    in BEiT v2. `smallest` is BEiT's 16 patches unless given, less on smaller grids: a twelfth.
    """

    TRIES = 10  # in vain, before a picture is given up
    TABLE = 64  # tries read from the noise: enough for the golden histograms of counts

    def __init__(
        self,
        ratio: Ratio | float | str = 0.4,
        smallest: int | None = None,
        largest: int | None = None,
        aspect: float = 0.3,
        exact: bool = False,
        count: int | None = None,
    ):
        super().__init__(ratio)
        self.smallest, self.largest, self.aspect, self.exact, self.count = smallest, largest, aspect, exact, count

    def draws(self, grid):
        return 4 * self.TABLE + math.prod(grid)

    def __call__(self, grid, noise, scores=None):
        if len(grid) != 2:
            raise ValueError(f"block masking is for pictures, not for a grid of {len(grid)} axes")
        N = math.prod(grid)
        budget = self.count or min(max(round(N * self.now), 1), N - 1)  # rounded, as the papers' own numbers are: 78 and 120 of 196, 105 of 256
        covered = self.rectangles(grid, budget, noise[:, : 4 * self.TABLE].reshape(-1, self.TABLE, 4)).flatten(1)  # (B, N)
        order = (covered + noise[:, 4 * self.TABLE :]).argsort(dim=1, stable=True)  # masked patches last, each group in random order
        mask = Mask(order[:, : N - budget], order[:, N - budget :], grid)
        return mask if self.exact else Mask(mask.visible_ids, mask.masked_ids, grid, mask.masked(covered).float())

    def rectangles(self, grid: tuple[int, int], budget: int | Tensor, table: Tensor) -> Tensor:
        """(B, H, W) 0/1: what the rectangles read from `table` (B, tries, 4) cover; never more than `budget`, one or (B,)."""
        H, W = grid
        smallest = self.smallest or min(16, max(1, H * W // 12))
        rows = torch.arange(H, device=table.device)[None, :, None]  # (1, H, 1)
        columns = torch.arange(W, device=table.device)[None, None, :]  # (1, 1, W)
        covered = torch.zeros(len(table), H, W, dtype=torch.int64, device=table.device)
        count = torch.zeros(len(table), dtype=torch.int64, device=table.device)
        vain = torch.zeros_like(count)
        shapes = torch.exp((table[..., 1] * 2 - 1) * -math.log(self.aspect))  # (B, tries) height over width
        for i in range(table.shape[1]):
            left = (budget - count).clamp(max=self.largest or H * W)
            area = smallest + table[:, i, 0] * (left - smallest)  # a reversed interval at the end, as in the source
            h = (area * shapes[:, i]).sqrt().round().long()
            w = (area / shapes[:, i]).sqrt().round().long()
            y = (table[:, i, 2] * (H - h + 1)).long()
            x = (table[:, i, 3] * (W - w + 1)).long()
            inside = (rows >= y[:, None, None]) & (rows < (y + h)[:, None, None])
            inside = inside & (columns >= x[:, None, None]) & (columns < (x + w)[:, None, None])  # (B, H, W)
            new = (inside & (covered == 0)).sum((1, 2))
            good = (h < H) & (w < W) & (new > 0) & (new <= left) & (vain < self.TRIES) & (count < budget)
            covered = covered | (inside & good[:, None, None]).long()
            count = count + new * good
            vain = torch.where(good, 0, vain + 1)  # beyond TRIES nothing is good any more
        return covered


STRATEGIES: dict[str, type[Masking]] = {"random": Random, "block": Block, "grid": Grid}
