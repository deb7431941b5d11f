"""Files as people have them go from the folder to a trained encoder and on to its features: deep, medical, arrays, larger than memory."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.errors import Refused

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("pydicom")

from dicom_files import hounsfield, write  # noqa: E402
from test_tiff import geotiff, huge  # noqa: E402

TINY = {"model": "vit_tiny_patch16_224", "width": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": 32, "batch_size": 8, "workers": 0, "accelerator": "cpu"}
TINY |= {"method.decoder_width": 32, "method.decoder_depth": 1, "method.decoder_heads": 2, "steps": 4, "monitor_every": 4, "seed": 3}
COUNT = 20


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def folder_of(kind, folder):
    """COUNT small pictures of a kind, and their number of channels."""
    for number in range(COUNT):
        slice_ = hounsfield(number)
        if kind == "dicom":
            more = {"WindowCenter": 40, "WindowWidth": 400} if number else {}
            write(folder / f"1.2.{number}", (slice_ + 1024).astype(np.uint16), BitsStored=12, RescaleSlope=1, RescaleIntercept=-1024, **more)
        elif kind == "volume":
            volume = np.stack([hounsfield(number + part) for part in range(4)])
            write(folder / f"{number}.dcm", volume)
        elif kind == "png16":
            Image.fromarray(((slice_ + 1024) * 4).astype(np.uint16)).save(folder / f"{number}.png")
        elif kind == "float":
            tifffile.imwrite(folder / f"{number}.tif", slice_.astype(np.float32) / 100)
        elif kind == "npy":
            np.save(folder / f"{number}.npy", np.stack([slice_, -slice_]))  # channels first
        else:
            scene = np.stack([slice_, slice_ // 2, -slice_], -1).astype(np.float32)
            scene[:5] = np.nan
            geotiff(folder / f"{number}.tif", scene, "nan", compression="zlib", tile=(16, 16))
    return {"npy": 2, "geotiff": 3}.get(kind, 1)


@pytest.mark.parametrize("kind", ["dicom", "volume", "png16", "float", "npy", "geotiff"])
def test_a_folder_trains_and_is_seen_alike_afterwards(kind, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    channels = folder_of(kind, tmp_path / "data")
    run = unmask.pretrain("mae", tmp_path / "data", tmp_path / "run", **TINY)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert np.isfinite(losses).all() and not (run / "quarantine.jsonl").exists()
    said = capsys.readouterr().out
    assert ("own window" if kind == "dicom" else "percentiles") in said
    assert f"{channels} channel" in said
    unmask.embed(run, tmp_path / "data", out=str(tmp_path / "f.npz"), workers=0, accelerator="cpu")
    with np.load(tmp_path / "f.npz") as file:
        features, paths = file["features"], file["paths"]
    assert len(features) == COUNT
    encoder, transform = unmask.load_encoder(run), unmask.load_transform(run)
    with torch.no_grad():
        tokens = encoder.forward_features(transform(str(paths[3]))[None])
    assert np.allclose(tokens[0, 0].numpy(), features[3], atol=1e-4), "the transform sees what embed saw"


def test_an_asked_window_travels_with_the_encoder(tmp_path):
    (tmp_path / "data").mkdir()
    folder_of("dicom", tmp_path / "data")
    run = unmask.pretrain("mae", tmp_path / "data", tmp_path / "run", window="lung", **TINY)
    assert json.loads((run / "data.json").read_text())["statistics"]["window"] == [-600, 1500]
    transform = unmask.load_transform(run)
    assert (transform.window, transform.low, transform.high) == ((-600, 1500), (-1350,), (150,))
    out = unmask.export(run, out=tmp_path / "e.safetensors", to="safetensors")
    assert unmask.load_transform(out["out"]).window == (-600, 1500)


def test_an_encoder_of_photographs_sees_deep_pictures_scaled(tmp_path, capsys):
    """A network for 8-bit colour (published weights are) measures the range of CT slices and sees them in its three channels."""
    (tmp_path / "data").mkdir()
    folder_of("dicom", tmp_path / "data")
    look = {"in_chans": 3, "img_size": 32, "workers": 0, "accelerator": "cpu"}
    for window in (None, "soft", "measured"):
        unmask.embed("random:vit_tiny_patch16_224", tmp_path / "data", out=str(tmp_path / "f.npz"), window=window, **look)
        with np.load(tmp_path / "f.npz") as file:
            assert len(file["features"]) == COUNT and np.ptp(file["features"]) > 0.1
        assert {None: "own window", "soft": "black is -150", "measured": "percentiles"}[window] in capsys.readouterr().out


def test_a_tiff_of_twenty_thousand_pixels_square_trains(tmp_path):
    path = huge(tmp_path / "huge.tif", 20_000)
    with pytest.raises(Refused, match="--tile 1024"):
        unmask.pretrain("mae", path, tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()
    run = unmask.pretrain("mae", path, tmp_path / "run", tile=224, **TINY)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4 and not (run / "quarantine.jsonl").exists()
    assert unmask.load_transform(run).tile == 224
    unmask.embed(run, path, out=str(tmp_path / "f.npz"), workers=0, accelerator="cpu")
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape == (1, 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "deep PNG", "TIFF", "NPY"])
def test_every_large_form_names_the_option_and_takes_it(kind, tmp_path, monkeypatch):
    """What is too large to decode says so in one line with --tile, and trains with it; a JPEG needs it only where an eighth is too large."""
    from unmask.data import raster
    from unmask.data.sources import open_source
    from unmask.data.statistics import survey

    array = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    path = tmp_path / {"JPEG": "x.jpg", "PNG": "x.png", "deep PNG": "x.png", "TIFF": "x.tif", "NPY": "x.npy"}[kind]
    if kind == "NPY":
        np.save(path, array)
        np.save(tmp_path / "y.npy", array)
    elif kind == "TIFF":
        tifffile.imwrite(path, array, photometric="rgb", compression="zlib", tile=(64, 64))
    elif kind == "deep PNG":
        array = array.astype(np.uint16) * 257
        path.write_bytes(pytest.importorskip("imagecodecs").png_encode(array))
    else:
        Image.fromarray(array).save(path)
    data = str(tmp_path if kind == "NPY" else path)
    monkeypatch.setattr(raster, "LIMIT", 300 if kind == "JPEG" else 3000)
    with pytest.raises(Refused, match="give --tile 1024"):
        survey(open_source(data))
    assert survey(open_source(data), tile=40).size == (40, 40)
    if kind == "deep PNG":
        assert np.array_equal(open_source(data).picture(0).cut(7, 9, 40, 50).pixels(), array[7:47, 9:59])
    if kind == "JPEG":
        monkeypatch.setattr(raster, "LIMIT", 3000)
        picture = open_source(data).picture(0)
        assert picture.oversized and picture.pixels(8).shape == (38, 50, 3)
        from unmask.data.views import centre_view

        assert centre_view(picture, (8, 8), 3, True).shape == (3, 8, 8), "evaluation looks at all of it, smaller"


@pytest.mark.parametrize("form", ["timm", "hf", "safetensors"])
def test_window_and_tile_travel_through_every_export(form, tmp_path):
    (tmp_path / "data").mkdir()
    folder_of("dicom", tmp_path / "data")
    run = unmask.pretrain("mae", tmp_path / "data", tmp_path / "run", window="file", tile=40, **TINY)
    if form == "hf":
        pytest.importorskip("transformers")
    out = unmask.export(run, out=tmp_path / form, to=form)["out"]
    ours, theirs = unmask.load_transform(run), unmask.load_transform(out)
    assert (theirs.window, theirs.tile) == (ours.window, ours.tile) == ("file", 40)
    name = str(tmp_path / "data" / "1.2.3")
    assert torch.equal(ours(name), theirs(name))
