"""The loop trains any learner, exactly: resumed, accumulated, on bad numbers, and on several processes."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import nn

from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.statistics import survey
from unmask.errors import Failed
from unmask.methods.mae import MAE
from unmask.model import Learner
from unmask.run import checkpoint
from unmask.run.folder import RunFolder
from unmask.settings import Train, Views
from unmask.training import loop
from unmask.training.kept import in_a_row
from unmask.training.monitor import Monitor
from unmask.training.stop import Stop

STEPS = 12
SETTINGS = Train(steps=STEPS, batch_size=8, lr=1e-3, warmup_epochs=0.5, monitor_every=100, checkpoint_every=4, accelerator="cpu", precision="32-true", seed=3)


class Average(Learner):
    """A learner without an encoder: it predicts the next picture's mean colour from a picture, with dropout and noise."""

    def __init__(self, bad: tuple[int, ...] = (), width: int = 6):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.2), nn.Linear(width, 3))
        self.bad, self.at = bad, 0.0
        self.register_buffer("seen", torch.zeros(()))

    def draws(self, x):
        return 2

    def before_step(self, progress, u):
        self.at = progress

    def forward(self, x, noise=None, mask=None, rows=None):
        noise = noise if rows is None else noise[rows]
        colour = x.mean((2, 3)) + noise.mean(1, keepdim=True)  # (B, 3)
        loss = (self.map(colour) - colour).square().mean()
        return {"loss": loss * (math.nan if round(self.at * STEPS) in self.bad else 1.0)}

    def after_step(self, progress):
        self.seen += 1


class Parted(Average):
    """A loss of two parts."""

    def forward(self, x, noise=None, mask=None, rows=None):
        loss = super().forward(x, noise, mask, rows)["loss"]
        return {"loss": loss, "near_by": loss / 4, "far": 3 * loss / 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npz"
    random = np.random.default_rng(0)
    smooth = np.cumsum(random.normal(size=(40, 24, 24, 3)), axis=1)
    np.savez(path, images=((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8), labels=np.arange(40) % 4)
    return path


def pictures_of(data: Path) -> Pictures:
    source = open_source(str(data))
    return Pictures(source, survey(source), Views(), (16, 16), 3)


def mae() -> Learner:
    torch.manual_seed(0)
    return MAE(decoder_width=32, decoder_depth=1).build("vit_tiny_patch16_224", (16, 16), 3, 4, width=32, depth=2, heads=2)


def go(run: Path, learner: Learner, data: Path, settings: Train = SETTINGS, workers: int = 0, stop: Stop | None = None) -> RunFolder:
    folder = RunFolder.open(run) if (run / "config.yaml").exists() else RunFolder.create(run, "format: 1\n")
    fabric = Fabric(accelerator="cpu", devices=1, precision=settings.precision)
    fabric.launch()
    pictures = pictures_of(data)
    watch = partial(Monitor, learner, pictures, folder.pictures, settings)
    loop.train(fabric, learner, pictures, settings, workers, folder, stop or Stop(), {"format": "1"}, watch)
    return folder


def rows_of(folder: RunFolder) -> list[dict]:
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def equal(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


class Break(Exception):
    """Stands for a kill."""


def break_at(monkeypatch, step: int) -> None:
    """Have the loop break in the middle of a step."""
    real = loop.seeds.reseed

    def reseed(seed, purpose, *where):
        if where and where[0] == step:
            raise Break
        real(seed, purpose, *where)

    monkeypatch.setattr(loop.seeds, "reseed", reseed)


@pytest.mark.parametrize("make", [Average, mae])
@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, accumulate=2, clip=0.1, weight_decay_end=0.2)])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, data, make, settings):
    torch.manual_seed(0)
    whole = make()
    torch.manual_seed(0)
    broken, again = make(), make()
    steps = rows_of(go(tmp_path / "whole", whole, data, settings))
    with monkeypatch.context() as patch:
        break_at(patch, 7)
        with pytest.raises(Break):
            go(tmp_path / "broken", broken, data, settings, workers=1)
    for thread in threading.enumerate():
        if thread.name == "checkpoint":  # a kill would end it; left alone it may still write what the next run has not found
            thread.join()
    folder = go(tmp_path / "broken", again, data, settings)
    assert equal(whole, again) and not equal(whole, make())
    kept = rows_of(folder)
    assert [row["step"] for row in kept] == [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in kept] == [row["loss"] for row in steps]


def test_without_a_complete_checkpoint_it_starts_at_step_0(tmp_path, monkeypatch, data):
    torch.manual_seed(0)
    whole, broken, again = Average(), Average(), Average()
    for one in (broken, again):
        one.load_state_dict(whole.state_dict())
    go(tmp_path / "whole", whole, data)
    with monkeypatch.context() as patch:
        break_at(patch, 2)
        with pytest.raises(Break):
            go(tmp_path / "broken", broken, data)
    assert not checkpoint.complete(tmp_path / "broken" / "checkpoints")
    go(tmp_path / "broken", again, data)
    assert equal(whole, again)


