"""Mixup, CutMix and random erasing as functions of uniform numbers: nothing random needs saving, and a part of a batch mixes as the whole does.

The laws are timm's (timm.data.mixup in its mode "pair", timm.data.random_erasing in its mode "pixel"), compared with golden/data_timm:
Zhang et al. 2017 (arXiv:1710.09412), Yun et al. 2019 (1905.04899), Zhong et al. 2017 (1708.04896). A picture's partner is its
neighbour in the shuffled batch (timm: the reversed batch), so that a pair stays together where a batch is shared among processes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

POINTS = 4096  # of the table by which a uniform number becomes a Beta-distributed one
TRIES = 10  # rectangles tried until one fits into the picture
AREA, ASPECT = (0.02, 1 / 3), (math.log(0.3), -math.log(0.3))  # of an erased rectangle: share of the picture, log of height over width


def beta_table(a: float) -> Tensor:
    """The quantiles of Beta(a, a) at 0, 1/POINTS, …, 1.

    Below a half, with v = x^a, the density is (1 - x)^(a - 1) in v: smooth for every a, and summed over a fine grid. Above it is the mirror.
    """
    edges = torch.linspace(0, 0.5**a, 8 * POINTS + 1, dtype=torch.float64)
    middle = ((edges[1:] + edges[:-1]) / 2) ** (1 / a)
    total = torch.cat([torch.zeros(1, dtype=torch.float64), ((1 - middle) ** (a - 1)).cumsum(0)])
    wanted = torch.linspace(0, 1, POINTS // 2 + 1, dtype=torch.float64) * total[-1]
    right = torch.searchsorted(total, wanted).clamp(1, len(total) - 1)
    share = (wanted - total[right - 1]) / (total[right] - total[right - 1])
    half = (edges[right - 1] + share * (edges[right] - edges[right - 1])) ** (1 / a)  # quantiles up to the middle one
    return torch.cat([half, 1 - half.flip(0)[1:]]).float()


def drawn(table: Tensor, u: Tensor) -> Tensor:
    """Uniform numbers `u` (any shape) as numbers of the table's law."""
    place = u * POINTS
    left = place.long().clamp(max=POINTS - 1)
    return table[left] + (place - left) * (table[left + 1] - table[left])


def partners(rows: Tensor) -> Tensor:
    """For each of the rows (b,), which follow each other, the position of its neighbour: rows 2i and 2i + 1 are a pair.

    A row whose neighbour is not among them is its own partner.
    """
    position = torch.arange(len(rows), device=rows.device)
    wanted = position + 1 - 2 * (rows % 2)
    return torch.where((wanted >= 0) & (wanted < len(rows)), wanted, position)


def boxes(share: Tensor, centre: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """CutMix's rectangles (b, 4) as top, bottom, left, right, clipped to the picture, and the share (b,) that is left of the picture.

    `share` (b,): what should be left; `centre` (b, 2): uniform numbers.
    """
    sides = torch.tensor([height, width], device=share.device)
    cut = ((1 - share).sqrt().unsqueeze(1) * sides).long()  # (b, 2)
    middle = (centre * sides).long()
    low = (middle - cut // 2).clamp(min=0).minimum(sides)
    high = (middle + (cut + 1) // 2).minimum(sides)
    left = 1 - (high - low).prod(1) / (height * width)
    return torch.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], dim=1), left


def inside(box: Tensor, height: int, width: int) -> Tensor:
    """Where the rectangles (b, 4) lie: (b, 1, height, width) of bool."""
    rows, columns = torch.arange(height, device=box.device), torch.arange(width, device=box.device)
    top, bottom, left, right = box.unbind(1)
    down = (rows >= top[:, None]) & (rows < bottom[:, None])  # (b, height)
    across = (columns >= left[:, None]) & (columns < right[:, None])  # (b, width)
    return (down[:, :, None] & across[:, None, :]).unsqueeze(1)


def mixed(images: Tensor, truth: Tensor, partner: Tensor, share: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each picture (b, C, H, W) and its answer (b, …) with `1 - share` (b,) of its partner's: laid over, or within `box` (b, 4) pasted in.

    A `box` of no area means: laid over.
    """
    over = share.view(-1, 1, 1, 1)
    laid = images * over + images[partner] * (1 - over)
    if box is not None:
        where = inside(box, *images.shape[2:])
        pasted = torch.where(where, images[partner], images)
        laid = torch.where(where.flatten(1).any(1).view(-1, 1, 1, 1), pasted, laid)
    part = share.view(-1, *[1] * (truth.dim() - 1))
    return laid, truth * part + truth[partner] * (1 - part)


class Mixing:
    """Each pair of pictures is laid over each other or cut into each other, one or the other by a fair coin where both are wished."""

    draws = 4  # the coin, the share, the rectangle's centre

    def __init__(self, mixup: float, cutmix: float):
        self.cut = 0.5 if mixup and cutmix else float(bool(cutmix))
        self.tables = [beta_table(a) if a else None for a in (mixup, cutmix)]

    def __call__(self, images: Tensor, truth: Tensor, noise: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures (b, C, H, W) and answers (b, …), mixed. `noise` (B, draws) is that of the whole batch, `rows` (b,) which of it are here."""
        rows = torch.arange(len(images), device=images.device) if rows is None else rows
        u = noise[rows - rows % 2]  # a pair throws the same numbers: those of its first row
        (over, cut), partner = (None if table is None else table.to(images.device) for table in self.tables), partners(rows)
        by_cut = u[:, 0] < self.cut
        share = torch.ones_like(u[:, 1]) if over is None else drawn(over, u[:, 1])
        box = None
        if cut is not None:
            box, left = boxes(drawn(cut, u[:, 1]), u[:, 2:4], *images.shape[2:])
            box = box * by_cut.unsqueeze(1)  # of no area where the pair is laid over
            share = torch.where(by_cut, left, share)
        alone = partner == torch.arange(len(images), device=images.device)
        return mixed(images, truth, partner, torch.where(alone, 1.0, share), box)


class Erasing:
    """With `chance`, a rectangle of a picture becomes standard normal noise, which comes from torch's default generator (the loop seeds it each step)."""

    draws = 1 + 2 * TRIES + 2  # whether; area and aspect of each try; the place

    def __init__(self, chance: float):
        self.chance = chance

    def boxes(self, u: Tensor, height: int, width: int) -> Tensor:
        """The rectangles (b, 4) of uniform numbers (b, draws); of no area where nothing is erased."""
        area = (AREA[0] + (AREA[1] - AREA[0]) * u[:, 1 : 1 + TRIES]) * height * width  # (b, TRIES)
        aspect = (ASPECT[0] + (ASPECT[1] - ASPECT[0]) * u[:, 1 + TRIES : 1 + 2 * TRIES]).exp()
        h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        fits = (h < height) & (w < width)
        first = fits.int().argmax(1, keepdim=True)
        h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
        top, left = (u[:, -2] * (height - h + 1)).long(), (u[:, -1] * (width - w + 1)).long()
        wanted = fits.any(1) & (u[:, 0] < self.chance)
        return torch.stack([top, top + h, left, left + w], dim=1) * wanted.unsqueeze(1)

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        where = inside(self.boxes(u, *images.shape[2:]), *images.shape[2:])
        return torch.where(where, torch.randn_like(images), images)
