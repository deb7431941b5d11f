"""`--init` in a whole run: the network is that of the weights, fitted to this run's pictures, and what was done is said and logged."""

from __future__ import annotations

import json

import pytest
import torch

import unmask
from unmask.interchange.encoder import load_encoder
from unmask.load import load

SMALL = {"method.decoder_width": 32, "method.decoder_depth": 1, "batch_size": 16, "workers": 0, "accelerator": "cpu", "seed": 3}


@pytest.fixture(scope="module")
def source(imagenette, tmp_path_factory):
    out = tmp_path_factory.mktemp("source") / "run"
    sizes = {"model": "vit_tiny_patch16_224", "width": 48, "depth": 2, "heads": 3, "patch_size": 8, "img_size": (32, 32)}
    return unmask.pretrain(method="mae", data=str(imagenette / "train"), out=out, steps=2, **SMALL, **sizes)


def test_a_run_goes_on_from_a_run_at_another_size(source, imagenette, tmp_path, capsys):
    words = {name: value for name, value in SMALL.items() if not name.startswith("method.")}  # the decoder is as large as the source's
    run = unmask.pretrain(method="mae", data=str(imagenette / "train"), out=tmp_path / "run", steps=1, lr=1e-30, init=str(source), img_size=(48, 64), **words)
    said = capsys.readouterr().out
    for line in (f"weights of {source}", "places of a grid of 4x4 to 6x8: interpolated", "decoder: continues from the source's"):
        assert line in said and line in (run / "log.txt").read_text()
    there, here = load_encoder(source, img_size=(48, 64)), load_encoder(run)
    assert here.kwargs == there.kwargs, "the network is that of the weights"
    x = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(here.model.forward_features(x), there.model.forward_features(x), rtol=1e-4, atol=1e-5)
    decoders = [load(path).objectives["pixels"].decoder.state_dict() for path in (source, run)]
    assert all(torch.allclose(decoders[0][key], decoders[1][key], atol=1e-6) for key in decoders[0])
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0 and "knn" in first, "kNN before the first step is that of the weights"


def test_a_run_goes_on_from_colour_to_grey_with_larger_patches(source, imagenette, tmp_path, capsys):
    words = {"init": str(source), "in_chans": 1, "patch_size": 16, "img_size": (64, 64), "steps": 1}
    run = unmask.pretrain(method="mae", data=str(imagenette / "val"), out=tmp_path / "run", **words, **SMALL)
    said = capsys.readouterr().out
    assert "3 channels to 1" in said and "patches of 8x8 to 16x16" in said and "last layer" in said
    assert load_encoder(run).in_chans == 1
    assert unmask.resume(run) == run


def test_a_network_that_was_said_otherwise_is_refused_before_the_first_step(source, imagenette, tmp_path):
    words = {"init": str(source), "model": "vit_tiny_patch16_224", "patch_size": 8, "img_size": (32, 32), "steps": 1}
    with pytest.raises(unmask.Refused, match=r"--init .* does not fit"):
        unmask.pretrain(method="mae", data=str(imagenette / "val"), out=tmp_path / "run", **words, **SMALL)
    assert not (tmp_path / "run").exists()
