"""A run, its file or an official file, to the learner that made it."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from unmask.errors import Refused
from unmask.interchange import official
from unmask.load import load, metadata_of
from unmask.methods.mae import MAE
from unmask.testing import SMALL, pictures

BUILD = SMALL | {"img_size": (32, 48), "in_chans": 5}


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return MAE(mask_ratio=".6:.8", norm_pix=False, decoder_width=32, decoder_depth=1).build(**BUILD).eval()


def write(learner, file, **changes):
    method = MAE(mask_ratio=".6:.8", norm_pix=False, decoder_width=32, decoder_depth=1)
    metadata = metadata_of(method, "mae", **BUILD | {"img_size": list(BUILD["img_size"])}) | changes
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(learner.state_dict(), file, metadata)


def same(one, other):
    x = pictures(2, 5, (32, 48))
    noise = torch.rand(2, one.draws(x))
    assert torch.equal(one(x, noise)["loss"], other(x, noise)["loss"])
    assert str(one.masking.ratio) == str(other.masking.ratio)


def test_a_run_folder_and_its_file(tmp_path, learner):
    write(learner, tmp_path / "model.safetensors")
    same(learner, load(tmp_path))
    same(learner, load(str(tmp_path / "model.safetensors")))


def test_a_run_that_has_not_ended_gives_its_newest_checkpoint(tmp_path, learner):
    older = MAE(norm_pix=False, decoder_width=32, decoder_depth=1).build(**BUILD)
    write(older, tmp_path / "checkpoints" / "step-999" / "model.safetensors")
    write(learner, tmp_path / "checkpoints" / "step-1000" / "model.safetensors")
    write(older, tmp_path / "checkpoints" / ".step-2000" / "model.safetensors")  # not complete
    same(learner, load(tmp_path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_official_full_file(tmp_path, learner, monkeypatch, suffix):
    monkeypatch.setattr(sys.modules["unmask.load"], "SIZES", {48: ("vit_tiny_patch16_224", 2)})
    torch.manual_seed(0)
    made = MAE(decoder_width=32, decoder_depth=3, decoder_heads=2).build("vit_tiny_patch16_224", (32, 32), 3, 8, width=48, heads=3).eval()
    monkeypatch.setattr(MAE, "build", lambda self, model, size, chans, patch, _build=MAE.build: _build(self, model, size, chans, patch, width=48, heads=3))
    state = official.to_mae(made.state_dict(), (8, 8)) | {"decoder_pos_embed": torch.zeros(1, 17, 32)}
    if suffix == ".pth":
        torch.save({"model": state}, tmp_path / "full.pth")
    else:
        save_file(state, tmp_path / "full.safetensors")
    found = load(tmp_path / f"full{suffix}")
    x = pictures(2)
    noise = torch.rand(2, 16)
    assert torch.equal(found(x, noise)["loss"], made(x, noise)["loss"]) and found.objectives["pixels"].target.normalize


def refusal(path) -> str:
    with pytest.raises(Refused) as refused:
        load(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path, learner):
    assert "nowhere" in refusal(tmp_path / "nowhere")
    assert "no run with weights" in refusal(tmp_path)
    save_file(learner.encoder.trunk.state_dict(), tmp_path / "encoder.safetensors")
    assert "decoder" in refusal(tmp_path / "encoder.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    assert "broken.safetensors" in refusal(tmp_path / "broken.safetensors")
    write(learner, tmp_path / "future.safetensors", format="99")
    assert "update unmask" in refusal(tmp_path / "future.safetensors")
    write(learner, tmp_path / "unknown.safetensors", method="maee")
    assert "did you mean mae" in refusal(tmp_path / "unknown.safetensors")
    settings = {"mask_ratio": ".75", "decoder_depth": 3, "decoder_width": 32}
    write(learner, tmp_path / "other.safetensors", settings=json.dumps(settings))
    assert "other.safetensors does not fit" in refusal(tmp_path / "other.safetensors")
    state = official.to_mae(learner.state_dict(), (8, 8))
    save_file(state, tmp_path / "odd.safetensors")
    assert "width 48" in refusal(tmp_path / "odd.safetensors")
