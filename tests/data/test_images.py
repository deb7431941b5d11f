"""Every kind of picture: the right bands, bits and orientation, and no band lost in silence."""

import io

import numpy as np
import pytest
from PIL import Image

from unmask import seeds
from unmask.data import images, raster, tiff
from unmask.data.quarantine import BadSample, NeedsExtra
from unmask.data.raster import Bands
from unmask.data.views import part

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (40, 56, 3), np.uint8)


def read(raw):
    picture = images.open_picture(raw)
    pixels = picture.pixels()
    assert pixels.shape == (picture.height, picture.width, picture.bands) and (pixels.dtype == np.uint8) == picture.eight_bit
    return pixels


def saved(image, kind, **more) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


@pytest.mark.parametrize("kind, more", [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("TIFF", {"compression": "tiff_lzw"})])
def test_lossless_colour(kind, more):
    assert np.array_equal(read(saved(Image.fromarray(COLOUR), kind, **more)), COLOUR)


@pytest.mark.parametrize("mode, bands", [("L", 1), ("LA", 1), ("1", 1), ("RGBA", 3), ("P", 3), ("CMYK", 3), ("YCbCr", 3), ("LAB", 3)])
def test_modes(mode, bands):
    image = Image.fromarray(COLOUR).convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (56, 40))
    assert read(image).shape == (40, 56, bands)


def test_alpha_is_dropped_and_colour_kept():
    alpha = Image.fromarray(np.concatenate([COLOUR, np.zeros((40, 56, 1), np.uint8)], 2))
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(read(saved(alpha, kind)), COLOUR)


def test_first_frame_of_an_animation():
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    assert (read(saved(red, "GIF", save_all=True, append_images=[blue]))[0, 0] == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation, tmp_path):
    from PIL import ImageOps

    image = Image.fromarray(COLOUR)
    exif = image.getexif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        raw = saved(image, kind, exif=exif)
        truth = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB"))
        assert np.array_equal(read(raw), truth), (kind, orientation)


def test_sixteen_bit_png_keeps_its_bits(monkeypatch):
    grey = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
    assert np.array_equal(read(saved(Image.fromarray(grey), "PNG"))[..., 0], grey)
    imagecodecs = pytest.importorskip("imagecodecs")
    colour = RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    assert np.array_equal(read(bytes(imagecodecs.png_encode(colour))), colour)
    with_alpha = np.concatenate([colour, colour[..., :1]], 2)
    assert np.array_equal(read(bytes(imagecodecs.png_encode(with_alpha))), colour)
    with pytest.raises(BadSample):
        read(bytes(imagecodecs.png_encode(colour))[:1500])
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    assert np.array_equal(read(bytes(imagecodecs.png_encode(colour))), colour)  # torchvision's decoder


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("bands, planar", [(1, None), (2, "contig"), (4, "contig"), (4, "separate"), (13, "contig"), (13, "separate")])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_every_band_of_a_tiff(tmp_path, dtype, bands, planar, compression):
    array = (RNG.normal(size=(24, 32, bands)) * 20 + 100).astype(dtype)
    path = str(tmp_path / "x.tif")
    stored = array[..., 0] if bands == 1 else array.transpose(2, 0, 1) if planar == "separate" else array
    tifffile.imwrite(path, stored, planarconfig=planar, compression=compression, photometric="minisblack")
    assert np.array_equal(read(path), array)
    assert np.array_equal(read((tmp_path / "x.tif").read_bytes()), array)


def test_unspecified_extra_samples_are_bands_and_alpha_is_not(tmp_path):
    four = RNG.integers(0, 255, (24, 32, 4), np.uint8)
    for extra, bands in (("unspecified", 4), ("unassalpha", 3)):
        path = str(tmp_path / f"{extra}.tif")
        tifffile.imwrite(path, four, photometric="rgb", extrasamples=[extra], compression="zlib")
        assert np.array_equal(read(path), four[..., :bands])


def test_equal_pages_are_bands_and_white_is_zero_is_turned(tmp_path):
    pages = RNG.integers(0, 255, (5, 24, 32), np.uint8)
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    assert np.array_equal(read(str(tmp_path / "pages.tif")), pages.transpose(1, 2, 0))
    tifffile.imwrite(tmp_path / "white.tif", pages[0].astype(np.uint16), photometric="miniswhite")
    assert np.array_equal(read(str(tmp_path / "white.tif"))[..., 0], 65535 - pages[0].astype(np.uint16))
    film = RNG.integers(0, 255, (4, 24, 32, 3), np.uint8)
    tifffile.imwrite(tmp_path / "film.tif", film, photometric="rgb")
    opened = images.open_picture(str(tmp_path / "film.tif"))
    assert opened.frames == 4 and all(np.array_equal(opened.frame(number).pixels(), film[number]) for number in range(4))