def test_the_rate_follows_the_schedule_from_zero(tmp_path, data):
    rates = [row["lr"] for row in rows_of(go(tmp_path / "run", Average(), data))]
    assert rates[0] == 0 and max(rates) <= 1e-3 and rates[-1] < rates[len(rates) // 2]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_part_of_a_loss_is_written_under_its_name(tmp_path, data, accumulate):
    folder = go(tmp_path / "run", Parted(), data, replace(SETTINGS, accumulate=accumulate))
    for row in rows_of(folder):
        assert row["loss.near_by"] == pytest.approx(row["loss"] / 4) and row["loss.far"] + row["loss.near_by"] == pytest.approx(row["loss"])
    assert " = near by " in (folder.path / "log.txt").read_text()
    alone = go(tmp_path / "alone", Average(), data)
    assert not any(name.startswith("loss.") for row in rows_of(alone) for name in row) and " = " not in (alone.path / "log.txt").read_text()


def test_accumulation_changes_nothing_but_rounding(tmp_path, data):
    torch.manual_seed(0)
    learners = [mae(), mae()]
    losses = [[row["loss"] for row in rows_of(go(tmp_path / str(parts), learner, data, replace(SETTINGS, accumulate=parts)))] for parts, learner in zip((1, 4), learners)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for name, tensor in learners[0].state_dict().items():
        torch.testing.assert_close(tensor, learners[1].state_dict()[name], rtol=0, atol=3e-4)  # AdamW makes a full step of the rounding in gradients that are 0, such as the keys' biases


def test_a_step_with_bad_numbers_is_as_if_it_had_not_been(tmp_path, monkeypatch, data):
    """NaN at one step: weights and the optimiser's state are those of a run whose optimiser was not called there."""
    torch.manual_seed(0)
    whole, poisoned = Average(), Average(bad=(5,))
    poisoned.load_state_dict(whole.state_dict())
    folder = go(tmp_path / "poisoned", poisoned, data)
    real, calls = torch.optim.AdamW.step, []

    def step(self, closure=None):
        calls.append(1)
        return real(self, closure) if len(calls) != 6 else None

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    plain = go(tmp_path / "whole", whole, data)
    assert equal(whole, poisoned)
    found, other = (load_file(one.checkpoints / "last" / "optimizer.safetensors") for one in (folder, plain))
    assert found.keys() == other.keys() and all(torch.equal(found[name], other[name]) for name in found)
    skipped = [row for row in rows_of(folder) if row.get("skipped")]
    assert [row["step"] for row in skipped] == [6] and skipped[0]["loss"] is None
    assert math.isfinite(float(next(iter(found.values())).sum()))


def test_three_bad_steps_in_a_row_go_back_and_then_on(tmp_path, data):
    poisoned = Average(bad=(5, 6, 7))
    folder = go(tmp_path / "run", poisoned, data)
    assert [row["step"] for row in rows_of(folder)] == list(range(1, STEPS + 1))
    assert "back to a checkpoint" in (folder.path / "log.txt").read_text()
    assert all(torch.isfinite(tensor).all() for tensor in poisoned.state_dict().values())


def test_three_in_a_row_are_found_whenever_one_looks():
    assert in_a_row([]) is None and in_a_row([3, 4, 6, 7]) is None
    assert in_a_row([3, 5, 6, 7, 8, 9]) == 5 and in_a_row([5, 6, 7, 90]) == 5


def test_bad_numbers_for_ever_stop_the_run_with_the_batch_kept(tmp_path, data):
    with pytest.raises(Failed, match="not finite") as caught:
        go(tmp_path / "run", Average(bad=tuple(range(5, STEPS))), data)
    (kept,) = (tmp_path / "run").glob("not-finite-*.safetensors")
    assert str(kept) in str(caught.value) and "\n" not in str(caught.value)
    assert load_file(kept)["x"].shape == (8, 3, 16, 16)


def test_a_wish_to_stop_saves_at_the_end_of_the_step(tmp_path, monkeypatch, data):
    torch.manual_seed(0)
    whole, stopped, again = Average(), Average(), Average()
    for one in (stopped, again):
        one.load_state_dict(whole.state_dict())
    go(tmp_path / "whole", whole, data)
    stop, real = Stop(), Average.after_step

    def after_step(self, progress):
        real(self, progress)
        if round(progress * STEPS) == 6:
            stop.wish = "SIGTERM"

    monkeypatch.setattr(Average, "after_step", after_step)
    folder = go(tmp_path / "run", stopped, data, stop=stop)
    assert checkpoint.newest(folder.checkpoints)[0].state["step"] == 6
    monkeypatch.undo()
    go(tmp_path / "run", again, data)
    assert equal(whole, again)


def test_monitoring_changes_no_weight(tmp_path, data):
    learners = [mae(), mae()]
    often = go(tmp_path / "often", learners[0], data, replace(SETTINGS, monitor_every=3))
    go(tmp_path / "seldom", learners[1], data)
    assert equal(*learners)
    rows = [json.loads(line) for line in (often.path / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "rank" in row]
    assert [row["step"] for row in measured] == [0, 3, 6, 9, 12] and "knn_random" in measured[0]
    assert all(not ({"loss"} <= row.keys()) for row in measured)
    last = measured[-1]
    assert 1 <= last["rank"] <= 32 and 0 <= last["knn"] <= 100 and last["patch_mean"] > 0.9 and last["copy_nearest"] > 0
    assert sorted(path.name for path in often.pictures.iterdir())[-1].startswith("step-")


def test_a_full_disk_stops_the_run_in_one_line(tmp_path, monkeypatch, data):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.tensors, "write", full)
    with pytest.raises(Failed, match="No space left on device"):
        go(tmp_path / "run", Average(), data)
