"""What the numbers in the pictures mean: channels, range, mean and deviation, measured once on a keyed random subset.

8-bit pictures span 0–255. Everything else is scaled by measured percentiles (.1 and 99.9 of each channel), for a 16-bit file
may use 12 bits or reflectance × 10,000, and a few extreme pixels must not set the scale; a window of grey values, which DICOM files hold
or a person gives, goes before that. Mean and deviation are those of the scaled values. Places without data are not measured.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from unmask import seeds
from unmask.data.format import Format
from unmask.data.quarantine import BadSample, NeedsExtra
from unmask.data.raster import Window, filled
from unmask.data.source import Source
from unmask.data.views import part
from unmask.errors import Refused
from unmask.settings import WINDOWS

__all__ = ["Format", "survey"]

SAMPLES = 2000  # pictures of the subset: the standard error of a mean is then about .5 % of the range
PIXELS = 300_000_000  # decoded at most, so that a folder of large photographs takes seconds (64 pictures are always read)
FEWEST = 64
VALUES = 1024  # pixels kept of each picture, in a fixed pattern: more where there are few pictures,
ALL = 1 << 20  # up to this many altogether
HEADERS = 256  # pictures whose headers tell whether files hold windows of grey values
SHORT = 160  # JPEG is decoded down to this shorter side at the least: the statistics are those of pictures, not of grain
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class _Look:
    """What was seen of one picture, or of a frame or window of it."""

    height: int
    width: int
    bands: int
    eight_bit: bool
    depth: str
    values: np.ndarray  # (VALUES or fewer, C), stored dtype
    moments: np.ndarray | None  # (2, C): mean and mean square of all pixels of an 8-bit picture, in [0, 1]
    missing: float  # share of nodata


def survey(
    source: Source,
    in_chans: int | None = None,
    normalize: str = "measured",
    seed: int = 0,
    max_bad_share: float = 0.05,
    tile: int | None = None,
    window: Any = None,
) -> Format:
    """Measure DATA once. Bad samples are skipped and counted; Refused only where none can be used, or an extra is missing.

    `window`: (centre, width), a name of `WINDOWS`, "file", "measured", or None: the files' own where most hold one.
    """
    order = np.random.Generator(np.random.PCG64(seeds.key(seed, "survey"))).permutation(len(source))[:SAMPLES]
    window, seen = _window(source, order, window)
    looks, bad = _look_around(source, order, seed, tile, window)
    said = [f"{len(bad):,} of {len(looks) + len(bad):,} samples looked at cannot be read, the first: {bad[0]}"] if bad else []
    if bad and len(bad) > max_bad_share * (len(looks) + len(bad)):
        said[0] += f" (the limit is max_bad_share {max_bad_share:g})"
    if not looks:
        raise Refused(f"none of the {len(bad):,} samples looked at can be read; the first: {bad[0]}")
    size = int(np.median([look.height for look in looks])), int(np.median([look.width for look in looks]))
    chosen, eight_bit, line = _kind(looks, in_chans)
    said += [line, *seen]
    fitting = [look for look in looks if look.eight_bit == eight_bit and _becomes(look.bands, chosen, eight_bit)]
    if normalize == "imagenet" and not (eight_bit and chosen == 3):
        raise Refused(f"--normalize imagenet is for 8-bit colour pictures; these have {chosen} channel(s) of {'8' if eight_bit else 'more'} bits")
    if eight_bit and isinstance(window, tuple):
        raise Refused("--window is for pictures of more than 8 bits; these have 8")
    if eight_bit:
        low, high = (0.0,) * chosen, (255.0,) * chosen
        mean, std = IMAGENET if normalize == "imagenet" else _moments([_matched(look.moments, look.values, chosen) for look in fitting])
    else:
        values = np.concatenate([np.broadcast_to(look.values, (len(look.values), chosen)) for look in fitting]).astype(np.float64)  # (pixels, C)
        low, high, line = _range(values, window, all(look.values.dtype.kind == "f" for look in fitting))
        mean, std = _scaled(values, low, high)
        said.append(line)
    missing = float(np.mean([look.missing for look in fitting]))
    if missing:
        said.append(f"{missing:.1%} of the values are nodata: not measured, and filled with the mean of their band in each picture")
    flat = [channel for channel, deviation in enumerate(std) if deviation < 1e-4]
    if flat:
        said.append(f"channel{'s' if len(flat) > 1 else ''} {', '.join(map(str, flat))} hold one constant value: divided by 1")
        std = tuple(1.0 if channel in flat else deviation for channel, deviation in enumerate(std))
    origin = "ImageNet's" if normalize == "imagenet" else f"measured on {len(fitting):,} pictures"
    said.append(f"mean {_short(mean)}, std {_short(std)} ({origin})")
    return Format(chosen, low, high, mean, std, tuple(said), size, window)


def _window(source: Source, order: np.ndarray, asked: Any) -> tuple[Window, list[str]]:
    """What pictures are to be read under, and the line that says why: from the headers of the first few of `order`."""
    if asked == "measured":
        return None, []
    asked = WINDOWS.get(asked, asked) if isinstance(asked, str) else asked
    if asked is not None and asked != "file":
        return (float(asked[0]), float(asked[1])), []
    own, without = Counter[tuple[float, float]](), 0
    for index in order[:HEADERS]:
        try:
            picture = source.picture(int(index))
        except BadSample:
            continue
        if picture.own_window is not None:
            own[picture.own_window] += 1
        elif not picture.eight_bit:
            without += 1
    many, all = own.total(), own.total() + without
    if asked == "file" and not own:
        raise Refused(f"--window file: none of the {len(order[:HEADERS]):,} pictures looked at holds a window of its own")
    if not own:
        return None, []
    if asked is None and many < without:
        return None, [f"only {many:,} of {all:,} pictures hold a window of grey values: it is not used"]
    (centre, width), most = own.most_common(1)[0]
    others = f"; {len(own):,} different, {most:,} of them" if len(own) > 1 else ":"
    rest = f", the other {without:,} by their own .1 and 99.9 percentiles" if without else ""
    return "file", [f"grey values by each file's own window ({many:,} of {all:,} hold one{others} centre {centre:g} width {width:g}){rest}; --window sets one for all"]


def _look_around(source: Source, order: np.ndarray, seed: int, tile: int | None, window: Window) -> tuple[list[_Look], list[str]]:
    """Looks at a keyed random subset, in a fixed order whatever the threads do, and the bad ones' names with reasons.

    Of few pictures that have several frames or windows, several are looked at.
    """
    turns = max(1, FEWEST // len(order))
    places = [(int(index), turn) for turn in range(turns) for index in order]
    keep = max(VALUES, ALL // len(places))
    looks: list[_Look] = []
    bad: list[str] = []
    decoded = 0
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(places), FEWEST):  # the pool works through blocks, so that the end depends on pixels alone
            for found in pool.map(lambda place: _look(source, place[0], place[1], seed, tile, window, keep), places[start : start + FEWEST]):
                if isinstance(found, _Look):
                    looks.append(found)
                    decoded += found.height * found.width
                elif found is not None:
                    bad.append(found)
            if decoded > PIXELS and len(looks) >= FEWEST:
                break
    return looks, bad


def _look(source: Source, index: int, turn: int, seed: int, tile: int | None, window: Window, keep: int) -> _Look | str | None:
    """What is seen of a sample; after the first turn None where there is nothing else to see of it."""
    try:
        picture = source.picture(index)
        if turn and picture.frames == 1 and (tile is None or max(picture.height, picture.width) <= tile):
            return None
        picture = part(picture.under(window), tile, seeds.dice(seed, "survey tile", index, *((turn,) if turn else ())))
        height, width = picture.height, picture.width
        pixels, valid = picture.stored(min(height, width) / SHORT)  # (H', W', C)
        pixels = filled(pixels, valid)
    except NeedsExtra as error:
        raise Refused(f"{source.name(index)}: {error}") from None
    except BadSample as error:
        return None if turn else f"{source.name(index)}: {error}"
    flat = pixels.reshape(-1, pixels.shape[2])
    here = None if valid is None else valid.reshape(flat.shape).all(axis=1)
    if here is not None and here.any():
        flat = flat[here]
    step = max(1, len(flat) // keep) | 1  # odd, so that the pattern does not fall into one column
    moments = None
    if pixels.dtype == np.uint8:
        counts = np.stack([np.bincount(flat[:, band], minlength=256) for band in range(flat.shape[1])])  # (C, 256)
        level = np.arange(256) / 255
        moments = np.stack([counts @ level, counts @ level**2]) / len(flat)  # (2, C)
    missing = 0.0 if valid is None else 1 - float(valid.mean())
    return _Look(height, width, pixels.shape[2], picture.eight_bit, picture.depth, flat[::step][:keep].copy(), moments, missing)


def _kind(looks: list[_Look], in_chans: int | None) -> tuple[int, bool, str]:
    """Channels and depth of the run: the majority's, `in_chans` before it; and the line that says so."""
    count = Counter((look.bands, look.eight_bit) for look in looks)
    if in_chans is None:
        (chosen, eight_bit), many = count.most_common(1)[0]
    else:
        usable = {kind: many for kind, many in count.items() if _becomes(kind[0], in_chans, kind[1])}
        if not usable:
            there = ", ".join(f"{many:,} of {bands} band(s)" for (bands, _), many in count.most_common(3))
            raise Refused(f"no picture can be read with in_chans {in_chans}: there are {there}")
        chosen, eight_bit = in_chans, max(usable, key=lambda kind: usable[kind])[1]
        many = count[chosen, eight_bit]
    depth = "8-bit" if eight_bit else Counter(look.depth for look in looks if not look.eight_bit).most_common(1)[0][0]
    line = f"{chosen} channel{'s' if chosen > 1 else ''}, {depth}"
    if many < len(looks):
        swapped = {1: 3, 3: 1}.get(chosen, 0)
        converted = count[swapped, eight_bit] if _becomes(swapped, chosen, eight_bit) else 0
        line += f" ({many:,} of {len(looks):,} pictures looked at"
        line += f"; {converted:,} of {swapped} channel{'s' if swapped > 1 else ''} are converted" if converted else ""
        line += f"; {left:,} of another kind" if (left := len(looks) - many - converted) else ""
        line += ")"
    return chosen, eight_bit, line


