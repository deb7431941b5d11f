"""What the numbers in the pictures mean: channels, range, mean and deviation, measured once on a keyed random subset.

8-bit pictures span 0–255. Everything else is scaled by measured percentiles (.1 and 99.9 of each channel), for a 16-bit file
may use 12 bits or reflectance × 10,000, and a few extreme pixels must not set the scale. Mean and deviation are those of the scaled values.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from unmask import seeds
from unmask.data.quarantine import BadSample, NeedsExtra
from unmask.data.source import Source
from unmask.data.views import tiled
from unmask.errors import Refused

SAMPLES = 2000  # pictures of the subset: the standard error of a mean is then about .5 % of the range
PIXELS = 300_000_000  # decoded at most, so that a folder of large photographs takes seconds (64 pictures are always read)
FEWEST = 64
VALUES = 1024  # pixels kept of each picture, in a fixed pattern
SHORT = 160  # JPEG is decoded down to this shorter side at the least: the statistics are those of pictures, not of grain
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Format:
    """How stored numbers become the network's: x = ((stored - low) / (high - low), cut to [0, 1], - mean) / std, per channel.

    `size`: median height and width of the pictures (None: not measured); `said`: one line for each decision, for a person.
    """

    in_chans: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    said: tuple[str, ...] = ()
    size: tuple[int, int] | None = None

    def __post_init__(self):
        for name in ("low", "high", "mean", "std"):
            numbers = tuple(float(number) for number in getattr(self, name))
            if len(numbers) != self.in_chans:
                raise ValueError(f"{name} has {len(numbers)} numbers for {self.in_chans} channels")
            object.__setattr__(self, name, numbers)
        object.__setattr__(self, "said", tuple(self.said))
        object.__setattr__(self, "size", tuple(self.size) if self.size is not None else None)

    @property
    def eight_bit(self) -> bool:
        """Whether this is the range of 8-bit pictures (measured ranges never are exactly this)."""
        return set(self.low) == {0.0} and set(self.high) == {255.0}

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class _Look:
    """What was seen of one picture."""

    height: int
    width: int
    bands: int
    eight_bit: bool
    dtype: str
    values: np.ndarray  # (VALUES or fewer, C), stored dtype
    moments: np.ndarray | None  # (2, C): mean and mean square of all pixels of an 8-bit picture, in [0, 1]


def survey(
    source: Source, in_chans: int | None = None, normalize: str = "measured", seed: int = 0, max_bad_share: float = 0.05, tile: int | None = None
) -> Format:
    """Measure DATA once. Bad samples are skipped and counted; Refused only where none can be used, or an extra is missing."""
    looks, bad = _look_around(source, seed, tile)
    said = [f"{len(bad):,} of {len(looks) + len(bad):,} samples looked at cannot be read, the first: {bad[0]}"] if bad else []
    if bad and len(bad) > max_bad_share * (len(looks) + len(bad)):
        said[0] += f" (the limit is max_bad_share {max_bad_share:g})"
    if not looks:
        raise Refused(f"none of the {len(bad):,} samples looked at can be read; the first: {bad[0]}")
    size = int(np.median([look.height for look in looks])), int(np.median([look.width for look in looks]))
    chosen, eight_bit, line = _kind(looks, in_chans)
    said.append(line)
    fitting = [look for look in looks if look.eight_bit == eight_bit and (look.bands == chosen or (eight_bit and {look.bands, chosen} == {1, 3}))]
    if normalize == "imagenet" and not (eight_bit and chosen == 3):
        raise Refused(f"--normalize imagenet is for 8-bit colour pictures; these have {chosen} channel(s) of {'8' if eight_bit else 'more'} bits")
    if eight_bit:
        low, high = (0.0,) * chosen, (255.0,) * chosen
        mean, std = IMAGENET if normalize == "imagenet" else _moments([_matched(look.moments, look.values, chosen) for look in fitting])
    else:
        low, high, mean, std, line = _scaled(fitting)
        said.append(line)
    flat = [channel for channel, deviation in enumerate(std) if deviation < 1e-4]
    if flat:
        said.append(f"channel{'s' if len(flat) > 1 else ''} {', '.join(map(str, flat))} hold one constant value: divided by 1")
        std = tuple(1.0 if channel in flat else deviation for channel, deviation in enumerate(std))
    origin = "ImageNet's" if normalize == "imagenet" else f"measured on {len(fitting):,} pictures"
    said.append(f"mean {_short(mean)}, std {_short(std)} ({origin})")
    return Format(chosen, low, high, mean, std, tuple(said), size)


def _look_around(source: Source, seed: int, tile: int | None) -> tuple[list[_Look], list[str]]:
    """Looks at a keyed random subset, in a fixed order whatever the threads do, and the bad ones' names with reasons."""
    order = np.random.Generator(np.random.PCG64(seeds.key(seed, "survey"))).permutation(len(source))[:SAMPLES]
    looks: list[_Look] = []
    bad: list[str] = []
    decoded = 0
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(order), FEWEST):  # the pool works through blocks, so that the end depends on pixels alone
            for found in pool.map(lambda index: _look(source, int(index), seed, tile), order[start : start + FEWEST]):
                if isinstance(found, _Look):
                    looks.append(found)
                    decoded += found.height * found.width
                else:
                    bad.append(found)
            if decoded > PIXELS and len(looks) >= FEWEST:
                break
    return looks, bad


