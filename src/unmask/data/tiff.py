"""TIFF beyond what Pillow reads whole: many bands, more than 8 bits, stacks, tiles, nodata, files larger than memory; through tifffile.

What is read: of several images in a file the first one, which is the full resolution of a pyramid (overviews and masks follow it).
- Samples of a pixel are bands, planar or not; so are pages of one kind that nothing is said about.
- Channels of OME and ImageJ files are bands; their slices (Z) and times (T), and pages that have several bands each, are frames.
- GDAL's nodata value is no data; in a GeoTIFF neither is NaN or infinity. Alpha is dropped; white-is-zero is turned.
- A window decodes only the tiles or strips that it touches, of uncompressed files only the rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np

from unmask.data.quarantine import BadSample, NeedsExtra
from unmask.data.raster import Bands, Picture

GEO = 'this TIFF has more than Pillow reads (many bands, more bits, several pages, nodata, or its size): pip install "unmask[geo]"'
NODATA = 42113  # GDAL's tag: the value, as text
SEGMENT = 1 << 31  # bytes of one compressed tile or strip that are decoded for a window
PALETTE, SEPARATED, LAB = 3, 5, 8  # photometric interpretations (TIFF 6.0) that are not numbers of light


class Tiff(Picture):
    """The first image series of a TIFF; a file is opened where it is read, so that nothing stays open in a worker."""

    def __init__(self, raw: str | bytes, frame: int = 0):
        if find_spec("tifffile") is None:
            raise NeedsExtra(GEO)
        self._raw, self._frame = raw, frame
        tiff = self._parsed()
        if not len(tiff.pages):
            raise BadSample("a TIFF without a picture in it")
        series = tiff.series[0]
        page = series.keyframe
        self.dtype, self._axes, self._shape = np.dtype(series.dtype), series.axes, series.shape
        self._kind, extra = int(page.photometric), tuple(map(int, page.extrasamples))
        text = page.tags[NODATA].value if NODATA in page.tags else None
        self._nodata, self._geo = _number(text, self.dtype), bool(page.is_geotiff)
        self.height, self.width = (self._shape[self._axes.index(axis)] if axis in self._axes else 0 for axis in "YX")
        if not self.height or not self.width:
            raise BadSample(f"a TIFF with axes {self._axes} is no picture")
        if self._kind in (SEPARATED, LAB) and self._bands() > 1:
            raise BadSample(f"a {'CMYK' if self._kind == SEPARATED else 'LAB'} TIFF that Pillow does not read")
        self._alpha = self._bands() in (2, 4) and len(extra) == 1 and extra[0] in (1, 2)  # said by the file to be alpha, not a band
        self.bands = 3 if self._kind == PALETTE else self._bands() - self._alpha
        self.eight_bit = self.dtype in (np.uint8, bool)
        self.depth = "8-bit" if self.eight_bit else str(self.dtype)
        self.frames = math.prod(size for axis, size in zip(self._axes, self._shape) if axis not in "YX" and axis != self._band_axis())

    def _open(self) -> Any:
        import tifffile

        return tifffile.TiffFile(BytesIO(self._raw) if isinstance(self._raw, bytes) else self._raw)

    def _parsed(self) -> Any:
        """The file's directory: of files on the disk the latest few are kept, for the one of a large picture takes longer than a window."""
        if isinstance(self._raw, bytes):
            return self._open()
        stamp = os.stat(self._raw)
        return _directory(self._raw, stamp.st_mtime_ns, stamp.st_size)

    def _band_axis(self) -> str:
        """The axis that holds bands: samples or channels, else the only other one unless it is depth or time; "" for none."""
        others = [axis for axis, size in zip(self._axes, self._shape) if axis not in "YX" and size > 1]
        named = [axis for axis in others if axis in "SC"]
        if len(named) > 1:
            raise BadSample(f"a TIFF with axes {self._axes} of sizes {tuple(self._shape)}: channels of several samples are no one picture")
        return named[0] if named else others[0] if len(others) == 1 and others[0] not in "ZT" else ""

    def _bands(self) -> int:
        axis = self._band_axis()
        return self._shape[self._axes.index(axis)] if axis else 1

    def frame(self, number: int) -> Picture:
        return Tiff(self._raw, number)

    def stored(self, shrink: float = 1.0) -> tuple[np.ndarray, np.ndarray | None]:
        self.refuse_oversized()
        return self._read(0, 0, self.height, self.width)

    def cut(self, top: int, left: int, height: int, width: int) -> Picture:
        return Bands(*self._read(top, left, height, width), self.depth)

    def _read(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(height, width, C) of this frame, and where it is data."""
        try:
            array = self._raw_pixels(top, left, height, width)
        except ValueError as error:
            if "imagecodecs" in str(error) and find_spec("imagecodecs") is None:
                raise NeedsExtra(f'{str(error).split(" requires")[0]} compression: pip install "unmask[geo]"') from None
            raise
        if array.dtype != self.dtype:
            raise BadSample(f"the pixels are {array.dtype}, the header says {self.dtype}")
        array = array[..., : self._bands() - self._alpha]
        valid = self._valid(array)
        if self._kind == PALETTE:
            colours = self._parsed().series[0].keyframe.colormap  # (3, 256), 16 bits
            array = (colours.T[array[..., 0]] >> 8).astype(np.uint8)
            valid = None if valid is None else np.repeat(valid, 3, axis=2)
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        if self._kind == 0 and array.dtype.kind == "u":  # white is zero
            array = np.iinfo(array.dtype).max - array
        return array, valid

    def _raw_pixels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """(height, width, bands) as stored, from as little of the file as it allows."""
        page = self._parsed().series[0].keyframe
        box = top, left, height, width
        leading = self._axes[: len(self._axes) - len(page.axes)]
        if not leading and set(page.axes) <= set("SYX"):
            with BytesIO(self._raw) if isinstance(self._raw, bytes) else open(self._raw, "rb") as file:
                return _page_window(page, file, *box)
        sizes, band = self._shape[: len(leading)], self._band_axis()
        others = [size for axis, size in zip(leading, sizes) if axis != band]
        place = dict(zip((axis for axis in leading if axis != band), np.unravel_index(self._frame, others) if others else ()))
        chosen = tuple(slice(None) if axis == band else place[axis] for axis in leading)
        numbers = np.arange(math.prod(sizes)).reshape(sizes)[chosen].ravel()
        with self._open() as tiff:
            series = tiff.series[0]
            pages: list[Any] = [series.pages[int(number)] for number in numbers] if len(series.pages) == math.prod(sizes) else [None]
            if not any(one is None for one in pages) and set(page.axes) <= set("SYX"):
                return np.concatenate([_page_window(one.aspage(), tiff.filehandle, *box) for one in pages], axis=2)
            whole = series.asarray()[chosen]  # pages without a directory of their own: in one piece
        axes = [axis for axis, pick in zip(leading, chosen) if isinstance(pick, slice)] + list(page.axes)
        order = [axes.index("Y"), axes.index("X")]
        whole = whole.transpose(*order, *(place for place in range(whole.ndim) if place not in order))
        return whole[top : top + height, left : left + width].reshape(height, width, -1)

    def _valid(self, array: np.ndarray) -> np.ndarray | None:
        """(h, w, C) bool where it is data; None where the file knows no nodata."""
        valid = None
        if self._nodata is not None:
            valid = array == array if math.isnan(self._nodata) else array != self.dtype.type(self._nodata)
        if self._geo and array.dtype.kind == "f":
            valid = np.isfinite(array) & (True if valid is None else valid)
        return valid


def _number(text: Any, dtype: np.dtype) -> float | None:
    """The nodata value that GDAL's tag says, where pixels can have it."""
    try:
        value = float(str(text).strip("\0 "))
    except ValueError:
        return None
    if dtype.kind in "ui" and not (value.is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max):
        return None
    return None if dtype.kind == "b" else value


@lru_cache(maxsize=4)
def _directory(path: str, changed: int, size: int) -> Any:
    """A parsed TIFF, its file closed again; what it says of its first series stays readable."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages):
            page = tiff.series[0].keyframe
            _ = page.decode, page.jpegtables, page.nodata, page.is_geotiff, page.colormap  # what is read only when it is asked for
        return tiff


def _page_window(page: Any, file: Any, top: int, left: int, height: int, width: int) -> np.ndarray:
    """(height, width, samples) of one TIFF page, decoding only the tiles or strips that it touches."""
    if (mapped := _mapped(page, file)) is not None:
        return mapped[top : top + height, left : left + width].astype(page.dtype)
    rows, columns = _segment_size(page)
    if rows * columns * page.dtype.itemsize * (page.samplesperpixel if int(page.planarconfig) == 1 else 1) > SEGMENT:
        raise BadSample(f"stored in compressed pieces of {columns} x {rows} pixels, too large to decode for a window: store it as a tiled TIFF")
    out = np.full((height, width, page.samplesperpixel), page.nodata, page.dtype)
    for index, sample in _segments(page, top, left, height, width):
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            continue  # a sparse file leaves empty tiles out
        file.seek(offset)
        data = file.read(count)
        if len(data) < count:
            raise BadSample("the file ends within its pixels")
        segment, place, shape = page.decode(data, index, jpegtables=page.jpegtables)
        if segment is None:
            continue
        _, _, y, x, _ = place
        tile = segment[0, : shape[1], : shape[2]]  # (rows, columns, samples of this segment)
        y0, y1 = max(y, top), min(y + tile.shape[0], top + height)
        x0, x1 = max(x, left), min(x + tile.shape[1], left + width)
        if y0 < y1 and x0 < x1:
            out[y0 - top : y1 - top, x0 - left : x1 - left, sample] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
    return out


def _mapped(page: Any, file: Any) -> np.ndarray | None:
    """(H, W, samples) of an uncompressed page that lies in one piece of a file on the disk, mapped and not read; else None."""
    if isinstance(file, BytesIO) or not page.is_final or page.dtype.kind not in "uif":
        return None
    shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
    planar = int(page.planarconfig) == 2 and page.samplesperpixel > 1
    stored = (shape[2], *shape[:2]) if planar else shape
    path = getattr(file, "path", None) or file.name
    try:
        mapped = np.memmap(path, page.dtype.newbyteorder(page.parent.byteorder), "r", page.dataoffsets[0], stored)
    except ValueError:
        raise BadSample("the file ends within its pixels") from None
    return (mapped.transpose(1, 2, 0) if planar else mapped).view(np.ndarray)


def _segment_size(page) -> tuple[int, int]:
    """Rows and columns of a tile or strip."""
    return (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, page.imagelength), page.imagewidth)


def _segments(page, top: int, left: int, height: int, width: int) -> Iterator[tuple[int, slice]]:
    """Number and samples of every tile or strip that a window touches."""
    rows, columns = _segment_size(page)
    down, across = -(-page.imagelength // rows), -(-page.imagewidth // columns)
    planes = page.samplesperpixel if int(page.planarconfig) == 2 and page.samplesperpixel > 1 else 1
    for plane in range(planes):
        sample = slice(plane, plane + 1) if planes > 1 else slice(None)
        for row in range(top // rows, (top + height - 1) // rows + 1):
            for column in range(left // columns, (left + width - 1) // columns + 1):
                yield plane * down * across + row * across + column, sample
