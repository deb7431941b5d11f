"""Checkpoints are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from torch import nn

from unmask.errors import Failed
from unmask.run import checkpoint, tensors


def parts(value: float = 1.0) -> tuple[dict, dict]:
    model = {"a": torch.full((3, 4), value), "half": torch.full((5,), value, dtype=torch.bfloat16), "count": torch.tensor(7), "none": torch.zeros(0, 2)}
    return model, {"a/exp_avg": torch.full((3, 4), -value), "a/step": torch.tensor(value)}


def wrote(folder, *steps: int, keep: int = 3) -> checkpoint.Writer:
    writer = checkpoint.Writer(folder, keep)
    for step in steps:
        writer.save(step, *parts(float(step)), {"threads": 1}, {"method": "mae"})
    writer.join()
    return writer


def test_a_file_is_what_safetensors_reads(tmp_path):
    model, _ = parts()
    odd = model | {"flag": torch.tensor([True, False]), "byte": torch.arange(3, dtype=torch.uint8), "wide": torch.randn(2, 3, dtype=torch.float64)}
    summed = tensors.write(tmp_path / "x.safetensors", odd, {"said": "ä"})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"said": "ä"}
        assert set(file.keys()) == set(odd)
        for name, tensor in odd.items():
            found = file.get_tensor(name)
            assert found.dtype == tensor.dtype and torch.equal(found, tensor)
    assert summed == tensors.checksum(tmp_path / "x.safetensors")


def test_what_is_saved_comes_back(tmp_path):
    wrote(tmp_path, 10)
    found, said = checkpoint.newest(tmp_path)
    assert said == [] and found.state["step"] == 10 and found.state["threads"] == 1
    for kept, given in zip((found.model, found.optimizer), parts(10.0)):
        assert set(kept) == set(given) and all(torch.equal(kept[name], given[name]) for name in given)
    assert sorted(path.name for path in (tmp_path / "step-00000010").iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]


def test_the_last_few_are_kept_and_last_names_the_newest(tmp_path):
    wrote(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step-00000004", "step-00000005"]
    assert (tmp_path / "last" / "state.json").is_file() and os.readlink(tmp_path / "last") == "step-00000005"
    assert not list(tmp_path.glob(".*"))


def test_saving_copies_so_the_loop_may_go_on(tmp_path, monkeypatch):
    model, moments = parts(1.0)
    slow = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a: (time.sleep(0.3), slow(*a)))
    writer = checkpoint.Writer(tmp_path)
    before = time.monotonic()
    writer.save(1, model, moments, {}, {})
    assert time.monotonic() - before < 0.25
    model["a"].zero_()
    writer.join()
    assert checkpoint.newest(tmp_path)[0].model["a"].eq(1).all()


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "state"])
def test_a_damaged_newest_falls_back_and_says_so(tmp_path, damage):
    wrote(tmp_path, 1, 2)
    file = tmp_path / "step-00000002" / "model.safetensors"
    if damage == "cut":
        os.truncate(file, 100)
    elif damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "missing":
        file.unlink()
    else:
        (file.parent / "state.json").write_text("{")
    found, said = checkpoint.newest(tmp_path)
    assert found.state["step"] == 1
    assert len(said) == 1 and "step-00000002" in said[0] and "damaged" in said[0]


def test_without_a_complete_one_there_is_none(tmp_path):
    assert checkpoint.newest(tmp_path) == (None, [])
    wrote(tmp_path, 1)
    (tmp_path / "step-00000001" / "state.json").unlink()
    found, said = checkpoint.newest(tmp_path)
    assert found is None and len(said) == 1


def test_a_full_disk_is_one_line_and_leaves_the_one_before(tmp_path, monkeypatch):
    writer = wrote(tmp_path, 1)
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:  # the model is written, the optimiser is not
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    writer.save(2, *parts(2.0), {}, {})
    with pytest.raises(Failed, match="No space left on device") as caught:
        writer.join()
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir() if path.name != "last"] == ["step-00000001"]
    writer.save(3, *parts(3.0), {}, {})  # and the next one is written again
    writer.join()
    assert checkpoint.newest(tmp_path)[0].state["step"] == 3


def test_leftovers_are_swept_at_the_next_start(tmp_path):
    for name in (".step-00000007.writing", ".step-00000003.deleted"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    wrote(tmp_path, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "step-00000008"]


def test_an_optimiser_goes_on_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def go(model, optimizer, steps):
        for i in range(*steps):
            optimizer.zero_grad()
            model(torch.arange(6.0) + i).square().sum().backward()
            optimizer.step()

    go(model, optimizer, (0, 3))
    wrote_ = checkpoint.Writer(tmp_path)
    wrote_.save(3, model.state_dict(), checkpoint.optimizer_tensors(optimizer, model), {}, {})
    wrote_.join()
    go(model, optimizer, (3, 6))
    other = nn.Linear(6, 5)
    second = torch.optim.AdamW(other.parameters(), lr=0.1, fused=True)
    go(other, second, (0, 1))
    found = checkpoint.newest(tmp_path)[0]
    other.load_state_dict(found.model)
    checkpoint.load_optimizer(second, other, found.optimizer)
    go(other, second, (3, 6))
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)


KILLED = """
import sys, torch
from pathlib import Path
from unmask.run import checkpoint
writer, step = checkpoint.Writer(Path(sys.argv[1]), keep=2), 0
while True:
    step += 1
    writer.save(step, {"a": torch.full((400_000,), float(step))}, {"a/m": torch.full((400_000,), float(-step))}, {}, {})
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_only_complete_ones(tmp_path):
    for delay in (0.02, 0.13, 0.31):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        while int(process.stdout.readline()) < 5:
            pass
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in checkpoint.complete(tmp_path):
            found = checkpoint.read(path)  # raises where one is damaged
            assert found.model["a"].eq(found.state["step"]).all() and found.optimizer["a/m"].eq(-found.state["step"]).all()
        assert checkpoint.newest(tmp_path)[1] == []
    assert json.loads((tmp_path / "last" / "state.json").read_text())["step"] >= 3