def _becomes(bands: int, chosen: int, eight_bit: bool) -> bool:
    """Whether pictures of so many bands are used in a run of `chosen` channels: as they are, grey as colour, or 8-bit colour as grey."""
    return bands == chosen or (bands, chosen) == (1, 3) or (eight_bit and (bands, chosen) == (3, 1))


def _matched(moments: np.ndarray | None, values: np.ndarray, chosen: int) -> np.ndarray:
    """(2, chosen): grey is three times the same in colour; colour is weighed to grey (on the sampled pixels)."""
    assert moments is not None  # of 8-bit pictures there always are some
    if moments.shape[1] == chosen:
        return moments
    if chosen == 3:
        return np.repeat(moments, 3, axis=1)
    grey = values @ np.array([0.299, 0.587, 0.114]) / 255
    return np.array([[grey.mean()], [(grey**2).mean()]])


def _moments(each: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation over pictures of equal weight: a crop is resized to one size, whatever it came from."""
    mean, square = np.mean(list(each), axis=0)  # (C,), (C,)
    return _rounded(mean), _rounded(np.sqrt(np.maximum(square - mean**2, 0)))


def _range(values: np.ndarray, window: Window, floats: bool) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Which stored numbers (pixels, C) become 0 and 1, and the line that says so; float pictures within [0, 1] keep their scale."""
    channels = values.shape[1]
    if window == "file":
        return (0.0,) * channels, (1.0,) * channels, "more than 8 bits: black and white are those of the windows"
    if isinstance(window, tuple):
        low, high = np.full(channels, window[0] - window[1] / 2), np.full(channels, window[0] + window[1] / 2)
        line = f"more than 8 bits: black is {low[0]:g} and white {high[0]:g} (--window: centre {window[0]:g}, width {window[1]:g})"
    elif floats and values.min() >= 0 and values.max() <= 1:
        low, high = np.zeros(channels), np.ones(channels)
        line = "the values lie in [0, 1]: kept as they are"
    else:
        low, high = (np.array(_rounded(row)) for row in np.percentile(values, [0.1, 99.9], axis=0))
        high = np.where(high > low, high, low + 1)
        line = f"more than 8 bits: scaled by the .1 and 99.9 percentiles, low {_short(low)}, high {_short(high)}"
    if not low.any() and (high == 255).all():
        high = high + 1  # exactly 0–255 would mean 8-bit pictures
    return tuple(low.tolist()), tuple(high.tolist()), line


def _scaled(values: np.ndarray, low: tuple[float, ...], high: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the scaled values (pixels, C)."""
    bottom, top = np.array(low), np.array(high)
    scaled = ((values - bottom) / (top - bottom)).clip(0, 1)
    return _rounded(scaled.mean(0)), _rounded(scaled.std(0))


def _rounded(numbers: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{number:.6g}") for number in numbers)


def _short(numbers: Iterable[float]) -> str:
    numbers = list(numbers)
    shown = " ".join(f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}" for number in numbers[:6])
    return shown + (f" … ({len(numbers)} channels)" if len(numbers) > 6 else "")
