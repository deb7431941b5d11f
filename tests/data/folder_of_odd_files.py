"""Makes a folder of bad files and of odd but good ones: used by several tests."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(seed: int = 0, height: int = 72, width: int = 96) -> Image.Image:
    """A smooth coloured picture with some grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(4, 20) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(4, 20)) for _ in range(3)]
    return Image.fromarray((np.stack(waves, -1) * 90 + 128 + rng.normal(size=(height, width, 3)) * 8).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **more) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bad_files(folder: Path) -> list[str]:
    """Writes more than 30 kinds of bad file; their names."""
    import tifffile
    from dicom_files import dataset, write

    image = photograph(7)
    whole = {kind: encoded(image, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}
    progressive = encoded(image, "JPEG", progressive=True)
    noise = random.Random(0).randbytes
    broken_png = bytearray(whole["PNG"])
    broken_png[len(broken_png) // 2] ^= 0xFF
    holes = np.ones((24, 24), np.float32)
    holes[3, 4] = np.nan
    endless = np.full((24, 24), np.inf, np.float32)
    contents = {
        "bad_empty.jpg": b"",
        "bad_one_byte.jpg": b"\xff",
        "bad_text.jpg": b"hello",
        "bad_page.png": b"<html><body>404</body></html>",
        "bad_json.jpg": b'{"error": "not found"}',
        "bad_zeros.jpg": bytes(5000),
        "bad_noise.jpg": noise(4000),
        "bad_header.jpg": whole["JPEG"][:20],
        "bad_half.jpg": whole["JPEG"][: len(whole["JPEG"]) // 2],
        "bad_end.jpg": whole["JPEG"][:-40],
        "bad_progressive_half.jpg": progressive[: len(progressive) // 2],
        "bad_noise_inside.jpg": whole["JPEG"][:160] + noise(60),
        "bad_cut.png": b"\x89PNG\r\n\x1a\n" + bytes(30),
        "bad_half.png": whole["PNG"][: len(whole["PNG"]) // 2],
        "bad_checksum.png": bytes(broken_png),
        "bad_no_rows.png": _png(64, 64, b"")[:-20],
        "bad_half.webp": whole["WEBP"][: len(whole["WEBP"]) // 2],
        "bad_half.gif": whole["GIF"][: len(whole["GIF"]) // 3],
        "bad_half.bmp": whole["BMP"][: len(whole["BMP"]) // 2],
        "bad_half.tif": whole["TIFF"][: len(whole["TIFF"]) // 2],
        "bad_header.tif": b"II*\0" + bytes(4),
        "bad_bomb.png": _png(30000, 30000, b""),
        "bad_pdf.jpg": b"%PDF-1.7\n" + noise(500),
        "bad_zip.png": b"PK\x03\x04" + noise(500),
        "bad_pickle.jpg": b"\x80\x04\x95" + noise(100),
        "bad_script.gif": b"GIF89a = 1; alert(1)",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    tifffile.imwrite(folder / "bad_nan.tif", holes)
    tifffile.imwrite(folder / "bad_infinite.tif", endless)
    tifffile.imwrite(folder / "bad_13_bands.tif", np.ones((24, 24, 13), np.uint8), planarconfig="contig", photometric="minisblack")
    tifffile.imwrite(folder / "bad_4_bands.tif", np.ones((24, 24, 4), np.uint8), photometric="rgb", extrasamples=["unspecified"])
    os.symlink(folder / "nowhere.jpg", folder / "bad_dangling.jpg")
    tifffile.imwrite(folder / "bad_nodata.tif", np.full((24, 24), 7, np.uint8), extratags=[(42113, "s", 0, "7", True)])
    grey = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    write(folder / "bad_12_bits.dcm", grey, BitsStored=12)
    (folder / "bad_truncated.dcm").write_bytes((folder / "bad_12_bits.dcm").read_bytes()[:-2000])
    (folder / "bad_text.dcm").write_text("no DICOM file")
    empty = dataset(grey)
    del empty.PixelData
    empty.save_as(folder / "bad_no_pixels", enforce_file_format=True)
    names = ["bad_nan.tif", "bad_infinite.tif", "bad_13_bands.tif", "bad_4_bands.tif", "bad_dangling.jpg", "bad_nodata.tif"]
    return [*contents, *names, "bad_12_bits.dcm", "bad_truncated.dcm", "bad_text.dcm", "bad_no_pixels"]


def odd_files(folder: Path) -> list[str]:
    """Writes good pictures of odd kinds; their names."""
    import tifffile
    from dicom_files import write

    image = photograph(8)
    write(folder / "ok_rgb.dcm", np.array(image))
    write(folder / "1.2.840.7", np.array(image.convert("L")), PhotometricInterpretation="MONOCHROME1")
    border = np.array(image.convert("L")).clip(1)
    border[:9] = 0
    tifffile.imwrite(folder / "ok_border.tif", border, extratags=[(42113, "s", 0, "0", True)], compression="zlib", tile=(32, 32))
    (folder / "sub dir" / "ünï").mkdir(parents=True)
    kinds = {
        "ok_a.gif": image, "ok_palette.png": image.convert("P"), "ok_cmyk.jpg": image.convert("CMYK"), "ok_grey.jpg": image.convert("L"),
        "ok_la.png": image.convert("LA"), "ok_rgba.png": image.convert("RGBA"), "ok_thin.jpg": image.resize((3000, 8)), "ok_bilevel.png": image.convert("1"),
        "ok_1x1.png": image.resize((1, 1)), "ok.bmp": image, "OK_UPPER.JPG": image, "ok_plain.tif": image, "ok_grey.tif": image.convert("L"),
        "sub dir/ünï/ok_ünïcode.webp": image,
    }  # fmt: skip
    for name, picture in kinds.items():
        picture.save(folder / name)
    image.save(folder / "ok_progressive.jpg", progressive=True)
    image.save(folder / "ok_lzw.tif", compression="tiff_lzw")
    palette = image.convert("P")
    palette.save(folder / "ok_transparent.gif", transparency=3)
    image.save(folder / "ok_moving.gif", save_all=True, append_images=[photograph(9)], duration=100)
    Image.fromarray((np.arange(7200).reshape(80, 90) * 9).astype(np.uint16)).save(folder / "ok_16bit.png")
    exif = image.getexif()
    exif[274] = 6
    image.save(folder / "ok_exif.jpg", exif=exif)
    (folder / "jpeg_named.png").write_bytes(encoded(image, "JPEG"))
    more = ["ok_progressive.jpg", "ok_lzw.tif", "ok_transparent.gif", "ok_moving.gif", "ok_16bit.png", "ok_exif.jpg", "jpeg_named.png"]
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.jpg").write_bytes(b"x")
    (folder / "folder.jpg").mkdir()
    return [*kinds, *more, "ok_rgb.dcm", "1.2.840.7", "ok_border.tif"]
