"""GeoTIFF and other large or deep TIFF: nodata is never a value, a window costs what it touches, stacks are frames."""

import itertools
import os
import pickle
import tracemalloc
import zlib
from random import Random

import numpy as np
import pytest

tifffile = pytest.importorskip("tifffile")

from unmask.data import images  # noqa: E402
from unmask.data.inspect import inspect, lines  # noqa: E402
from unmask.data.loader import Pictures  # noqa: E402
from unmask.data.quarantine import BadSample  # noqa: E402
from unmask.data.raster import filled  # noqa: E402
from unmask.data.sources import open_source  # noqa: E402
from unmask.data.statistics import survey  # noqa: E402
from unmask.data.tiff import Tiff  # noqa: E402
from unmask.data.views import part  # noqa: E402
from unmask.settings import Views  # noqa: E402

RNG = np.random.default_rng(0)
SCALE = (33550, "d", 3, (10.0, 10.0, 0.0), True)  # ModelPixelScale, which makes a TIFF a GeoTIFF
KEYS = (34735, "H", 4, (1, 1, 0, 0), True)  # an empty directory of geographic keys


def geotiff(path, array, nodata=None, **more):
    """(H, W, C) written as a GeoTIFF of contiguous samples, or of planes with planarconfig="separate"."""
    tags = [SCALE, KEYS] + ([(42113, "s", 0, str(nodata), True)] if nodata is not None else [])
    stored = array.transpose(2, 0, 1) if more.get("planarconfig") == "separate" else array
    tifffile.imwrite(path, stored, photometric="minisblack", extratags=tags, **({"planarconfig": "contig"} | more))
    return str(path)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "lerc"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_compressed_tiled_geotiff(tmp_path, compression, planar, dtype):
    if compression in ("zstd", "lerc"):
        pytest.importorskip("imagecodecs")
    array = RNG.integers(0, 9000, (70, 90, 5)).astype(dtype)
    path = geotiff(tmp_path / "x.tif", array, tile=(32, 32), compression=compression, planarconfig=planar)
    picture = images.open_picture(path)
    assert (picture.height, picture.width, picture.bands, picture.frames) == (70, 90, 5, 1)
    assert np.array_equal(picture.pixels(), array)
    assert np.array_equal(picture.cut(20, 30, 33, 41).pixels(), array[20:53, 30:71])


def test_bigtiff_and_big_endian(tmp_path):
    array = RNG.integers(0, 9000, (40, 50, 3)).astype(np.uint16)
    for name, more in (("big.tif", {"bigtiff": True}), ("endian.tif", {"byteorder": ">"}), ("both.tif", {"bigtiff": True, "byteorder": ">", "compression": "zlib"})):
        path = geotiff(tmp_path / name, array, **more)
        assert np.array_equal(images.open_picture(path).pixels(), array), name
        assert np.array_equal(images.open_picture(path).cut(5, 6, 7, 8).pixels(), array[5:12, 6:14]), name


@pytest.mark.parametrize("dtype, nodata", [("uint16", 0), ("int16", -9999), ("float32", -9999), ("float32", "nan"), ("uint8", 255), ("float32", -3.4028234663852886e38)])
def test_nodata_takes_the_mean_of_its_band(tmp_path, dtype, nodata):
    value = float(nodata)
    array = RNG.integers(10, 200, (30, 40, 3)).astype(dtype)
    truth = array.copy()
    array[:9, :, 1] = value
    array[5, 5, 0] = value
    path = geotiff(tmp_path / "x.tif", array, nodata)
    pixels = images.open_picture(path).pixels()
    for band in range(3):
        here = np.ones((30, 40), bool)
        here[:9] &= band != 1
        here[5, 5] &= band != 0
        mean = truth[..., band][here].mean(dtype=np.float64)
        assert np.array_equal(pixels[..., band][here], truth[..., band][here])
        assert np.allclose(pixels[..., band][~here].astype(float), mean, atol=0.51 if np.dtype(dtype).kind != "f" else 1e-3)
    assert images.open_picture(path).cut(0, 0, 9, 40).known < 0.7


