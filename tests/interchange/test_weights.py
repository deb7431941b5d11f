"""Files of weights: every form that training code writes is opened, and nothing is ever unpickled."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle

import pytest
import torch
from safetensors.torch import save_file

from unmask.errors import Refused
from unmask.interchange import naming
from unmask.interchange.encoder import load_encoder
from unmask.interchange.weights import read, read_folder
from unmask.load import load

ENDINGS = [*naming.CHECKPOINTS, ".pth.tar"]


def state(of=1.0):
    return {"blocks.0.a": torch.full((3,), of), "b": torch.full((2, 2), of)}


@pytest.mark.parametrize("nest", [None, "model", "state_dict", "module", "model_state"])
def test_plain_and_nested_files(tmp_path, nest):
    wanted = state()
    torch.save({nest: wanted, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}}} if nest else wanted, tmp_path / "file.pth")
    save_file(wanted, tmp_path / "file.safetensors")
    for name in ("file.pth", "file.safetensors"):
        found = read(tmp_path / name).state
        assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model.", "_orig_mod.module."])
def test_wrappers_are_taken_off(tmp_path, prefix):
    torch.save({"model": {prefix + key: value for key, value in state().items()}}, tmp_path / "file.pth")
    assert read(tmp_path / "file.pth").state.keys() == state().keys()


@pytest.mark.parametrize("form", ["zip", "older"])
def test_the_settings_of_a_training_checkpoint_are_an_allowed_namespace(tmp_path, form):
    args = argparse.Namespace(model="mae_vit_base_patch16", norm_pix_loss=True, mask_ratio=0.6)
    torch.save({"model": state(), "args": args, "scaler": {}, "epoch": 7}, tmp_path / "checkpoint-7.pth", _use_new_zipfile_serialization=form == "zip")
    found = read(tmp_path / "checkpoint-7.pth")
    assert found.settings["norm_pix_loss"] is True and found.settings["mask_ratio"] == 0.6 and found.state.keys() == state().keys()
    assert argparse.Namespace not in torch.serialization.get_safe_globals(), "allowed for this file only"


def test_of_two_networks_the_averaged_one_is_taken(tmp_path):
    torch.save({"student": state(1.0), "teacher": state(2.0), "dino_loss": {"center": torch.zeros(3)}}, tmp_path / "dino.pth")
    found = read(tmp_path / "dino.pth")
    assert found.part == "teacher" and float(found.state["b"][0, 0]) == 2


def test_a_folder_of_several_parts(tmp_path):
    first, second = {"a": torch.ones(1)}, {"b": torch.zeros(1)}
    save_file(first, tmp_path / "model-00001-of-00002.safetensors")
    save_file(second, tmp_path / "model-00002-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}')
    assert read_folder(tmp_path).state.keys() == {"a", "b"}
    index.write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(Refused, match="download the folder again"):
        read_folder(tmp_path)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("form", ["pickle", "torch", "older", "beside the weights", "in the settings", "object"])
def test_no_ending_runs_anything(tmp_path, ending, form):
    path, mark = tmp_path / f"evil{ending}", tmp_path / "it-ran"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": Evil(mark)}))
    elif form == "beside the weights":
        torch.save({"model": state(), "extra": Evil(mark)}, path)
    elif form == "in the settings":
        torch.save({"model": state(), "args": argparse.Namespace(model=Evil(mark))}, path)
    else:
        torch.save(Evil(mark) if form == "object" else {"model": {"a": Evil(mark)}}, path, _use_new_zipfile_serialization=form != "older")
    for opens in (read, load_encoder, load):
        with pytest.raises(Refused, match="evil") as refusal:
            opens(path)
        assert "\n" not in str(refusal.value)
    assert not mark.exists()


@pytest.mark.parametrize("folder", [{"model_type": "vit_mae", "num_attention_heads": 2}, {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 32, 32]}}])
def test_no_folder_runs_anything(tmp_path, folder):
    import json

    (tmp_path / "config.json").write_text(json.dumps(folder))
    torch.save({"a": Evil(tmp_path / "it-ran")}, tmp_path / "pytorch_model.bin")
    for name in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(Refused, match="mkdir"):
            load_encoder(name)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("content", ["path", "module", "list", "numbers", "empty mapping", "text", "empty", "cut", "folder"])
def test_what_is_no_file_of_weights_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    whole = {"path": {"model": state(), "args": argparse.Namespace(out=pathlib.Path("x"))}, "module": torch.nn.Linear(2, 2), "list": [1], "empty mapping": {}}
    whole |= {"numbers": {"model": {"a": 3}}, "cut": {"a.b": torch.randn(999)}}
    if content == "folder":
        path.mkdir()
    elif content in whole:
        torch.save(whole[content], path)
    else:
        path.write_text("hello" if content == "text" else "")
    if content == "cut":
        path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(Refused, match=r"checkpoint\.pth") as refusal:
        read(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
    if content == "path":
        assert "PosixPath" in str(refusal.value) and "torch.save" in str(refusal.value), "what to do is said"


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(Refused, match=r"file\.safetensors"):
        read(tmp_path / "file.safetensors")
