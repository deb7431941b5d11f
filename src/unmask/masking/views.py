"""Masks of views: some are left whole, the others are masked to shares of their own; so the lists are padded, and each row is a mean of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmask.mask import Mask
from unmask.masking.blocks import Block
from unmask.masking.strategy import Masking


def padded(covered: Tensor, noise: Tensor, most: int, grid: tuple[int, ...]) -> Mask:
    """The mask of `covered` (B, N) 0/1, at most `most` a row: hidden places first, padded with others; weights are one over their number."""
    order = (covered + noise).argsort(dim=1, descending=True, stable=True)
    mask = Mask(order[:, most:], order[:, :most], grid)
    hits = mask.masked(covered).float()  # (B, M)
    return Mask(mask.visible_ids, mask.masked_ids, grid, hits / hits.sum(1, keepdim=True).clamp(min=1))


class SomeViews(Masking):
    """A view is left whole with this chance, else a share of it is masked, uniform between two: blocks, or patches at random (iBOT, loader.py).

    The least block has (shorter side / 3)² patches; the budget is not rounded, as in the source. Before the share `start` of the run no view is masked.
    """

    rated = False

    def __init__(self, ratio: None = None, low: float = 0.1, high: float = 0.5, whole: float = 0.5, blocks: bool = True, start: float = 0.0):
        if ratio is not None:
            raise ValueError("these masks have no mask_ratio: each view has a share of its own, between two")
        super().__init__(high)
        self.low, self.high, self.whole, self.blocks, self.start = low, high, whole, blocks, start
        self.waits = start > 0

    def prepare(self, progress, u):
        super().prepare(progress, u)
        self.waits = progress < self.start

    def draws(self, grid):
        return 2 + (4 * Block.TABLE if self.blocks else 0) + math.prod(grid)

    def __call__(self, grid, noise, scores=None):
        N = math.prod(grid)
        budget = N * (self.low + (self.high - self.low) * noise[:, 1]) * (noise[:, 0] >= (2.0 if self.waits else self.whole))  # (B,)
        if self.blocks:
            block = Block(self.high, smallest=max(1, (min(grid) // 3) ** 2))
            covered = block.rectangles(grid, budget, noise[:, 2 : 2 + 4 * block.table].unflatten(1, (-1, 4))).flatten(1)
        else:
            ranks = noise[:, -N:].argsort(dim=1).argsort(dim=1)
            covered = (ranks < budget.long().unsqueeze(1)).long()  # (B, N)
        return padded(covered, noise[:, -N:], max(1, int(N * self.high)), grid)


class HalfOfViews(Masking):
    """A share of a step's views is masked, in blocks, and each of them to another share of its patches, spread evenly between two (DINOv2, data/collate.py)."""

    rated = False

    def __init__(self, ratio: None = None, low: float = 0.1, high: float = 0.5, views: float = 0.5):
        if ratio is not None:
            raise ValueError("these masks have no mask_ratio: each view has a share of its own, between two")
        super().__init__(high)
        self.low, self.high, self.views = low, high, views

    def draws(self, grid):
        return 2 + 4 * Block.TABLE + math.prod(grid)

    def __call__(self, grid, noise, scores=None):
        N, many = math.prod(grid), int(len(noise) * self.views)
        rank = noise[:, 0].argsort().argsort()  # (B,)
        share = self.low + (self.high - self.low) * (rank + noise[:, 1]) / max(many, 1)
        budget = torch.where(rank < many, (N * share).long(), 0)
        block = Block(self.high, smallest=min(4, max(1, N // 12)), largest=max(1, N // 2))
        covered = block.rectangles(grid, budget, noise[:, 2 : 2 + 4 * block.table].unflatten(1, (-1, 4))).flatten(1)
        return padded(covered, noise[:, -N:], max(1, int(N * self.high)), grid)