def _look(source: Source, index: int, seed: int, tile: int | None) -> _Look | str:
    try:
        picture = source.picture(index)
        height, width = picture.height, picture.width
        picture = tiled(picture, tile, seeds.dice(seed, "survey tile", index))
        pixels = picture.pixels(min(height, width) / SHORT)  # (H', W', C)
    except NeedsExtra as error:
        raise Refused(f"{source.name(index)}: {error}") from None
    except BadSample as error:
        return f"{source.name(index)}: {error}"
    flat = pixels.reshape(-1, pixels.shape[2])
    step = max(1, len(flat) // VALUES) | 1  # odd, so that the pattern does not fall into one column
    moments = None
    if pixels.dtype == np.uint8:
        counts = np.stack([np.bincount(flat[:, band], minlength=256) for band in range(flat.shape[1])])  # (C, 256)
        level = np.arange(256) / 255
        moments = np.stack([counts @ level, counts @ level**2]) / len(flat)  # (2, C)
    return _Look(height, width, pixels.shape[2], picture.eight_bit, str(pixels.dtype), flat[::step][:VALUES].copy(), moments)


def _kind(looks: list[_Look], in_chans: int | None) -> tuple[int, bool, str]:
    """Channels and depth of the run: the majority's, `in_chans` before it; and the line that says so."""
    count = Counter((look.bands, look.eight_bit) for look in looks)
    if in_chans is None:
        (chosen, eight_bit), many = count.most_common(1)[0]
    else:
        usable = {kind: many for kind, many in count.items() if kind[0] == in_chans or (kind[1] and {kind[0], in_chans} == {1, 3})}
        if not usable:
            there = ", ".join(f"{many:,} of {bands} band(s)" for (bands, _), many in count.most_common(3))
            raise Refused(f"no picture can be read with in_chans {in_chans}: there are {there}")
        chosen, eight_bit = in_chans, max(usable, key=lambda kind: usable[kind])[1]
        many = count[chosen, eight_bit]
    depth = "8-bit" if eight_bit else Counter(look.dtype for look in looks if not look.eight_bit).most_common(1)[0][0]
    line = f"{chosen} channel{'s' if chosen > 1 else ''}, {depth}"
    if many < len(looks):
        swapped = {1: 3, 3: 1}.get(chosen, 0)
        converted = count[swapped, eight_bit] if eight_bit else 0
        line += f" ({many:,} of {len(looks):,} pictures looked at"
        line += f"; {converted:,} of {swapped} channel{'s' if swapped > 1 else ''} are converted" if converted else ""
        line += f"; {left:,} of another kind" if (left := len(looks) - many - converted) else ""
        line += ")"
    return chosen, eight_bit, line


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


def _scaled(looks: list[_Look]) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...], str]:
    """Range from percentiles, then mean and deviation of the scaled values; float pictures within [0, 1] keep their scale."""
    values = np.concatenate([look.values for look in looks]).astype(np.float64)  # (pixels, C)
    if all(look.dtype.startswith("float") for look in looks) and values.min() >= 0 and values.max() <= 1:
        low, high = np.zeros(values.shape[1]), np.ones(values.shape[1])
        line = "the values lie in [0, 1]: kept as they are"
    else:
        low, high = (np.array(_rounded(row)) for row in np.percentile(values, [0.1, 99.9], axis=0))
        high = np.where(high > low, high, low + 1)
        if not low.any() and (high == 255).all():
            high = high + 1  # exactly 0–255 would mean 8-bit pictures
        line = f"more than 8 bits: scaled by the .1 and 99.9 percentiles, low {_short(low)}, high {_short(high)}"
    scaled = ((values - low) / (high - low)).clip(0, 1)
    return tuple(low), tuple(high), _rounded(scaled.mean(0)), _rounded(scaled.std(0)), line


def _rounded(numbers: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{number:.6g}") for number in numbers)


def _short(numbers: Iterable[float]) -> str:
    numbers = list(numbers)
    shown = " ".join(f"{number:.3g}" for number in numbers[:6])
    return shown + (f" … ({len(numbers)} channels)" if len(numbers) > 6 else "")
