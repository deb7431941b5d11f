"""A picture becomes the network's input: a random crop in the worker, flip, conversion and normalisation on the device.

The crop is torchvision's RandomResizedCrop, which MAE uses (facebookresearch/mae, main_pretrain.py): ten tries of an area and an
aspect, then a centred fall-back. Cropped 8-bit pictures are resized by torch's uint8 kernel, which equals Pillow's bicubic up to one
grey level in about .3 % of the values and takes a fraction of its time; evaluation pictures are resized by Pillow itself, as timm does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unmask.data.quarantine import BadSample
from unmask.data.raster import Picture
from unmask.settings import Views, evaluation_share

# JPEG is decoded smaller (a half, a quarter, an eighth) only while the crop stays this many times larger than the input. Against whole
# decoding that changes a view by .3 grey levels on average (99 % under 1.5) and takes a sixth of the time for a 1411-px photograph.
SPARE = 2.0
DRAWS = 10  # windows of which one with more data than nodata is looked for


def crop_box(height: int, width: int, views: Views, dice: Random, aspect: float = 1.0) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop. `aspect`: width over height of the input, to which `views.ratio` is relative."""
    low, high = (bound * aspect for bound in views.ratio)
    for _ in range(10):
        area = height * width * dice.uniform(*views.scale)
        ratio = math.exp(dice.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return dice.randint(0, height - h), dice.randint(0, width - w), h, w
    w, h = width, height
    if width / height < low:
        h = min(height, max(1, round(width / low)))
    elif width / height > high:
        w = min(width, max(1, round(height * high)))
    return (height - h) // 2, (width - w) // 2, h, w


def part(picture: Picture, tile: int | None, dice: Random | None) -> Picture:
    """One frame of several, and of a picture larger than `tile` a window of that side: random ones, without dice the middle ones.

    A window that is mostly nodata, as the corners of a satellite scene are, is drawn again a few times.
    """
    if picture.frames > 1:
        picture = picture.frame(dice.randrange(picture.frames) if dice is not None else picture.frames // 2)
    if tile is None or (picture.height <= tile and picture.width <= tile):
        return picture
    h, w = min(tile, picture.height), min(tile, picture.width)
    down, across = picture.height - h, picture.width - w
    if dice is None:
        return picture.cut(down // 2, across // 2, h, w)
    best = None
    for _ in range(DRAWS):
        window = picture.cut(dice.randint(0, down), dice.randint(0, across), h, w)
        if best is None or window.known > best.known:
            best = window
        if best.known >= 0.5:
            break
    assert best is not None
    return best


def random_view(picture: Picture, size: tuple[int, int], views: Views, dice: Random, in_chans: int, eight_bit: bool) -> Tensor:
    """One random crop, resized: (C, H, W) uint8, or float32 in stored units where the data has more than 8 bits. BadSample."""
    return random_views(picture, [(size, views, dice)], in_chans, eight_bit)[0]


def random_views(picture: Picture, wanted: Sequence[tuple[tuple[int, int], Views, Random]], in_chans: int, eight_bit: bool) -> list[Tensor]:
    """Several random crops of a picture that is decoded once, each like `random_view`; `wanted`: the size, the law and the dice of each. BadSample."""
    boxes = [crop_box(picture.height, picture.width, views, dice, width / height) for (height, width), views, dice in wanted]
    pixels = picture.pixels(min(min(h / size[0], w / size[1]) for (_, _, h, w), (size, _, _) in zip(boxes, wanted)) / SPARE)  # (H', W', C), perhaps smaller
    down, across = pixels.shape[0] / picture.height, pixels.shape[1] / picture.width
    found = []
    for (top, left, h, w), (size, views, _) in zip(boxes, wanted):
        if (down, across) != (1, 1):
            top, left, h, w = int(top * down), int(left * across), max(1, round(h * down)), max(1, round(w * across))
        crop = as_stored(pixels[top : top + h, left : left + w], picture.eight_bit, eight_bit)
        found.append(channels(resized(crop, size, views.interpolation), in_chans))
    return found


def as_stored(pixels: np.ndarray, is_eight_bit: bool, wants_eight_bit: bool) -> np.ndarray:
    """uint8 for a run on 8-bit pictures, float32 in stored units for the others. BadSample where one cannot become the other.

    16-bit pictures among 8-bit ones are scaled from the full range, as the PNG standard says; the way back would invent a scale.
    """
    if wants_eight_bit and not is_eight_bit:
        if pixels.dtype != np.uint16:
            raise BadSample(f"a {pixels.dtype} picture among 8-bit ones")
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if is_eight_bit and not wants_eight_bit:
        raise BadSample("an 8-bit picture among pictures of more bits")
    return pixels if wants_eight_bit else pixels.astype(np.float32)


def resized(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> Tensor:
    """(H, W, C) -> (C, *size), antialiased, in the same dtype; the result is channels-last in memory."""
    pixels = np.require(pixels, requirements=["C", "W"])  # a mapped file is read-only, which torch has no word for
    x = torch.from_numpy(pixels).view(1, *pixels.shape).permute(0, 3, 1, 2)  # (1, C, H, W), channels last in memory
    if x.shape[-2:] != size:
        x = F.interpolate(x, size=size, mode=interpolation, antialias=True)
    return x[0]


def channels(x: Tensor, in_chans: int) -> Tensor:
    """(C, H, W) with the run's channels: grey becomes colour, 8-bit colour becomes grey; anything else that differs is a BadSample."""
    found = x.shape[0]
    if found == in_chans:
        return x
    if (found, in_chans) == (1, 3):
        return x.expand(3, -1, -1)
    if x.dtype == torch.uint8 and (found, in_chans) == (3, 1):  # ITU-R 601, in Pillow's whole numbers
        weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)[:, None, None]
        return ((x.to(torch.int32) * weights).sum(0, keepdim=True) + 0x8000 >> 16).to(torch.uint8)
    raise BadSample(f"{found} band{'s' if found > 1 else ''} where the run has {in_chans}")


def centre_view(picture: Picture, size: tuple[int, int], in_chans: int, eight_bit: bool, share: float | None = None) -> Tensor:
    """The evaluation picture: resized to cover `size / share`, then its centre: (C, H, W) like `random_view`. BadSample.

    `share` not given: .875 up to 224 px and 1 above (MAE's protocol); a picture that already has the size is taken as it is.
    """
    height, width = size
    shrink = min(picture.height / height, picture.width / width) / SPARE if picture.oversized else 1.0  # a JPEG that large only fits smaller
    pixels = as_stored(picture.pixels(shrink), picture.eight_bit, eight_bit)  # (H', W', C)
    if share is None:
        exact = pixels.shape[:2] == (height, width)
        share = 1.0 if exact else evaluation_share(size)
    h, w = _covering(pixels.shape[0], pixels.shape[1], int(height / share), int(width / share))
    top, left = round((h - height) / 2), round((w - width) / 2)
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3) and pixels.shape[:2] != (h, w):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).resize((w, h), Image.Resampling.BICUBIC)
        pixels = np.array(image).reshape(h, w, -1)
        x = torch.from_numpy(pixels).permute(2, 0, 1)
    else:
        x = resized(pixels, (h, w), "bicubic")
    return channels(x[:, top : top + height, left : left + width], in_chans)


def _covering(height: int, width: int, least_height: int, least_width: int) -> tuple[int, int]:
    """The smallest size of the same shape that covers another, whole numbers as torchvision's Resize makes them."""
    if height * least_width >= width * least_height:  # the width decides
        return max(least_height, least_width * height // width), least_width
    return least_height, max(least_width, least_height * width // height)


class Finish:
    """What the device does: flip, to float, scale to [0, 1], normalise. One fused multiply and add for 8-bit pictures."""

    def __init__(self, low: tuple[float, ...], high: tuple[float, ...], mean: tuple[float, ...], std: tuple[float, ...], eight_bit: bool):
        self.eight_bit = eight_bit
        self._low, self._high, self._mean, self._std = (torch.tensor(numbers, dtype=torch.float32)[:, None, None] for numbers in (low, high, mean, std))
        self._places: dict[torch.device, tuple[Tensor, ...]] = {}

    def _constants(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._places:
            span = (self._high - self._low) * self._std
            constants = (self._low, self._high, 1 / span, -(self._low / span + self._mean / self._std), self._high - self._low)
            self._places[device] = tuple(constant.to(device) for constant in constants)
        return self._places[device]

    def __call__(self, images: Tensor, flip: Tensor | None, device: torch.device | str, recolour: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(b, C, H, W) uint8 or float32 -> the same, normalised float32 on the device, contiguous. `recolour`: what becomes of values in [0, 1] before."""
        device = torch.device(device)
        low, high, factor, offset, between = self._constants(device)
        x = images.to(device, non_blocking=True)
        if flip is not None and device.type != "cpu":
            x = torch.where(flip.to(device, non_blocking=True)[:, None, None, None], x.flip(-1), x)
        x = torch.empty(x.shape, device=device).copy_(x)  # float32, channels first
        if flip is not None and device.type == "cpu":
            for row in flip.nonzero()[:, 0].tolist():  # one picture at a time stays in the cache: a fifth of the time of `where`
                x[row] = x[row].flip(-1)
        if not self.eight_bit:
            x = torch.minimum(torch.maximum(x, low, out=x), high, out=x)
        if recolour is not None:
            x = recolour(x.sub_(low).div_(between)).mul_(between).add_(low)
        return x.mul_(factor).add_(offset)  # in place: fresh memory costs ten times the arithmetic
