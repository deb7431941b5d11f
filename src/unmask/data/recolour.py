"""Colours of a view change: jitter, grey, blur, solarising. The numbers are drawn in the worker, a view by its own dice; the device applies them to a batch.

The laws are those of BYOL (arXiv:2006.07733, appendix B) as DINO, iBOT, DINOv2 and MoCo v3 use them; the arithmetic is torchvision's on values in [0, 1],
where their code rounds to 8 bits after every step. Saturation, hue and grey are for pictures of three channels; others keep their colours.
"""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.settings import Crops, Views

NUMBERS = 11  # of a view: the order of four changes, their four sizes, grey, sigma of the blur, solarise
PLAIN = 4.0  # stands for the order where nothing is jittered
SIGMA = (0.1, 2.0)  # of the blur, in pixels of an input of 224; of smaller inputs less, in proportion: on 32 pixels it would leave only colours
RADIUS = 8  # of a whole blur: four times the largest sigma
THRESHOLD = 128 / 255  # from which values are inverted


class View(NamedTuple):
    """One kind of view of a picture: its name in a batch, how it is cut, and what is its own in how it is recoloured."""

    name: str
    size: tuple[int, int]
    cut: Views
    blur: float
    solarise: float
    soft: float = 1.0  # what sigmas are multiplied by


def views_of(crops: Crops, img_size: tuple[int, int]) -> list[View]:
    """The views of a picture in order: two global ones, then the local ones."""
    kinds = {"global": (img_size, crops.global_scale), "local": (crops.local_size or local_size(img_size), crops.local_scale)}
    cuts = {name: Views(scale, crops.ratio, crops.flip, crops.interpolation) for name, (_, scale) in kinds.items()}
    order = [("global", 0), ("global", 1), *[("local", 2)] * crops.local_crops]
    soft = min(1.0, math.sqrt(math.prod(img_size)) / 224)
    return [View(name, kinds[name][0], cuts[name], crops.blur[i], crops.solarise[i], soft) for name, i in order]


def local_size(img_size: tuple[int, int], patch: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """The size of local crops where none is said: 3/7 of the input, 96 of 224, in whole patches."""
    height, width = (max(1, round(side * 3 / 7 / cell)) * cell for side, cell in zip(img_size, patch))
    return height, width


def draw(crops: Crops, view: View, dice: Random) -> list[float]:
    """The numbers of one view."""
    order, sizes = [PLAIN] * 4, [1.0, 1.0, 1.0, 0.0]
    if dice.random() < crops.jitter:
        order = [0.0, 1.0, 2.0, 3.0]
        dice.shuffle(order)
        *factors, hue = crops.jitter_by
        sizes = [*(dice.uniform(max(0.0, 1 - by), 1 + by) for by in factors), dice.uniform(-hue, hue)]
    grey = dice.random() < crops.grey
    sigma = view.soft * dice.uniform(*SIGMA) if dice.random() < view.blur else 0.0
    return [*order, *sizes, float(grey), sigma, float(dice.random() < view.solarise)]


def recolour(x: Tensor, table: Tensor, kernel: str) -> Tensor:
    """Views (b, C, H, W) in [0, 1], changed by their numbers (b, 11), which are on the CPU: which rows change is known without asking the device."""
    changes = (brightness, contrast, saturation, hue)
    for place in range(4):
        for number, change in enumerate(changes):
            rows = (table[:, place] == number).nonzero()[:, 0]
            if len(rows) and (x.shape[1] == 3 or number < 2):
                x = put(x, rows, lambda part, rows: change(part, column(table, 4 + number, rows, part)))  # noqa: B023 - called at once
    if x.shape[1] == 3:
        x = put(x, table[:, 8].nonzero()[:, 0], lambda part, rows: grey(part).expand_as(part))
    x = put(x, table[:, 9].nonzero()[:, 0], lambda part, rows: blur(part, column(table, 9, rows, part), kernel))
    return put(x, table[:, 10].nonzero()[:, 0], lambda part, rows: torch.where(part >= THRESHOLD, 1 - part, part))


def put(x: Tensor, rows: Tensor, change) -> Tensor:
    """`x` with `change(x[rows], rows)` in these rows."""
    if not len(rows):
        return x
    there = rows.to(x.device, non_blocking=True)
    return x.index_copy_(0, there, change(x.index_select(0, there), rows))


def column(table: Tensor, number: int, rows: Tensor, like: Tensor) -> Tensor:
    """One of the numbers of these rows, (b, 1, 1, 1) on the device."""
    return table[rows, number].to(like.device, non_blocking=True)[:, None, None, None]


def grey(x: Tensor) -> Tensor:
    """(b, 3, H, W) -> (b, 1, H, W), ITU-R 601."""
    red, green, blue = x.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """`share` of x and the rest of another, within [0, 1]."""
    return (share * x + (1 - share) * other).clamp_(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Towards black, or away."""
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Towards the picture's mean grey; of pictures without colours, towards each channel's own mean."""
    return blend(x, (grey(x) if x.shape[1] == 3 else x).mean((2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Towards the picture in grey."""
    return blend(x, grey(x), factor)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Every colour turned by a share of the circle of hues; lightest and darkest channel value of a pixel stay (HSV)."""
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    span = high - low
    red, green, blue = x.split(1, 1)
    size = span.clamp(min=1e-12)
    sixth = torch.where(high == red, (green - blue) / size, torch.where(high == green, 2 + (blue - red) / size, 4 + (red - green) / size))  # (b, 1, H, W)
    place = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1) + sixth + 6 * turn
    place = place % 6
    return high - span * torch.minimum(place, 4 - place).clamp_(0, 1)


def blur(x: Tensor, sigma: Tensor, kernel: str) -> Tensor:
    """A Gaussian of each picture's own sigma (b, 1, 1, 1). Edges as in the sources: repeated (Pillow), mirrored (torchvision), black (SimCLR).

    Nine taps become fewer where a side has less than five pixels, of which a mirror shows no more.
    """
    b, C, H, W = x.shape
    radius, edge = {"whole": (RADIUS, "replicate"), "9 taps": (min(4, H - 1, W - 1), "reflect"), "a tenth": (H // 10 // 2, "constant")}[kernel]
    places = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    taps = torch.exp(-(places**2) / (2 * sigma.view(b, 1) ** 2))
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(C, 0)  # (b·C, taps)
    flat = F.pad(x.reshape(1, b * C, H, W), (radius,) * 4, mode=edge)
    flat = F.conv2d(flat, taps[:, None, None, :], groups=b * C)
    return F.conv2d(flat, taps[:, None, :, None], groups=b * C).view(b, C, H, W)
