"""Files become pictures: JPEG, PNG, WebP, BMP, GIF and plain TIFF through Pillow; the rest of TIFF, DICOM and `.npy` by their own files.

What is kept and what is not, said once:
- EXIF rotation is applied. Of a GIF, an animation or a paged WebP the first frame is the picture.
- Grey, bilevel and grey-with-alpha are one band; palette, colour, colour-with-alpha, CMYK, YCbCr, LAB are three. The alpha of
  8- and 16-bit PNG, WebP, GIF and TIFF is dropped, as torchvision and timm do: the colour under it stays as it is stored.
- 16-bit PNG keeps all its bits, colour too (Pillow alone would cut colour to 8).
- A file that ends early is a bad sample: Pillow's LOAD_TRUNCATED_IMAGES is never set.
- What a file is, its first bytes say, not its name. A `.npy` file of three sides has its bands first where that side is the shortest.
"""

from __future__ import annotations

import logging
import os
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from io import BytesIO
from threading import Lock
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from unmask.data.forms import DICOM, MAGIC, extension
from unmask.data.medical import Dicom
from unmask.data.quarantine import BadSample, NeedsExtra
from unmask.data.raster import LIMIT, Bands, Picture, oversized
from unmask.data.tiff import NODATA, Tiff

T = TypeVar("T")
GREY = frozenset({"1", "L", "LA", "La"})
DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})  # more than 8 bits, one band
NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SMALL = 1 << 22  # bytes and pixels of a plain TIFF above which tifffile reads it, so that a window need not decode it whole
unlimited = Lock()
WHOLE = 1 << 30  # pixels of the largest picture that `--tile` decodes whole to cut a window (4 GiB in Pillow)

# Pillow warns about large pictures, of odd metadata and of palettes on every file: what matters is a bad sample with its reason here.
warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\..*")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
for decoder in ("PIL", "tifffile", "pydicom"):
    logging.getLogger(decoder).setLevel(logging.CRITICAL)


def open_picture(raw: str | bytes | np.ndarray | Image.Image) -> Picture:
    """The picture in a file, in bytes, in an array (H, W[, C]) or in a Pillow image; BadSample says why there is none."""
    if isinstance(raw, np.ndarray):
        return Bands(raw)
    if isinstance(raw, Image.Image):
        return Photo(raw)
    return guarded(lambda: _opened(raw))


def guarded(work: Callable[[], T]) -> T:
    """The answer of `work`; whatever a decoder raises about a broken file becomes a BadSample with a readable reason."""
    try:
        return work()
    except BadSample:
        raise
    except FileNotFoundError as error:
        path = str(error.filename or "")
        raise BadSample(f"a link to nowhere ({os.readlink(path)})" if os.path.islink(path) else "no such file") from None
    except UnidentifiedImageError:
        raise BadSample("not a picture of a known kind") from None
    except MemoryError:
        raise BadSample("does not fit into memory") from None
    except Exception as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split()) or "cannot be decoded"
        raise BadSample(f"{reason} ({type(error).__name__})" if not isinstance(error, OSError) else reason) from None


def _opened(raw: str | bytes) -> Picture:
    """The picture, by its first bytes; of files that may be read in parts nothing more is read here."""
    if isinstance(raw, str):
        with open(raw, "rb") as file:
            data = file.read(MAGIC[0] + len(MAGIC[1]))
            if not (dicom := _is_dicom(data, raw)) and data[:4] not in TIFF and data[:6] != NPY:
                data += file.read()
    else:
        data, dicom = raw, _is_dicom(raw, "")
    if not data:
        raise BadSample("empty file")
    if dicom:
        return Dicom(raw)
    if data[:4] in TIFF:
        return _tiff(raw)
    if data[:6] == NPY:
        return _array(raw)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25 and data[24] == 16 and data[25] != 0:
        return DeepPng(data)
    return Photo(_pillow(BytesIO(data)))


def _is_dicom(data: bytes, name: str) -> bool:
    """By DICOM's magic, which may stand in a TIFF's spare bytes, or where nothing else is known by the name."""
    return data[MAGIC[0] :][: len(MAGIC[1])] == MAGIC[1] or (extension(name) in DICOM and len(data) > 0)


def _array(raw: str | bytes) -> Picture:
    """A `.npy` file: mapped where it lies on the disk, never unpickled."""
    try:
        array = np.load(raw, mmap_mode="r", allow_pickle=False) if isinstance(raw, str) else np.load(BytesIO(raw), allow_pickle=False)
    except ValueError as error:
        raise BadSample("holds Python objects, which are never opened" if "bject" in str(error) else f"no readable .npy file: {error}") from None
    if array.ndim == 4:
        raise BadSample(f"an array of shape {array.shape} is many pictures: give this file itself as DATA")
    first = array.ndim == 3 and array.shape[0] < min(array.shape[1:])
    return Bands(array.transpose(1, 2, 0) if first else array, mapped=isinstance(raw, str))  # (C, H, W) -> (H, W, C)


def _pillow(file) -> Image.Image:
    """Image.open without its own limit on size: ours names --tile."""
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        with unlimited:  # the limit is Pillow's own for everybody, and several threads may read
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(file)
            finally:
                Image.MAX_IMAGE_PIXELS = limit


