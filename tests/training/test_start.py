"""Runs as a person makes them: begun, killed, stopped, resumed, refused, on one process and on two."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from unmask import cli
from unmask.errors import Failed, Refused
from unmask.recipe import settle
from unmask.training import start

FEW = {"model": "vit_tiny_patch16_224", "width": 32, "depth": 2, "heads": 2, "patch_size": 8, "batch_size": 8, "accelerator": "cpu", "workers": 0}
FEW |= {"method.decoder_width": 32, "method.decoder_depth": 1, "monitor_every": 1000}
PROCESSES = multiprocessing.get_context("forkserver")  # modules are imported once, every process is a fresh fork
PROCESSES.set_forkserver_preload(["unmask.training.start", "unmask.visualize.report", "lightning_fabric"])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npz"
    smooth = np.cumsum(np.cumsum(np.random.default_rng(0).normal(size=(48, 32, 32, 3)), 1), 2)
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    np.savez(path, images=((smooth - low) / (high - low) * 255).astype(np.uint8), labels=np.arange(48) % 4)
    return path


def begin(data: Path, out: Path, **more) -> Path:
    return start.begin(settle("mae", str(data), None, FEW | {"steps": 16, "seed": 4} | more), out)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_of(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """One uninterrupted run."""
    return begin(data, tmp_path_factory.mktemp("whole") / "run")


def command(words: list[str], log: str, slow: float) -> None:
    """What a process of these tests does: one command, its output in a file; `slow` seconds are added to every step."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    if slow:
        from unmask.training import step

        real = step.clip
        step.clip = lambda *a: (time.sleep(slow), real(*a))[1]
    os._exit(cli.main(words))


def run(words: list, log: Path, slow: float = 0.0):
    process = PROCESSES.Process(target=command, args=([str(word) for word in words], str(log), slow))
    process.start()
    return process


def pretrain(data: Path, out: Path, **more) -> list:
    settings = FEW | {"steps": 16, "seed": 4} | more
    return ["pretrain", "mae", data, "--out", out, *(word for name, value in settings.items() for word in (f"--{name}", value))]


def wait_for_steps(folder: Path, count: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").read_text().count('"loss"') >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} steps in {folder}")


def test_a_run_leaves_what_the_contract_names(whole):
    there = {path.name for path in whole.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "environment.json", "encoder.safetensors", "model.safetensors", "report.html", "log.txt", "status.json"} <= there
    assert json.loads((whole / "status.json").read_text())["status"] == "finished"
    assert steps_of(whole) == list(range(1, 17)) and list((whole / "pictures").glob("step-*.png"))
    with safe_open(whole / "encoder.safetensors", "pt") as file:
        assert {"model", "img_size", "in_chans", "mean", "std"} <= file.metadata().keys()
    assert "cpu" in (whole / "log.txt").read_text() and "until" in (whole / "log.txt").read_text()


def test_its_config_runs_again_to_the_same_weights(whole, tmp_path):
    again = start.begin(settle(None, None, whole / "config.yaml", {}), tmp_path / "again")
    assert same(whole, again)


def test_workers_change_nothing_and_another_seed_does(whole, data, tmp_path):
    assert same(whole, begin(data, tmp_path / "workers", workers=2))
    assert not same(whole, begin(data, tmp_path / "seed", seed=5))


def test_killed_at_any_moment_it_goes_on_to_the_same_weights(whole, data, tmp_path):
    dice, out, log, kills = random.Random(), tmp_path / "killed", tmp_path / "log", 0
    for words in (pretrain(data, out, checkpoint_every=3, workers=1), ["resume", out, "--workers", 0], ["resume", out]):
        process = run(words, log, slow=0.1)
        wait_for_steps(out, 1)
        time.sleep(dice.uniform(0.2, 0.8))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert start.again(out, False, {}) == out
    assert same(whole, out) and steps_of(out) == steps_of(whole), f"after {kills} kills: {log.read_text()}"
    assert kills == 3


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_saves_says_how_to_go_on_and_exits_75(whole, data, tmp_path, name):
    out, log = tmp_path / "stopped", tmp_path / "log"
    process = run(pretrain(data, out), log, slow=0.1)
    wait_for_steps(out, 1)
    os.kill(process.pid, getattr(signal, name))
    process.join(30)
    assert process.exitcode == 75, log.read_text()
    assert f"unmask resume {out}" in log.read_text() and "Traceback" not in log.read_text()
    status = json.loads((out / "status.json").read_text())
    assert status["status"] == "interrupted" and name in status["why"] and 0 < status["step"] < 16
    start.again(out, False, {})
    assert same(whole, out)


def asleep(words: list[str], log: str, slow: float) -> None:
    """A process whose start takes very long."""
    start.plan.pace = lambda *a: (Path(log + ".asleep").touch(), time.sleep(100))
    command(words, log, 0)


def test_a_signal_before_the_first_step_works_at_once_and_leaves_nothing(data, tmp_path):
    out, log = tmp_path / "never", tmp_path / "log"
    process = PROCESSES.Process(target=asleep, args=([str(word) for word in pretrain(data, out)], str(log), 0.0))
    process.start()
    while not (tmp_path / "log.asleep").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 75 and "before the first step" in log.read_text() and not out.exists()


