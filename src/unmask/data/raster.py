"""What a picture is before it is decoded, and pictures that are arrays: any number of bands, bits and frames.

Places that a file marks as missing (nodata of a GeoTIFF) are never trained on as values: they take the mean of their band
in that picture, and a picture with a band that is missing altogether is a bad sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

from unmask.data.quarantine import BadSample

LIMIT = 178_956_970  # pixels: where Pillow refuses a picture as a decompression bomb (512 MiB as RGB)
Window = tuple[float, float] | Literal["file"] | None  # grey values from black to white: (centre, width), each file's own, or as they are


class Picture(ABC):
    """One picture, opened and not yet decoded: its size is known before its pixels are."""

    height: int
    width: int
    bands: int  # 1 grey, 3 colour, or what the file holds
    eight_bit: bool
    depth: str  # of a number in it, for a person: "8-bit", "uint16", "12-bit DICOM"
    frames: int = 1  # of a volume or a film, of which one is looked at
    patient: str | None = None  # the same for pictures of one person, and nothing else
    own_window: tuple[float, float] | None = None  # centre and width of the grey values that the file itself says to show

    @abstractmethod
    def stored(self, shrink: float = 1.0) -> tuple[np.ndarray, np.ndarray | None]:
        """(H, W, C) in the stored dtype, and (H, W, C) bool where it is data (None: everywhere).

        Up to `shrink` times smaller each way where the format decodes that faster. BadSample.
        """

    @abstractmethod
    def cut(self, top: int, left: int, height: int, width: int) -> Picture:
        """That part, without decoding the rest where the format allows it."""

    def pixels(self, shrink: float = 1.0) -> np.ndarray:
        """`stored`, with missing places filled. BadSample."""
        return filled(*self.stored(shrink))

    def frame(self, number: int) -> Picture:
        """One of several frames."""
        return self

    def under(self, window: Window) -> Picture:
        """The picture as a format wants its grey values: with "file" those deeper than 8 bits come out within [0, 1], by the file's own window."""
        if window == "file" and not self.eight_bit:
            raise BadSample(f"{self.depth} without a window of its own, among DICOM files that hold one: give --window measured")
        return self

    @property
    def known(self) -> float:
        """The share of the pixels that is data."""
        return 1.0

    @property
    def oversized(self) -> bool:
        """Beyond what is decoded in one piece."""
        return oversized(self.height, self.width, self.bands, self.eight_bit)

    def refuse_oversized(self) -> None:
        if self.oversized:
            size = f"{self.width} x {self.height} pixels, {self.bands} band{'s' if self.bands > 1 else ''}"
            raise BadSample(f"too large to decode in one piece ({size}): give --tile 1024 to read it by windows of that side")


def oversized(height: int, width: int, bands: int, eight_bit: bool) -> bool:
    """Whether an array is more than Pillow's limit in RGB."""
    return height * width * max(bands * (1 if eight_bit else 2), 3) > 3 * LIMIT


class Bands(Picture):
    """An array (H, W) or (H, W, C); `valid`: an array of the same shape, where it is data; `mapped`: it lies on the disk, not in memory."""

    def __init__(self, array: np.ndarray, valid: np.ndarray | None = None, depth: str | None = None, mapped: bool = False):
        array = np.asarray(array)
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        if array.dtype.kind not in "uif":
            raise BadSample(f"numbers of kind {array.dtype} are no pixels")
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim != 3 or 0 in array.shape:
            raise BadSample(f"an array of shape {tuple(array.shape)} is no picture")
        self.array, self._valid, self._mapped = array, valid, mapped  # (H, W, C)
        self.height, self.width, self.bands = array.shape
        self.eight_bit = array.dtype == np.uint8
        self.depth = depth or ("8-bit" if self.eight_bit else str(array.dtype))

    def stored(self, shrink: float = 1.0) -> tuple[np.ndarray, np.ndarray | None]:
        if self._mapped:
            self.refuse_oversized()
        return self.array, self._valid

    def cut(self, top: int, left: int, height: int, width: int) -> Picture:
        here = np.s_[top : top + height, left : left + width]
        return Bands(self.array[here], None if self._valid is None else self._valid[here], self.depth)

    @property
    def known(self) -> float:
        return 1.0 if self._valid is None else float(self._valid.mean())


def filled(array: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """(H, W, C) with the mean of its band at every place that is no data. BadSample where a band has none, or holds NaN."""
    if valid is None or valid.all():
        return finite(array)
    empty = np.flatnonzero(~valid.any(axis=(0, 1)))
    if len(empty):
        which = "" if len(empty) == array.shape[2] else f" in band {empty[0] + 1} of {array.shape[2]}"
        raise BadSample(f"nothing but nodata{which}")
    array = array.copy()
    for band in range(array.shape[2]):
        here = valid[..., band]
        mean = array[..., band].mean(where=here, dtype=np.float64)
        array[..., band][~here] = mean if array.dtype.kind == "f" else round(mean)
    return finite(array)


def finite(array: np.ndarray) -> np.ndarray:
    """The array; BadSample if it holds NaN or infinity (one place would spoil the whole batch)."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        share = 1 - np.isfinite(array).mean()
        raise BadSample(f"NaN or infinite values ({share:.2%} of the pixels)")
    return array