def test_without_the_extra_the_tiff_is_refused_by_its_name(tmp_path, monkeypatch):
    path = str(tmp_path / "x.tif")
    tifffile.imwrite(path, np.ones((8, 8, 4), np.uint8), photometric="rgb", extrasamples=["unspecified"])
    monkeypatch.setattr(tiff, "find_spec", lambda name: None)
    with pytest.raises(NeedsExtra, match=r'pip install "unmask\[geo\]"'):
        read(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(value):
    array = np.ones((8, 8, 2), np.float32)
    array[3, 3, 1] = value
    with pytest.raises(BadSample, match="NaN or infinite"):
        read(array)


def test_jpeg_is_decoded_smaller_only_as_far_as_asked():
    y, x = np.mgrid[:600, :800]
    smooth = np.stack([np.sin(x / 40) * 90 + 128, np.cos(y / 30) * 90 + 128, np.sin((x + y) / 50) * 90 + 128], -1).astype(np.uint8)
    raw = saved(Image.fromarray(smooth), "JPEG", quality=95)
    for shrink, side in ((1.0, 800), (1.9, 800), (2.1, 400), (4.2, 200), (30, 100)):
        assert images.open_picture(raw).pixels(shrink).shape[1] == side


@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 5}, {"tile": (16, 16), "planarconfig": "separate"}, {"rowsperstrip": 7, "planarconfig": "separate"}])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_a_window_reads_only_its_part(tmp_path, layout, compression):
    array = RNG.integers(0, 60000, (50, 70, 5)).astype(np.uint16)
    path = str(tmp_path / "x.tif")
    stored = array.transpose(2, 0, 1) if layout.get("planarconfig") else array
    tifffile.imwrite(path, stored, photometric="minisblack", compression=compression, **({"planarconfig": "contig"} | layout))
    picture = images.open_picture(path)
    for top, left, height, width in ((0, 0, 50, 70), (13, 21, 20, 30), (49, 69, 1, 1), (16, 16, 16, 16), (3, 0, 9, 70)):
        assert np.array_equal(picture.cut(top, left, height, width).pixels(), array[top : top + height, left : left + width])


def test_windows_of_pages(tmp_path):
    pages = RNG.integers(0, 60000, (5, 50, 70)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    part = images.open_picture(str(tmp_path / "pages.tif")).cut(10, 20, 12, 14).pixels()
    assert np.array_equal(part, pages[:, 10:22, 20:34].transpose(1, 2, 0))


def test_tile_takes_a_window_of_what_is_too_large(monkeypatch):
    monkeypatch.setattr(raster, "LIMIT", 1000)
    picture = images.open_picture(saved(Image.fromarray(COLOUR), "PNG"))
    with pytest.raises(BadSample, match="--tile"):
        picture.pixels()
    window = part(picture, 16, seeds.dice(0, "x")).pixels()
    assert window.shape == (16, 16, 3)
    centre = part(images.open_picture(saved(Image.fromarray(COLOUR), "PNG")), 16, None).pixels()
    assert np.array_equal(centre, COLOUR[12:28, 20:36])
    small = Bands(COLOUR[:10, :10])
    assert part(small, 16, None) is small


def test_npy_files_are_pictures(tmp_path):
    deep = RNG.integers(0, 4000, (40, 50)).astype(np.int16)
    np.save(tmp_path / "grey.npy", deep)
    np.save(tmp_path / "last.npy", COLOUR)
    np.save(tmp_path / "first.npy", RNG.normal(size=(5, 40, 50)).astype(np.float32))
    np.save(tmp_path / "evil.npy", np.array([[{}]], object), allow_pickle=True)
    np.save(tmp_path / "many.npy", np.zeros((2, 3, 8, 8), np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "last.npy").read_bytes()[:500])
    assert np.array_equal(read(str(tmp_path / "grey.npy"))[..., 0], deep)
    assert np.array_equal(read((tmp_path / "last.npy").read_bytes()), COLOUR) and np.array_equal(read(str(tmp_path / "last.npy")), COLOUR)
    assert read(str(tmp_path / "first.npy")).shape == (40, 50, 5)
    for name, reason in (("evil", "Python objects"), ("many", "give this file itself"), ("cut", "npy")):
        with pytest.raises(BadSample, match=reason):
            read(str(tmp_path / f"{name}.npy"))
    from unmask.data import forms

    assert forms.pictures(str(tmp_path)) == ["cut.npy", "evil.npy", "first.npy", "grey.npy", "last.npy", "many.npy"]
    Image.fromarray(COLOUR).save(tmp_path / "photo.png")
    assert forms.pictures(str(tmp_path)) == ["photo.png"], "beside pictures, arrays are something else"
    assert forms.resolve(str(tmp_path / "*.npy")).kind == "files"
    (tmp_path / "alone").mkdir()
    np.save(tmp_path / "alone" / "set.npy", np.zeros((9, 8, 8), np.uint8))
    assert forms.resolve(str(tmp_path / "alone")).kind == "array", "one file is a set of pictures"


def test_the_same_file_is_opened_by_many_threads(tmp_path):
    """Pillow's own limit is lifted and put back for each large file: nobody is left without it."""
    from concurrent.futures import ThreadPoolExecutor

    from folder_of_odd_files import _png

    bomb = _png(30000, 30000, b"")
    before = Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as pool:
        assert {picture.width for picture in pool.map(lambda _: images.open_picture(bomb), range(64))} == {30000}
    assert before == Image.MAX_IMAGE_PIXELS
