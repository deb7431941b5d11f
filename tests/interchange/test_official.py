"""Official state dicts: names both ways, and files that are refused. Published key lists: methods/test_mae.py."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from unmask.errors import Refused
from unmask.interchange import official
from unmask.methods.mae import MAE
from unmask.testing import SMALL


@pytest.mark.parametrize(("patch", "channels"), [((8, 8), 3), ((4, 2), 5), ((16, 16), 1)])
def test_the_permutation_is_the_order_of_the_official_patchify(patch, channels):
    x = torch.randn(channels, *patch)
    theirs = torch.einsum("chw->hwc", x).reshape(-1)  # models_mae.py: nchpwq -> nhwpqc
    assert torch.equal(official.channel_first(theirs, patch), x.flatten())
    assert torch.equal(official.channel_last(x.flatten(), patch), theirs)


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_there_and_back(channels):
    learner = MAE().build(**SMALL, img_size=(32, 48), in_chans=channels)
    state = learner.state_dict()
    names = official.to_mae(state, learner.encoder.patch)
    assert len(names) == len(state) and {"cls_token", "decoder_pred.weight", "blocks.1.mlp.fc2.bias", "mask_token"} <= names.keys()
    again, left = official.from_mae(names)
    assert not left and again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)


def test_an_unknown_key_is_reported():
    state = {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4), "head.weight": torch.zeros(1), "decoder_pos_embed": torch.zeros(1)}
    ours, left = official.from_mae(state)
    assert left == ["head.weight"] and list(ours) == ["encoder.trunk.patch_embed.proj.weight"]


@pytest.mark.parametrize("nest", [None, "model", "state_dict", "module"])
def test_reads_plain_and_nested_files(tmp_path, nest):
    state = {"a": torch.randn(3), "b": torch.randn(2, 2)}
    torch.save({nest: state, "epoch": 3} if nest else state, tmp_path / "file.pth")
    save_file(state, tmp_path / "file.safetensors")
    for name in ("file.pth", "file.safetensors"):
        found = official.read(str(tmp_path / name))
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("content", ["pickle", "torch", "text", "empty", "numbers", "cut"])
def test_nothing_is_ever_unpickled(tmp_path, capsys, content):
    path = tmp_path / "checkpoint.pth"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif content == "torch":
        torch.save({"model": {"a": Evil()}}, path)
    elif content == "numbers":
        torch.save({"model": {"a": 3}}, path)
    elif content == "cut":
        torch.save({"a": torch.randn(999)}, path)
        path.write_bytes(path.read_bytes()[:900])
    else:
        path.write_text("hello" if content == "text" else "")
    with pytest.raises(Refused, match=r"checkpoint\.pth") as refusal:
        official.read(str(path))
    assert "\n" not in str(refusal.value) and "unpickled" not in capsys.readouterr().out


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(Refused, match=r"file\.safetensors"):
        official.read(str(tmp_path / "file.safetensors"))
