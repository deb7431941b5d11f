"""Rectangles: of what is hidden, of what stays visible, or of both."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmask.mask import Mask
from unmask.masking.strategy import Masking, highest
from unmask.settings import Ratio


class Block(Masking):
    """Rectangles, put down until the budget is reached (BEiT, section 2.3 and masking_generator.py).

    A try: an area uniform in [smallest, what is left], an aspect log-uniform in [.3, 1/.3], a place; it counts if it
    fits strictly inside and covers between one and all of what is left. After ten tries in vain a picture is done, so
    the count varies below the budget: shorter lists are padded (weight 0). With `exact` they are filled up at random, as
    in BEiT v2. `smallest` is BEiT's 16 patches unless given, less on smaller grids: a twelfth. `tries` in vain before a
    picture is given up; `table` of them are read from the noise.
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
        tries: int = TRIES,
        table: int = TABLE,
    ):
        super().__init__(ratio)
        self.smallest, self.largest, self.aspect, self.exact, self.count = smallest, largest, aspect, exact, count
        self.tries, self.table = tries, table

    def draws(self, grid):
        return 4 * self.table + math.prod(grid)

    def __call__(self, grid, noise, scores=None):
        if len(grid) != 2:
            raise ValueError(f"block masking is for pictures, not for a grid of {len(grid)} axes")
        N = math.prod(grid)
        budget = self.count or min(max(round(N * self.now), 1), N - 1)  # rounded, as the papers' own numbers are: 78 and 120 of 196, 105 of 256
        covered = self.rectangles(grid, budget, noise[:, : 4 * self.table].reshape(-1, self.table, 4)).flatten(1)  # (B, N)
        order = (covered + noise[:, 4 * self.table :]).argsort(dim=1, stable=True)  # masked patches last, each group in random order
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
            good = (h < H) & (w < W) & (new > 0) & (new <= left) & (vain < self.tries) & (count < budget)
            covered = covered | (inside & good[:, None, None]).long()
            count = count + new * good
            vain = torch.where(good, 0, vain + 1)  # beyond these tries nothing is good any more
        return covered


class InverseBlock(Masking):
    """Squares that stay *visible*, and everything else masked: exactly as many patches as the ratio says (data2vec 2.0, section 3.3).

    Centres are drawn with replacement, squares are cut at the border; then patches are added or taken away at random up to
    the count. `adjust` is how much more than what stays visible the squares would cover if they did not overlap
    (fairseq, data_utils.py, compute_block_mask_2d).
    """

    def __init__(self, ratio: Ratio | float | str = 0.8, side: int = 3, adjust: float = 0.07):
        super().__init__(ratio)
        self.side, self.adjust = side, adjust

    def squares(self, N: int) -> int:
        """How many are drawn on a grid of N patches."""
        return max(1, int(N * (1 - self.now + self.adjust) / self.side**2))

    def draws(self, grid):
        N = math.prod(grid)
        return int(N * (1 + self.adjust) / self.side**2) + 1 + N  # for any ratio of a schedule

    def __call__(self, grid, noise, scores=None):
        if len(grid) != 2:
            raise ValueError(f"inverse block masking is for pictures, not for a grid of {len(grid)} axes")
        (H, W), N = grid, math.prod(grid)
        centres = (noise[:, : self.squares(N)] * N).long()  # (B, squares)
        before, after = self.side // 2, self.side - 1 - self.side // 2
        rows, columns = torch.arange(H, device=noise.device), torch.arange(W, device=noise.device)
        down, across = rows - (centres // W).unsqueeze(-1), columns - (centres % W).unsqueeze(-1)  # (B, squares, H), (B, squares, W)
        down, across = (down >= -before) & (down <= after), (across >= -before) & (across <= after)
        seen = (down.unsqueeze(-1) & across.unsqueeze(-2)).any(1).flatten(1)  # (B, N)
        return highest((~seen).long() + noise[:, -N:], self.keep(N), grid)


class MultiBlock(Masking):
    """Several rectangles to predict, and one large one to look at, without them (I-JEPA, section 4 and masks/multiblock.py).

    Once a step: one number for area *and* height over width of the targets (large ones are tall), one for the area of the square context.
    Places are drawn a picture; targets may overlap each other. A context of at most `least` patches (the source's 10, less on small
    grids) is drawn again; after `TRIES` in vain the last target is forgotten, and so on. As in the source the upper end of a place is
    excluded, so that the last row and column are in no block, and contexts are cut to the shortest: what is cut off is the lowest. Patches
    in neither list are not looked at. `masked_ids` holds target after target.
    """

    rated = False
    TRIES = 20

    def __init__(
        self,
        ratio: Ratio | float | str | None = None,
        targets: int = 4,
        scale: tuple[float, float] = (0.15, 0.2),
        aspect: tuple[float, float] = (0.75, 1.5),
        context: tuple[float, float] = (0.85, 1.0),
        least: int | None = None,
    ):
        if ratio is not None:
            raise ValueError("multi-block masks have no mask_ratio: the sizes of their blocks say how much is predicted")
        super().__init__(0.5)
        self.targets, self.scale, self.aspect, self.context, self.least = targets, scale, aspect, context, least
        self.first, self.second = 0.5, 0.5

    def prepare(self, progress, u):
        self.first, self.second = math.floor(u * 4096) / 4096, u * 4096 % 1

    def sizes(self, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of this step's targets, and of its context."""

        def sized(scale: tuple[float, float], aspect: tuple[float, float], u: float) -> tuple[int, int]:
            area, ratio = int(math.prod(grid) * (scale[0] + u * (scale[1] - scale[0]))), aspect[0] + u * (aspect[1] - aspect[0])
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            return min(max(h, 1), grid[0] - 1), min(max(w, 1), grid[1] - 1)

        return sized(self.scale, self.aspect, self.first), sized(self.context, (1.0, 1.0), self.second)

    def draws(self, grid):
        return 2 * self.targets + 2 * self.TRIES * (self.targets + 1)

    def __call__(self, grid, noise, scores=None):
        if len(grid) != 2 or min(grid) < 2:
            raise ValueError(f"multi-block masking wants a grid of at least 2x2 patches, not {'x'.join(map(str, grid))}")
        (H, W), (size, wide) = grid, self.sizes(grid)
        least = min(10, H * W // 16) if self.least is None else self.least
        rows, columns = torch.arange(H, device=noise.device)[None, :, None], torch.arange(W, device=noise.device)[None, None, :]

        def block(i: int, h: int, w: int) -> Tensor:  # (B, N) True inside
            top, left = ((noise[:, 2 * i + axis] * (side - long)).long()[:, None, None] for axis, side, long in ((0, H, h), (1, W, w)))
            return ((rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)).flatten(1)

        targets = [block(i, *size) for i in range(self.targets)]
        context, done = torch.zeros_like(targets[0]), torch.zeros(len(noise), dtype=torch.bool, device=noise.device)
        for i in range(self.TRIES * (self.targets + 1)):
            kept = targets[: self.targets - i // self.TRIES]
            found = block(self.targets + i, *wide)
            found = found & ~torch.stack(kept).any(0) if kept else found
            good = found.sum(1) > least
            context = torch.where(done.unsqueeze(1), context, found)  # the last one found, should none be good
            done = done | good
            if bool(done.all()):
                break
        shortest = int(context.sum(1).min())
        visible, *masked = (inside.int().argsort(dim=1, descending=True, stable=True) for inside in (context, *targets))  # inside first, raster order
        return Mask(visible[:, :shortest], torch.cat([ids[:, : size[0] * size[1]] for ids in masked], dim=1), grid)