def test_a_band_without_data_is_a_bad_sample(tmp_path):
    array = RNG.integers(1, 99, (20, 20, 4)).astype(np.int16)
    array[..., 2] = -1
    with pytest.raises(BadSample, match="nothing but nodata in band 3 of 4"):
        images.open_picture(geotiff(tmp_path / "a.tif", array, -1)).pixels()
    with pytest.raises(BadSample, match=r"nothing but nodata$"):
        images.open_picture(geotiff(tmp_path / "b.tif", np.full((20, 20, 4), -1, np.int16), -1)).pixels()


def test_nan_is_nodata_in_a_geotiff_and_broken_elsewhere(tmp_path):
    array = RNG.normal(size=(20, 20, 2)).astype(np.float32)
    array[3:6, 4:9, 1] = np.nan
    array[0, 0, 0] = -np.inf  # 10 log10(0) of a radar picture
    pixels = images.open_picture(geotiff(tmp_path / "a.tif", array)).pixels()
    assert np.isfinite(pixels).all() and np.isclose(pixels[4, 5, 1], np.nanmean(array[..., 1]), atol=1e-6)
    tifffile.imwrite(tmp_path / "b.tif", array, photometric="minisblack", planarconfig="contig")
    with pytest.raises(BadSample, match="NaN or infinite"):
        images.open_picture(str(tmp_path / "b.tif")).pixels()


def test_nodata_that_pixels_cannot_have_changes_nothing(tmp_path):
    array = RNG.integers(0, 99, (20, 20, 2)).astype(np.uint16)
    for nodata in (-9999, "nan", 0.5, "none at all"):
        assert np.array_equal(images.open_picture(geotiff(tmp_path / "a.tif", array, nodata)).pixels(), array)


def test_filled_leaves_the_file_alone():
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    valid = array > 3
    before = array.copy()
    assert filled(array, valid)[0, 0].tolist() == [8, 7, 8] and np.array_equal(array, before)
    assert filled(array, None) is array


def test_nodata_is_not_measured(tmp_path):
    for number in range(12):
        array = RNG.normal(3000, 200, (40, 40, 3)).astype(np.int16)
        array[:, : 10 + number] = -9999
        geotiff(tmp_path / f"{number}.tif", array, -9999, compression="zlib")
    source = open_source(str(tmp_path))
    form = survey(source)
    assert min(form.low) > 2000 and max(form.high) < 4000 and any("nodata" in line for line in form.said)
    assert all(0.1 < std < 0.25 for std in form.std), "not made smaller by what was filled in"
    report = inspect(source)
    assert report["values"][0] > 2000 and report["nodata"]["pictures"] == 12 and 0.3 < report["nodata"]["share"] < 0.5
    assert "nodata " in "\n".join(lines(report))
    batch = next(iter(Pictures(source, form, Views(), (16, 16)).batches(8, 0, 1)))
    assert batch["images"].min() > 2000


def pyramid(path, array, inside):
    """A picture with two overviews, in its own directory (SubIFDs) or behind it as GDAL writes them."""
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(array, tile=(32, 32), compression="zlib", photometric="rgb", subifds=2 if inside else None, metadata=None)
        for level in (2, 4):
            tiff.write(array[::level, ::level], tile=(16, 16), compression="zlib", photometric="rgb", subfiletype=1, metadata=None)
    return str(path)


@pytest.mark.parametrize("inside", [True, False])
def test_overviews_are_no_samples(tmp_path, inside):
    array = RNG.integers(0, 256, (128, 96, 3), np.uint8)
    path = pyramid(tmp_path / "x.tif", array, inside)
    source = open_source(path)
    picture = source.picture(0)
    assert len(source) == 1 and picture.frames == 1 and np.array_equal(picture.pixels(), array)


