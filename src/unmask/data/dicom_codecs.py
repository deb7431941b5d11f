"""Compressed DICOM: what pydicom, Pillow and pylibjpeg decode, and through imagecodecs also lossless JPEG, 12-bit JPEG and JPEG-LS.

pydicom asks its own plugins first; ours follows the form that it documents for others' (pydicom, Pixel Data Decoder Plugins). It is
there because the decoder that is usual for hospital archives' lossless JPEG is GPL, and imagecodecs is BSD.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from unmask.data.quarantine import BadSample, NeedsExtra

PREFIX = "1.2.840.10008.1.2.4."
JPEG, JPEG_LS = (f"{PREFIX}51", f"{PREFIX}57", f"{PREFIX}70"), (f"{PREFIX}80", f"{PREFIX}81")
DECODER_DEPENDENCIES = dict.fromkeys((*JPEG, *JPEG_LS), ("imagecodecs",))  # pydicom reads this name


def join() -> None:
    """Offer this file's decoder to pydicom, once a process."""
    from pydicom.pixels import get_decoder

    for syntax in DECODER_DEPENDENCIES:
        decoder: Any = get_decoder(syntax)  # type: ignore[arg-type]
        if "imagecodecs" not in (*decoder.available_plugins, *decoder.missing_dependencies) and not any("imagecodecs" in one for one in decoder.missing_dependencies):
            decoder.add_plugin("imagecodecs", (__name__, "decode_frame"))


def is_available(syntax: str) -> bool:
    """Whether frames of a transfer syntax can be decoded here."""
    return syntax in DECODER_DEPENDENCIES and find_spec("imagecodecs") is not None


def decode_frame(source: bytes, runner: Any) -> bytes:
    """The frame's numbers, pixel by pixel, in 8 or 16 bits."""
    import imagecodecs

    decode = imagecodecs.jpegls_decode if str(runner.transfer_syntax) in JPEG_LS else imagecodecs.jpeg_decode
    array = decode(source)
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * array.dtype.itemsize)
    return array.tobytes()


def explained(error: Exception, syntax: Any) -> BadSample:
    """What pydicom raised about pixel data, in a line for a person."""
    from pydicom.pixels import get_decoder

    said = " ".join(str(error).split())
    if "no pixel data" in said or "Pixel Data' element" in said:
        return BadSample("a DICOM file without pixel data")
    if syntax is None:
        return BadSample("a DICOM file that does not say how its pixel data is written (no transfer syntax)")
    name = syntax.name.split(" (")[0]
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return BadSample(f"pixel data written as {name}, which is not read")
    if not decoder.is_available:
        return NeedsExtra(f'pixel data compressed as {name}: pip install "unmask[medical]"')
    if "less than expected" in said or "unexpected end" in said.lower():
        return BadSample("the pixel data ends early")
    return BadSample(f"the pixel data, {name}, cannot be decoded ({type(error).__name__})")