def test_a_finished_run_says_so_and_changed_settings_are_refused_by_name(whole, capsys):
    assert start.again(whole, False, {}) == whole
    assert "finished" in capsys.readouterr().out
    before = (whole / "config.yaml").read_text(), (whole / "status.json").read_text()
    with pytest.raises(Refused, match=r"--depth: the network would not be the run's"):
        start.again(whole, True, {"depth": 3})
    with pytest.raises(Refused, match="--time is for a new run"):
        start.again(whole, False, {"time": "10s"})
    assert before == ((whole / "config.yaml").read_text(), (whole / "status.json").read_text()), "what is refused leaves the run as it was"
    with pytest.raises(Refused, match=r"--lr.*--force"):
        start.again(whole, False, {"lr": 0.5})
    assert json.loads((whole / "status.json").read_text())["status"] == "finished"


def test_other_pictures_are_refused(whole, tmp_path, data):
    out = begin(data, tmp_path / "run", steps=2)
    kept = json.loads((out / "data.json").read_text())
    (out / "data.json").write_text(json.dumps(kept | {"fingerprint": "other"}))
    (out / "status.json").unlink()
    with pytest.raises(Refused, match="not those that the run began with"):
        start.again(out, False, {})


def test_a_killed_start_resumes_from_its_config_alone(whole, data, tmp_path):
    out = begin(data, tmp_path / "run")
    for path in [*out.glob("checkpoints/step-*/*"), *out.glob("*.json"), out / "metrics.jsonl", out / "model.safetensors"]:
        path.unlink()
    for path in out.glob("checkpoints/step-*"):
        path.rmdir()
    start.again(out, False, {})
    assert same(whole, out)


def test_a_run_that_fails_before_its_first_step_leaves_no_folder(data, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise Failed("the share of bad samples is above max_bad_share")

    with monkeypatch.context() as patch:
        patch.setattr(start, "train", failing)
        with pytest.raises(Failed, match="max_bad_share"):
            begin(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(Refused):
        begin(data, tmp_path / "run", **{"method.decoder_width": 33, "method.decoder_heads": 2})
    assert not (tmp_path / "run").exists()
    assert begin(data, tmp_path / "run", steps=1)


def test_half_precision_takes_masks(data, tmp_path):
    """Fabric looks through all that goes into a step: it refuses frozen dataclasses."""
    run = begin(data, tmp_path / "run", steps=2, precision="bf16-mixed")
    assert all(torch.isfinite(weight).all() for weight in weights(run).values())


def test_two_processes_equal_one(data, tmp_path):
    one = begin(data, tmp_path / "one", steps=6, clip=0.5)
    two = begin(data, tmp_path / "two", steps=6, clip=0.5, devices=2)
    losses = [[row["loss"] for row in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()) if "loss" in row] for path in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    a, b = weights(one), weights(two)
    for name in a:  # the keys' biases have no gradient: AdamW makes full steps of rounding there
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=2e-3 if name.endswith("qkv.bias") else 1e-4)
    assert json.loads((two / "status.json").read_text())["status"] == "finished"


def test_time_chooses_the_steps(data, tmp_path):
    out = begin(data, tmp_path / "run", steps=None, time="3s")
    assert len(steps_of(out)) >= 1 and "fits into 3 s" in (out / "log.txt").read_text()
    assert "time: null" in (out / "config.yaml").read_text()


def tiffs(folder: Path) -> dict:
    """13 bands of 16 bits."""
    import tifffile

    dice = np.random.default_rng(0)
    for i in range(24):
        tifffile.imwrite(folder / f"{i}.tif", (np.cumsum(dice.normal(size=(40, 40, 13)), 0) * 120 + 3000).clip(0, 65535).astype(np.uint16), planarconfig="contig")
    return {"img_size": (32, 32)}


def greys(folder: Path) -> dict:
    """One channel of 16 bits."""
    from PIL import Image

    dice = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray((np.cumsum(dice.normal(size=(40, 40)), 1) * 800 + 30000).clip(0, 65535).astype(np.uint16)).save(folder / f"{i}.png")
    return {"img_size": (32, 32)}


def wide(folder: Path) -> dict:
    """Pictures of 224 by 96 at their own size."""
    from PIL import Image

    dice = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(dice.integers(0, 256, (224, 96, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return {"img_size": (224, 96), "patch_size": 16}


def bad_ones(folder: Path) -> dict:
    """Thirty kinds of bad file among good ones."""
    from folder_of_odd_files import bad_files, photograph

    bad_files(folder)
    for number in range(60):
        photograph(number).save(folder / f"good{number}.jpg")
    return {"max_bad_share": 0.5, "img_size": (32, 32)}


@pytest.mark.parametrize(("make", "channels"), [(tiffs, 13), (greys, 1), (wide, 3), (bad_ones, 3)])
def test_odd_pictures_train_to_a_good_end(tmp_path, make, channels):
    pytest.importorskip("tifffile")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    run = begin(pictures, tmp_path / "run", **make(pictures))
    assert json.loads((run / "status.json").read_text())["status"] == "finished" and steps_of(run) == list(range(1, 17))
    with safe_open(run / "encoder.safetensors", "pt") as file:
        assert file.metadata()["in_chans"] == str(channels)
    named = (run / "quarantine.jsonl").read_text() if (run / "quarantine.jsonl").exists() else ""
    assert ("bad_empty" in named) == (make is bad_ones)
