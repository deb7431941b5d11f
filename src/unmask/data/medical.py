"""DICOM pictures (extra [medical]: pydicom), from stored numbers to numbers in which more is brighter.

The way is the standard's (DICOM PS3.3, C.7.6.3, C.11.1, C.11.2; PS3.4, N.2): the modality's lookup table or rescale slope and intercept
(Hounsfield units in CT), then, only where the file's own window is wanted, its window or lookup table of values of interest, then
the turn of MONOCHROME1. Padding, which is outside of what was imaged, becomes the darkest value of the picture.

Only the elements listed here are read: a patient's name never is, and PatientID is kept as a hash that nothing prints.
"""

from __future__ import annotations

import dataclasses
import math
from hashlib import blake2b
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np

from unmask.data.quarantine import BadSample, NeedsExtra
from unmask.data.raster import Bands, Picture, Window

MEDICAL = 'a DICOM file: pip install "unmask[medical]"'
PALETTE = [f"{part}{colour}PaletteColorLookupTable{what}" for part in ("", "Segmented") for colour in ("Red", "Green", "Blue") for what in ("Descriptor", "Data")]
ELEMENTS = [
    *("SOPClassUID", "Modality", "PatientID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("PresentationLUTShape", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(name for name in PALETTE if not name.startswith("Segmented") or name.endswith("Data")),
]
DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory: an index of other files
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


class Dicom(Picture):
    """One frame of a DICOM file: grey in the units of its modality, or colour."""

    def __init__(self, raw: str | bytes):
        if find_spec("pydicom") is None:
            raise NeedsExtra(MEDICAL)
        from pydicom import config, dcmread

        config.settings.reading_validation_mode = config.IGNORE  # its warnings would quote what stands in the file
        self._raw = raw
        try:
            head = dcmread(self._file(), stop_before_pixels=True, specific_tags=ELEMENTS, force=True)  # type: ignore[arg-type]
        except OSError:
            raise
        except Exception as error:  # pydicom raises struct.error, EOFError, ValueError and more on broken elements
            raise BadSample(f"a broken DICOM header ({type(error).__name__})") from None
        self._head, self._frame, self._window = head, 0, None
        try:
            self._read_head(head)
        except (TypeError, ValueError, AttributeError, IndexError, KeyError):
            raise BadSample("a DICOM header whose sizes cannot be read") from None

    def _file(self) -> Any:
        return BytesIO(self._raw) if isinstance(self._raw, bytes) else self._raw

    def _read_head(self, head: Any) -> None:
        """Sizes and kind; BadSample where the file holds no picture."""
        if DIRECTORY in (head.file_meta.get("MediaStorageSOPClassUID"), head.get("SOPClassUID")):
            raise BadSample("a DICOMDIR: an index of other files, no picture")
        if not head.get("Rows") or not head.get("Columns"):
            if not head.preamble:
                raise BadSample("no DICOM file, though its name says so")
            kind = head.get("Modality")
            raise BadSample(f"a DICOM file without pixel data{f' (modality {kind})' if kind else ''}")
        self.height, self.width = int(head.Rows), int(head.Columns)
        self.frames = int(head.get("NumberOfFrames") or 1)
        self._photometric = str(head.get("PhotometricInterpretation", "MONOCHROME2")).strip()
        if self._photometric not in (*GREY, *COLOUR):
            raise BadSample(f"a DICOM picture of kind {self._photometric}, which is not read")
        self.bands = 1 if self._photometric in GREY else 3
        self._bits = int(head.get("BitsStored") or head.get("BitsAllocated", 0))
        self._signed = head.get("PixelRepresentation") == 1
        self._modality = _modality(head, 0)
        whole = self._bits <= 8 and not self._signed and (self.bands == 3 or self._modality.identity)
        self.eight_bit = whole or self._photometric == "PALETTE COLOR"
        self.depth = "8-bit" if self.eight_bit else f"{self._bits}-bit{' signed' if self._signed else ''} DICOM"
        self.own_window = _window(head, 0) if self.bands == 1 else None
        if name := str(head.get("PatientID") or "").strip():
            self.patient = blake2b(name.encode(), digest_size=16).hexdigest()
            del head.PatientID

    def frame(self, number: int) -> Dicom:
        other = self._copy(_frame=number)
        other._modality = _modality(self._head, number)
        other.own_window = _window(self._head, number) if self.bands == 1 else None
        return other

    def under(self, window: Window) -> Dicom:
        return self._copy(_window=window)

    def _copy(self, **changed: Any) -> Dicom:
        other = object.__new__(Dicom)
        other.__dict__.update(self.__dict__ | changed)
        return other

    def cut(self, top: int, left: int, height: int, width: int) -> Picture:
        return Bands(self.pixels()[top : top + height, left : left + width], depth=self.depth)

    def stored(self, shrink: float = 1.0) -> tuple[np.ndarray, None]:
        self.refuse_oversized()
        array = self._decoded()
        if self.bands == 3:
            return self._colour(array), None
        padded = _padding(self._head, array, self._signed)
        array = self._modality.apply(array)
        inverse = self._photometric == "MONOCHROME1" or str(self._head.get("PresentationLUTShape", "")).strip().upper() == "INVERSE"
        if self._window == "file":
            array = _unit(self._head, self._frame, array, self.own_window)
            array = 1 - array if inverse else array
        elif inverse:
            array = self._turned_about() - array
        if padded is not None and not padded.all():
            array[padded] = array[~padded].min()
        if self.eight_bit:
            scale = 255 if self._window == "file" else 255 / (2**self._bits - 1)
            array = (array * scale).round().clip(0, 255).astype(np.uint8)
        return array[..., None], None  # (H, W, 1)

    def _decoded(self) -> np.ndarray:
        """(H, W) or (H, W, 3): the stored numbers of this frame, colour as RGB."""
        from pydicom import dcmread, uid
        from pydicom.pixels import pixel_array

        from unmask.data import dicom_codecs

        dicom_codecs.join()
        syntax = self._head.file_meta.get("TransferSyntaxUID")
        try:
            if self.frames > 1 and syntax not in (None, uid.DeflatedExplicitVRLittleEndian):
                array = pixel_array(self._file(), index=self._frame)  # of many frames only this one is read
            else:
                whole = dcmread(self._file(), force=True)
                if syntax is None:  # a file without a head of its own: pydicom has seen how it is written
                    implicit, little = whole.original_encoding
                    whole.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
                array = pixel_array(whole, index=self._frame)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            raise dicom_codecs.explained(error, syntax) from None
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _colour(self, array: np.ndarray) -> np.ndarray:
        if self._photometric == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            array = apply_color_lut(array, self._head)[..., :3]
            return array if array.dtype == np.uint8 else (array >> 8).astype(np.uint8)
        if array.ndim != 3:
            raise BadSample(f"{self._photometric} with one sample a pixel")
        return array if not self.eight_bit or self._bits == 8 else (array * (255 / (2**self._bits - 1))).round().astype(np.uint8)

    def _turned_about(self) -> float:
        """What a turned number and its original add up to: the ends of the stored range, or twice the centre of a window that was asked for."""
        if isinstance(self._window, tuple) and not self.eight_bit:
            return 2 * self._window[0]
        low, high = (-(2 ** (self._bits - 1)), 2 ** (self._bits - 1) - 1) if self._signed else (0, 2**self._bits - 1)
        return float(self._modality.apply(np.array([low, high])).sum())


@dataclasses.dataclass(frozen=True)
class _Modality:
    """Stored numbers to the modality's units: a line, or a table."""

    slope: float = 1.0
    intercept: float = 0.0
    table: Any = None  # the dataset whose ModalityLUTSequence it is

    @property
    def identity(self) -> bool:
        return self.table is None and (self.slope, self.intercept) == (1.0, 0.0)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """float32, always a fresh array."""
        if self.table is not None:
            from pydicom.pixels import apply_modality_lut

            return apply_modality_lut(array, self.table).astype(np.float32)
        return (array.astype(np.float64) * self.slope + self.intercept).astype(np.float32)


def _modality(head: Any, frame: int) -> _Modality:
    if head.get("ModalityLUTSequence"):
        return _Modality(table=head)
    group = _of_frame(head, frame, "PixelValueTransformationSequence")
    slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
    if slope is None or not float(slope):
        return _Modality()
    return _Modality(float(slope), float(intercept or 0))


def _window(head: Any, frame: int) -> tuple[float, float] | None:
    """Centre and width that the file says to show, the first where it gives several; of a lookup table, the range that it maps."""
    if head.get("VOILUTSequence"):
        entries, first, _ = (int(number) for number in head.VOILUTSequence[0].LUTDescriptor)
        entries = entries or 1 << 16
        return first + entries / 2, float(entries)
    group = _of_frame(head, frame, "FrameVOILUTSequence")
    centre, width = (_first(group.get(name)) for name in ("WindowCenter", "WindowWidth"))
    return (centre, width) if centre is not None and width is not None and width >= 1 else None


def _first(value: Any) -> float | None:
    value = value[0] if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else value
    return float(value) if value is not None and value != "" and math.isfinite(float(value)) else None


def _of_frame(head: Any, frame: int, name: str) -> Any:
    """The dataset in which a frame's own elements stand: its functional group, the one all frames share, or the file's top."""
    for groups, place in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        found = head.get(groups)
        if found and len(found) > place and found[place].get(name):
            return found[place].get(name)[0]
    return head


def _unit(head: Any, frame: int, array: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Values in [0, 1] by the file's own lookup table or window; without either by the .1 and 99.9 percentiles of this picture."""
    if head.get("VOILUTSequence"):
        from pydicom.pixels import apply_voi

        bits = int(head.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(array.astype(np.int32), head).astype(np.float32) / (2**bits - 1)
    if window is None:
        low, high = np.percentile(array, [0.1, 99.9])
        return ((array - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32)
    function = str(_of_frame(head, frame, "FrameVOILUTSequence").get("VOILUTFunction", "LINEAR")).upper()
    return windowed(array, *window, function)


def windowed(array: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """A window to [0, 1]: C.11.2.1.2 (LINEAR, whose ends are half a number in; LINEAR_EXACT) and C.11.2.1.3.1 (SIGMOID)."""
    if function == "SIGMOID":
        return (1 / (1 + np.exp(-4 * (array - centre) / width))).astype(np.float32)
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return ((array - centre) / width + 0.5).clip(0, 1).astype(np.float32)


def _padding(head: Any, array: np.ndarray, signed: bool) -> np.ndarray | None:
    """(H, W) bool: where stored numbers say that nothing was imaged."""
    value, other = head.get("PixelPaddingValue"), head.get("PixelPaddingRangeLimit")
    if value is None or isinstance(value, bytes):
        return None
    ends = [int(number) for number in (value, value if other is None or isinstance(other, bytes) else other)]
    if signed:  # written as unsigned by some
        ends = [end - (1 << 16) if end > 32767 and array.dtype.itemsize == 2 else end for end in ends]
    padded = (array >= min(ends)) & (array <= max(ends))
    return padded if padded.any() else None