def _tiff(raw: str | bytes) -> Picture:
    """Pillow where it reads every band, bit and page of the file, tifffile everywhere else."""
    if (os.path.getsize(raw) if isinstance(raw, str) else len(raw)) > SMALL and find_spec("tifffile") is not None:
        with suppress(BadSample):  # some colours only Pillow reads
            large = Tiff(raw)
            if large.height * large.width > SMALL:
                return large
    try:
        image = Image.open(raw if isinstance(raw, str) else BytesIO(raw))
        tags = image.tag_v2  # type: ignore[attr-defined]  # what Pillow opened is a TIFF
        bits, samples, extra = tags.get(258, (1,)), tags.get(277, 1), tags.get(338, ())
        room = SMALL if find_spec("tifffile") is not None and image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else LIMIT
        alpha = samples in (2, 4) and len(extra) == 1 and extra[0] in (1, 2)  # said by the file to be alpha, not a band
        whole = alpha or (not extra and (samples in (1, 3) or image.mode == "CMYK"))
        if whole and max(bits) <= 8 and getattr(image, "n_frames", 1) == 1 and NODATA not in tags and image.width * image.height <= room:
            return Photo(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, struct.error, ValueError, KeyError, TypeError):
        pass  # tifffile says what it is
    return Tiff(raw)


class DeepPng(Picture):
    """A colour PNG of 16 bits a channel, of which Pillow would keep 8, or a part of one; alpha, the last of 2 or 4 channels, is left out."""

    eight_bit, depth = False, "uint16"

    def __init__(self, raw: bytes, part: tuple[int, int, int, int] | None = None):
        self._raw, self._part = raw, part  # top, left, height, width
        self.width, self.height = self._size = struct.unpack(">II", raw[16:24])
        if part is not None:
            self.height, self.width = part[2:]
        self.bands = 1 if raw[25] == 4 else 3

    def stored(self, shrink: float = 1.0) -> tuple[np.ndarray, None]:
        width, height = self._size
        if self._part is None:
            self.refuse_oversized()
        elif 1.5 * width * height > WHOLE:  # six bytes a pixel, and Pillow has four
            raise BadSample(f"{width} x {height} pixels: this format is decoded whole, which is too much; store it as a tiled TIFF")
        top, left, rows, columns = self._part or (0, 0, height, width)
        return guarded(self._decoded)[top : top + rows, left : left + columns, : self.bands], None

    def cut(self, top: int, left: int, height: int, width: int) -> Picture:
        above, before = self._part[:2] if self._part else (0, 0)
        return DeepPng(self._raw, (above + top, before + left, height, width))

    def _decoded(self) -> np.ndarray:
        _pillow(BytesIO(self._raw)).load()  # Pillow is the stricter judge of a damaged file
        return _sixteen_bits(self._raw)  # (H, W, C)


def _sixteen_bits(raw: bytes) -> np.ndarray:
    """Through imagecodecs (extra [geo]), else through torchvision while it still decodes."""
    if find_spec("imagecodecs") is not None:
        import imagecodecs

        return imagecodecs.png_decode(raw)
    try:
        import torch
        from torchvision.io import ImageReadMode, decode_png
    except ImportError:
        raise NeedsExtra('a colour PNG of 16 bits a channel, of which Pillow keeps 8: pip install "unmask[geo]"') from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = decode_png(torch.frombuffer(bytearray(raw), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return data.permute(1, 2, 0).numpy()  # (C, H, W) -> (H, W, C)


class Photo(Picture):
    """A picture that Pillow decodes, or a part of one; JPEG can be decoded at a half, a quarter or an eighth of its size."""

    def __init__(self, image: Image.Image, part: tuple[int, int, int, int] | None = None):
        self._image, self._part = image, part  # top, left, height, width
        self.width, self.height = image.size
        # Pillow itself turns TIFF; elsewhere the rotation stands in the EXIF block
        turned = "exif" in image.info and not isinstance(image, TiffImagePlugin.TiffImageFile)
        self._orientation = guarded(lambda: image.getexif().get(0x0112, 1)) if turned else 1
        if self._orientation in (5, 6, 7, 8):
            self.width, self.height = self.height, self.width
        self._whole = self.height, self.width
        if part is not None:
            self.height, self.width = part[2:]
        self.bands = 1 if image.mode in GREY or image.mode in DEEP else 3
        self.eight_bit = image.mode not in DEEP
        self.depth = "8-bit" if self.eight_bit else {"F": "float32", "I": "int32"}.get(image.mode, "uint16")

    def stored(self, shrink: float = 1.0) -> tuple[np.ndarray, None]:
        return guarded(lambda: self._decoded(shrink)), None

    def cut(self, top: int, left: int, height: int, width: int) -> Picture:
        above, before = self._part[:2] if self._part else (0, 0)
        return Photo(self._image, (above + top, before + left, height, width))

    def _decoded(self, shrink: float) -> np.ndarray:
        image = self._image
        if shrink >= 2 and image.format in ("JPEG", "MPO"):
            image.draft(None, (int(image.width / shrink), int(image.height / shrink)))  # the smallest that is at least this large
        self._refuse_whole(image)
        image.load()
        if self._orientation != 1:
            image = ImageOps.exif_transpose(image)
        if self._part is not None:  # in the pixels that were decoded
            down, across = image.height / self._whole[0], image.width / self._whole[1]
            top, left, height, width = self._part
            box = (int(left * across), int(top * down), round((left + width) * across), round((top + height) * down))
            image = image.crop(box)
        if image.mode in DEEP:
            return Bands(np.array(image)).array
        wanted = "L" if self.bands == 1 else "RGB"
        if image.mode != wanted:
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA")  # a palette with transparency: its colours first
            image = image.convert(wanted)
        array = np.array(image)
        return array[..., None] if array.ndim == 2 else array  # (H, W, C)

    def _refuse_whole(self, image: Image.Image) -> None:
        """This format decodes all of its pixels for any part of them."""
        if self._part is not None and image.height * image.width > WHOLE:
            raise BadSample(f"{self._whole[1]} x {self._whole[0]} pixels: this format is decoded whole, which is too much; store it as a tiled TIFF")
        if self._part is None and oversized(image.height, image.width, self.bands, self.eight_bit):
            self.refuse_oversized()
