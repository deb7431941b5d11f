"""Pictures of any number of bands and bits: arrays as they are, and TIFF through tifffile.

Pillow opens a TIFF of four bands with an unspecified extra sample as RGB and one of thirteen not at all.
So whatever is more than an ordinary 8-bit picture goes through tifffile (extra [geo]), where every band is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO

import numpy as np

from unmask.data.quarantine import BadSample, NeedsExtra

LIMIT = 178_956_970  # pixels: where Pillow refuses a picture as a decompression bomb (512 MiB as RGB)
GEO = 'this TIFF has more than Pillow reads (many bands, more bits, or several pages): pip install "unmask[geo]"'


class Picture(ABC):
    """One picture, opened and not yet decoded: its size is known before its pixels are."""

    height: int
    width: int
    bands: int  # 1 grey, 3 colour, or what the file holds
    eight_bit: bool

    @abstractmethod
    def pixels(self, shrink: float = 1.0) -> np.ndarray:
        """(H, W, C) in the stored dtype; up to `shrink` times smaller each way where the format decodes that faster. BadSample."""

    @abstractmethod
    def window(self, top: int, left: int, height: int, width: int) -> Picture:
        """That part, without decoding the rest where the format allows it."""

    @property
    def oversized(self) -> bool:
        """Beyond what is decoded in one piece."""
        bytes_each = self.bands * (1 if self.eight_bit else 2)
        return self.height * self.width * max(bytes_each, 3) > 3 * LIMIT

    def refuse_oversized(self) -> None:
        if self.oversized:
            size = f"{self.width} x {self.height} pixels, {self.bands} band{'s' if self.bands > 1 else ''}"
            raise BadSample(f"too large to decode in one piece ({size}): give --tile 1024 to read it by random windows of that side")


class Bands(Picture):
    """An array (H, W), (H, W, C) or, where the first side is the smallest by far, (C, H, W)."""

    def __init__(self, array: np.ndarray):
        array = np.asarray(array)
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        if array.dtype.kind not in "uif":
            raise BadSample(f"numbers of kind {array.dtype} are no pixels")
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim != 3 or 0 in array.shape:
            raise BadSample(f"an array of shape {tuple(array.shape)} is no picture")
        self.array = array  # (H, W, C)
        self.height, self.width, self.bands = array.shape
        self.eight_bit = array.dtype == np.uint8

    def pixels(self, shrink: float = 1.0) -> np.ndarray:
        return finite(self.array)

    def window(self, top: int, left: int, height: int, width: int) -> Picture:
        return Bands(self.array[top : top + height, left : left + width])


def finite(array: np.ndarray) -> np.ndarray:
    """The array; BadSample if it holds NaN or infinity (one place would spoil the whole batch)."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        share = 1 - np.isfinite(array).mean()
        raise BadSample(f"NaN or infinite values ({share:.2%} of the pixels)")
    return array


class Tiff(Picture):
    """The first image series of a TIFF: pixels, and either samples or equal pages as bands."""

    def __init__(self, raw: str | bytes):
        if find_spec("tifffile") is None:
            raise NeedsExtra(GEO)
        import tifffile

        self._raw = raw
        with tifffile.TiffFile(self._file()) as tiff:
            series = tiff.series[0]
            axes, shape, self.dtype = series.axes, series.shape, np.dtype(series.dtype)
            self._inverted = int(series.keyframe.photometric) == 0 and self.dtype.kind == "u"  # white is zero
        if "Y" not in axes or "X" not in axes:
            raise BadSample(f"a TIFF with axes {axes} is no picture")
        others = [(axis, size) for axis, size in zip(axes, shape) if axis not in "YX" and size > 1]
        if len(others) > 1:
            raise BadSample(f"a TIFF with axes {axes} of sizes {tuple(shape)}: several pages of several bands are no one picture")
        self.height, self.width = shape[axes.index("Y")], shape[axes.index("X")]
        self.bands = others[0][1] if others else 1
        self.eight_bit = self.dtype in (np.uint8, bool)
        self._axes = axes

    def _file(self):
        return BytesIO(self._raw) if isinstance(self._raw, bytes) else self._raw

    def pixels(self, shrink: float = 1.0) -> np.ndarray:
        import tifffile

        self.refuse_oversized()
        with tifffile.TiffFile(self._file()) as tiff:
            array = tiff.series[0].asarray()  # in the order of the axes
        if array.dtype != self.dtype:
            raise BadSample(f"the pixels are {array.dtype}, the header says {self.dtype}")
        order = [self._axes.index(axis) for axis in "YX"]
        rest = [place for place in range(array.ndim) if place not in order]
        array = array.transpose(*order, *rest).reshape(self.height, self.width, self.bands)  # (H, W, C)
        return self._upright(array)

    def window(self, top: int, left: int, height: int, width: int) -> Picture:
        import tifffile

        with tifffile.TiffFile(self._file()) as tiff:
            pages = [page.aspage() for page in tiff.series[0].pages if page is not None]
            parts = [_page_window(page, top, left, height, width) for page in pages]
        return Bands(self._upright(np.concatenate(parts, axis=2)))  # (h, w, C)

    def _upright(self, array: np.ndarray) -> np.ndarray:
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        return finite(np.iinfo(array.dtype).max - array if self._inverted else array)


def _page_window(page, top: int, left: int, height: int, width: int) -> np.ndarray:
    """(height, width, samples) of one TIFF page, decoding only the tiles or strips that it touches."""
    out = np.zeros((height, width, page.samplesperpixel), page.dtype)
    with page.parent.filehandle.lock:
        file = page.parent.filehandle
        for index, sample in _segments(page, top, left, height, width):
            offset, count = page.dataoffsets[index], page.databytecounts[index]
            if not count:
                continue  # a sparse file leaves empty tiles out
            file.seek(offset)
            segment, place, shape = page.decode(file.read(count), index, jpegtables=page.jpegtables)
            if segment is None:
                continue
            _, _, y, x, _ = place
            tile = segment[0, : shape[1], : shape[2]]  # (rows, columns, samples of this segment)
            y0, y1 = max(y, top), min(y + tile.shape[0], top + height)
            x0, x1 = max(x, left), min(x + tile.shape[1], left + width)
            if y0 < y1 and x0 < x1:
                out[y0 - top : y1 - top, x0 - left : x1 - left, sample] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
    return out


def _segments(page, top: int, left: int, height: int, width: int) -> Iterator[tuple[int, slice]]:
    """Number and samples of every tile or strip that a window touches."""
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    rows = min(rows, page.imagelength) if not page.is_tiled else rows
    down, across = -(-page.imagelength // rows), -(-page.imagewidth // columns)
    planes = page.samplesperpixel if int(page.planarconfig) == 2 and page.samplesperpixel > 1 else 1
    for plane in range(planes):
        sample = slice(plane, plane + 1) if planes > 1 else slice(None)
        for row in range(top // rows, (top + height - 1) // rows + 1):
            for column in range(left // columns, (left + width - 1) // columns + 1):
                yield plane * down * across + row * across + column, sample