def test_stacks_are_frames_and_channels_are_bands(tmp_path):
    stack = RNG.integers(0, 4000, (5, 3, 20, 24)).astype(np.uint16)  # slices, channels
    tifffile.imwrite(tmp_path / "ome.ome.tif", stack, metadata={"axes": "ZCYX"}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "imagej.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    tifffile.imwrite(tmp_path / "slices.ome.tif", stack[:, 0], metadata={"axes": "ZYX"}, photometric="minisblack", compression="zlib")
    for name, bands in (("ome.ome.tif", 3), ("imagej.tif", 3), ("slices.ome.tif", 1)):
        picture = images.open_picture(str(tmp_path / name))
        assert (picture.frames, picture.bands) == (5, bands), name
        for number in range(5):
            truth = stack[number, :bands].transpose(1, 2, 0)
            assert np.array_equal(picture.frame(number).pixels(), truth), (name, number)
            assert np.array_equal(picture.frame(number).cut(3, 4, 10, 12).pixels(), truth[3:13, 4:16]), (name, number)
        assert np.array_equal(part(picture, None, None).pixels(), stack[2, :bands].transpose(1, 2, 0))


def test_palette_alpha_and_white_is_zero(tmp_path):
    indices = RNG.integers(0, 256, (600, 600), np.uint8)
    colours = RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "palette.tif", indices, photometric="palette", colormap=colours, tile=(64, 64), compression="zlib")
    truth = np.stack([colours[band][indices] >> 8 for band in range(3)], -1)
    assert np.array_equal(Tiff(str(tmp_path / "palette.tif")).pixels(), truth)
    assert np.array_equal(Tiff(str(tmp_path / "palette.tif")).cut(9, 9, 8, 8).pixels(), truth[9:17, 9:17])
    deep = RNG.integers(0, 65536, (20, 20, 4)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "alpha.tif", deep, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(images.open_picture(str(tmp_path / "alpha.tif")).pixels(), deep[..., :3])
    cmyk = RNG.integers(0, 256, (20, 20, 4), np.uint8)
    tifffile.imwrite(tmp_path / "cmyk.tif", cmyk, photometric="separated", compression="zlib")
    assert images.open_picture(str(tmp_path / "cmyk.tif")).bands == 3
    with pytest.raises(BadSample, match="CMYK"):
        Tiff(str(tmp_path / "cmyk.tif"))


def test_jpeg_inside_tiff_is_rgb(tmp_path):
    pytest.importorskip("imagecodecs")
    y, x = np.mgrid[:128, :128]
    smooth = np.stack([x * 2, y * 2, 255 - x], -1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", smooth, photometric="rgb", compression="jpeg", compressionargs={"level": 95}, tile=(64, 64))
    assert int(tifffile.TiffFile(tmp_path / "x.tif").pages[0].photometric) == 6  # it writes YCbCr
    assert np.abs(Tiff(str(tmp_path / "x.tif")).cut(30, 30, 60, 60).pixels().astype(int) - smooth[30:90, 30:90]).max() < 16


def test_damaged_files_are_bad_samples(tmp_path):
    array = RNG.integers(0, 9000, (64, 64, 5)).astype(np.uint16)
    for name, more in (("plain.tif", {}), ("tiled.tif", {"tile": (32, 32), "compression": "zlib"})):
        geotiff(tmp_path / name, array, **more)
        data = (tmp_path / name).read_bytes()
        for share in (0.1, 0.6, 0.98):
            (tmp_path / name).write_bytes(data[: int(len(data) * share)])
            with pytest.raises(BadSample) as told:
                images.open_picture(str(tmp_path / name)).pixels()
            assert "\n" not in str(told.value) and len(str(told.value)) > 5
    empty = b"II*\0\x08\0\0\0\0\0\0\0\0\0"
    with pytest.raises(BadSample):
        images.open_picture(empty).pixels()


def test_a_picture_goes_to_a_worker(tmp_path):
    array = RNG.integers(0, 9000, (64, 64, 5)).astype(np.uint16)
    picture = images.open_picture(geotiff(tmp_path / "x.tif", array, tile=(32, 32)))
    assert np.array_equal(pickle.loads(pickle.dumps(picture)).pixels(), array)


def test_a_changed_file_is_read_anew(tmp_path):
    path = geotiff(tmp_path / "x.tif", np.ones((16, 16, 2), np.uint16))
    assert images.open_picture(path).pixels().max() == 1
    os.utime(geotiff(tmp_path / "x.tif", np.full((16, 16, 2), 7, np.uint16)), ns=(1, 1))
    assert images.open_picture(path).pixels().max() == 7


def huge(path, side, tile=256, kinds=16, **more):
    """A tiled 8-bit TIFF of any size in about a second: its tiles are 16 different ones, compressed once."""
    y, x = np.mgrid[:tile, :tile]
    pieces = []
    for number in range(kinds):
        rng = np.random.default_rng(number)
        wave = np.sin(x / rng.uniform(4, 40) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(4, 40)) * 100 + 128
        pieces.append(zlib.compress((wave + rng.integers(0, 3, wave.shape)).astype(np.uint8).tobytes()))
    count = (-(-side // tile)) ** 2
    order = itertools.islice(itertools.cycle(np.random.default_rng(0).permutation(np.arange(997) % kinds).tolist()), count)
    tifffile.imwrite(path, (pieces[number] for number in order), shape=(side, side), dtype=np.uint8, tile=(tile, tile), compression="zlib", photometric="minisblack", **more)
    return str(path)


def test_twenty_thousand_pixels_square(tmp_path):
    """Only the touched tiles are read: a window takes milliseconds and less than a megabyte."""
    path = huge(tmp_path / "huge.tif", 20_000)
    source = open_source(path)
    assert source.picture(0).height == 20_000
    with pytest.raises(BadSample, match="give --tile 1024"):
        source.read(0)
    part(source.picture(0), 224, Random(0))
    tracemalloc.start()
    seen = {part(source.picture(0), 224, Random(draw)).pixels().tobytes() for draw in range(20)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(seen) == 20 and peak < 4e6, f"{peak / 1e6:.1f} MB"
    form = survey(source, tile=224)
    assert form.size == (224, 224) and "one constant" not in " ".join(form.said)
    assert any("measured on 64 pictures" in line for line in form.said), "of one file, many windows are measured"


@pytest.mark.parametrize("layout", [{"rowsperstrip": 8, "compression": "zlib"}, {}, {"tile": (256, 256)}])
def test_strips_and_plain_pixels_are_read_in_part(tmp_path, layout):
    array = np.broadcast_to(np.arange(4000, dtype=np.uint16)[:, None], (4000, 3000)).copy()
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="minisblack", **layout)
    picture = images.open_picture(str(tmp_path / "x.tif"))
    picture.cut(0, 0, 4, 4)
    tracemalloc.start()
    window = picture.cut(1000, 500, 64, 64).pixels()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(window[..., 0], array[1000:1064, 500:564]) and peak < array.nbytes / 8


def test_windows_of_a_scene_look_for_data(tmp_path):
    """A satellite scene whose left half is nodata: windows are drawn again until they hold some."""
    array = RNG.integers(1, 9000, (600, 600, 2)).astype(np.uint16)
    array[:, :300] = 0
    path = geotiff(tmp_path / "x.tif", array, 0, tile=(64, 64), compression="zlib")
    known = [part(images.open_picture(path), 64, Random(draw)).known for draw in range(60)]
    assert np.mean(np.array(known) >= 0.5) > 0.95


@pytest.mark.data
def test_real_scenes(shared_data, tmp_path):
    import tarfile

    archive = shared_data / "s1s2_flood_chip.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    for name, bands, low, high in (("S1Hand", 2, -60, 30), ("S2Hand", 13, 0, 7000)):
        path = next(tmp_path.rglob(f"*{name}.tif"))
        array = tifffile.imread(path).transpose(1, 2, 0)
        picture = images.open_picture(str(path))
        assert (picture.bands, picture.height) == (bands, 512)
        valid = np.isfinite(array) & (array != 0 if name == "S2Hand" else True)
        assert np.array_equal(picture.pixels()[valid], array[valid]) and np.isfinite(picture.pixels()).all()
        assert np.array_equal(picture.cut(100, 200, 50, 60).pixels(), array[100:150, 200:260])
        form = survey(open_source(str(path)), tile=64)
        assert form.size == (64, 64) and low < min(form.low) and max(form.high) < high


@pytest.mark.data
def test_real_patches_of_very_different_ranges(shared_data):
    archive = shared_data / "s2_wildfire.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    source = open_source(f"{archive}/patches/val")
    form = survey(source)
    assert form.in_chans == 5 and max(form.high[:3]) <= 255 < min(form.high[3:])
    x = Pictures(source, form, Views(), (32, 32)).still(range(16))
    assert x.isfinite().all() and (x.std(dim=(0, 2, 3)) > 0.3).all(), "each band on its own scale"
