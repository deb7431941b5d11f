"""The transform of an encoder gives exactly the numbers that evaluation computes with, whatever kind of picture it is."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import unmask
from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.transform import Transform, format_of
from unmask.errors import Refused
from unmask.interchange.timm import Encoder
from unmask.settings import Views


def seeing(in_chans: int, img_size: tuple[int, int], low=(0.0,), high=(255.0,)) -> Encoder:
    """An encoder of which only the sight matters."""
    mean, std = tuple(0.3 + 0.02 * i for i in range(in_chans)), tuple(0.2 + 0.01 * i for i in range(in_chans))
    return Encoder(None, "vit_tiny_patch16_224", img_size, in_chans, mean, std, low, high, source="a test")


@pytest.fixture(scope="module")
def photographs(imagenette, tmp_path_factory):
    """Real photographs as people keep them: JPEG, turned, grey, with alpha, with a palette, of the input's own size."""
    folder = tmp_path_factory.mktemp("kinds")
    paths = sorted((imagenette / "train").rglob("*.[jJ]*"))[::17][:8]
    for i, path in enumerate(paths):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6
        others = [picture.convert("L"), picture.convert("P"), picture.convert("RGBA"), picture.resize((48, 32))]
        picture.crop((0, 0, 150 + 13 * i, 190 - 9 * i)).save(folder / f"{i}.jpg", **({"exif": exif} if i == 1 else {}))
        if i < 4:
            others[i].save(folder / ("grey.png", "palette.png", "alpha.png", "own.png")[i])
    return folder


@pytest.mark.parametrize("size", [(32, 48), (56, 56), (240, 200)])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_photographs(photographs, size, in_chans):
    encoder = seeing(in_chans, size)
    seen, transform = Pictures(open_source(photographs), format_of(encoder), Views(), size), Transform(encoder)
    count = 0
    for x, _, names in seen.still_batches(4):
        for row, name in zip(x, names):
            count += 1
            with Image.open(name) as picture:
                assert torch.equal(transform(picture), row), name
            assert torch.equal(transform(name), row), name
    assert count == 12


@pytest.mark.parametrize("case", ["16-bit grey", "16-bit colour", "13 bands", "float, 2 channels", "8-bit, 5 channels"])
@pytest.mark.parametrize("size", [(24, 40), (20, 20)])
def test_arrays_in_stored_units(case, size, tmp_path):
    rng = np.random.default_rng(4)
    channels, kind, top = {"16-bit grey": (1, np.uint16, 4095), "16-bit colour": (3, np.uint16, 65535), "13 bands": (13, np.uint16, 9000),
                           "float, 2 channels": (2, np.float32, 1), "8-bit, 5 channels": (5, np.uint8, 255)}[case]  # fmt: skip
    smooth = rng.uniform(0, top, (3, 8, 7, channels)).repeat(6, axis=1).repeat(6, axis=2)  # (3, 48, 42, C)
    arrays = list(smooth.astype(kind))
    ranges = ((0.0,), (255.0,)) if kind is np.uint8 else (tuple(0.01 * top + i for i in range(channels)), tuple(0.9 * top - i / 100 for i in range(channels)))
    encoder = seeing(channels, size, *ranges)
    transform = Transform(encoder)
    if case == "13 bands":
        for i, array in enumerate(arrays):
            tifffile.imwrite(tmp_path / f"{i}.tif", array, photometric="minisblack", planarconfig="contig")
        source = open_source(tmp_path)
    else:
        np.save(tmp_path / "stack.npy", np.stack(arrays))
        source = open_source(tmp_path / "stack.npy")
    wanted = Pictures(source, format_of(encoder), Views(), size).still(range(3))
    for array, row in zip(arrays, wanted):
        x = transform(array[..., 0] if channels == 1 else array)
        assert x.shape == (channels, *size) and x.dtype == torch.float32 and torch.equal(x, row)
    if case == "13 bands":
        assert torch.equal(transform(tmp_path / "1.tif"), wanted[1])
    assert torch.equal(pickle.loads(pickle.dumps(transform))(arrays[0]), wanted[0])


def test_what_cannot_be_used_is_said(tmp_path):
    eight, deep = Transform(seeing(3, (16, 16))), Transform(seeing(1, (16, 16), (0.0,), (4095.0,)))
    for transform, picture, says in [
        (eight, np.zeros((20, 20, 3), np.float32), "float32 picture among 8-bit"),
        (eight, np.zeros((20, 20, 4), np.uint8), "4 bands where the run has 3"),
        (eight, tmp_path / "none.jpg", "none.jpg: no such file"),
        (eight, torch.zeros(3, 16, 16), "Tensor is no picture"),
        (deep, np.zeros((20, 20), np.uint8), "8-bit picture among"),
        (deep, np.full((20, 20), np.nan, np.float32), "NaN"),
    ]:
        with pytest.raises(ValueError, match=says):
            transform(picture)
    with pytest.raises(Refused, match="no mean and std"):
        unmask.load_transform("random:vit_tiny_patch16_224", in_chans=5)
    assert "16x16, 1 channels, range 0 to 4095" in repr(deep)
