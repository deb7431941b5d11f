"""The format of a set: channels, range, mean and deviation, and what is said about them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from unmask.data.sources import open_source
from unmask.data.statistics import Format, survey
from unmask.errors import Refused


def test_eight_bit_colour_equals_numpy():
    array = np.random.default_rng(0).integers(0, 256, (40, 30, 30, 3), np.uint8)
    array[..., 1] //= 2
    form = survey(open_source(array))
    assert (form.in_chans, form.low, form.high, form.size) == (3, (0,) * 3, (255,) * 3, (30, 30)) and form.eight_bit
    scaled = array / 255
    assert np.allclose(form.mean, scaled.mean((0, 1, 2)), atol=1e-5) and np.allclose(form.std, scaled.std((0, 1, 2)), atol=1e-5)
    assert Format(**json.loads(json.dumps(form.as_dict()))) == form
    assert survey(open_source(array), seed=5).mean == form.mean or np.allclose(survey(open_source(array), seed=5).mean, form.mean, atol=1e-4)
    assert survey(open_source(array), normalize="imagenet").mean == (0.485, 0.456, 0.406)


def test_deep_bands_are_scaled_by_percentiles():
    array = (np.random.default_rng(0).normal(size=(30, 13, 20, 20)) * 500 + 3000).clip(0).astype(np.uint16)
    array[0, :, 0, 0] = 65535
    form = survey(open_source(array))
    assert form.in_chans == 13 and not form.eight_bit
    assert 1000 < min(form.low) < 2000 and 4000 < max(form.high) < 6000 and all(0.4 < mean < 0.6 for mean in form.mean)
    assert any("percentile" in line for line in form.said)
    with pytest.raises(Refused, match="imagenet"):
        survey(open_source(array), normalize="imagenet")
    with pytest.raises(Refused, match="in_chans 3"):
        survey(open_source(array), in_chans=3)


def test_a_deep_range_is_never_taken_for_eight_bits():
    array = np.random.default_rng(0).choice([0, 255], (20, 16, 16)).astype(np.uint16)
    assert not survey(open_source(array)).eight_bit


def test_floats_within_one_stay():
    form = survey(open_source(np.random.default_rng(0).random((10, 16, 16, 2)).astype(np.float32)))
    assert form.low == (0, 0) and form.high == (1, 1) and "kept as they are" in " ".join(form.said)


def test_a_constant_channel_is_divided_by_one():
    array = np.random.default_rng(0).integers(0, 255, (10, 16, 16, 3), np.uint8)
    array[..., 2] = 7
    form = survey(open_source(array))
    assert form.std[2] == 1 and "channel 2" in " ".join(form.said)


def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_the_majority_decides_and_in_chans_goes_before_it(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        array = rng.integers(0, 255, (16, 16, 3), np.uint8)
        (tmp_path / f"{number}.png").write_bytes(encoded(array if number < 8 else array[..., 0]))
    source = open_source(str(tmp_path))
    form = survey(source)
    assert form.in_chans == 3 and "4 of 1 channel are converted" in form.said[0]
    assert survey(source, in_chans=1).in_chans == 1
    with pytest.raises(Refused, match="in_chans 5"):
        survey(source, in_chans=5)


def test_bad_samples_are_said_and_only_all_bad_refused(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"broken" if number else encoded(np.full((8, 8), 9, np.uint8)))
    form = survey(open_source(str(tmp_path)))
    assert "3 of 4" in form.said[0] and "max_bad_share" in form.said[0]
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(Refused, match="none of the 4"):
        survey(open_source(str(tmp_path)))


def test_a_missing_extra_is_refused(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    from unmask.data import tiff

    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8, 4), np.uint8), photometric="rgb", extrasamples=["unspecified"])
    monkeypatch.setattr(tiff, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"unmask\[geo\]"):
        survey(open_source(str(tmp_path)))
