"""A run folder is read whatever is missing; one whose process has died is told from one that trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from run_folders import held, run_folder

from unmask.errors import Refused
from unmask.run.records import SILENT, Figure, Run, column, state_of


@pytest.mark.parametrize("missing", ["status.json", "config.yaml", "metrics.jsonl", "environment.json", "data.json", "evaluations.jsonl"])
def test_what_is_missing_is_empty(tmp_path, missing):
    path = run_folder(tmp_path / "run", [1.0, 0.9])
    (path / missing).unlink()
    run = Run.read(path)
    assert run.step == 2 and run.name == "run"
    for cut in path.glob("*.json*"):
        cut.write_text('{"half": ')
    assert Run.read(path).rows == [] and Run.read(path).environment == {}


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(Refused, match="no run folder"):
        Run.read(tmp_path / "nowhere")
    with pytest.raises(Refused, match="is no run"):
        Run.read(tmp_path)


def test_a_column_holds_finite_numbers_in_the_order_of_the_steps():
    rows = [{"step": 2, "a": 1}, {"step": 1, "a": 0.5}, {"step": 3, "a": float("nan")}, {"step": 4, "a": True}, {"step": None, "a": 2}, {"a": 3}]
    assert column(rows, "a") == ([1.0, 2.0], [0.5, 1.0])


def test_running_is_believed_only_while_somebody_holds_the_folder(tmp_path):
    """By another process: a lock does not hold against its own process."""
    path = run_folder(tmp_path / "run", [1.0], status="running")
    script = f"import sys, time; from unmask.run.folder import RunFolder; f = RunFolder({str(path)!r}); f.take(); print('held', flush=True); time.sleep(60)"
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert trainer.stdout.readline() == "held\n"
        assert Run.read(path).state == "running"
        trainer.kill()
        trainer.wait()
        assert Run.read(path).state == "stopped"
    finally:
        trainer.kill()
        trainer.wait()
    (path / "status.json").write_text(json.dumps({"status": "interrupted"}))
    assert Run.read(path).state == "interrupted"


def test_looking_does_not_free_the_lock_of_the_process_that_trains(tmp_path):
    """POSIX frees a lock when its process closes any descriptor of the file: a run that reports on itself must not let others in."""
    path = run_folder(tmp_path / "run", [1.0], status="running")
    folder = held(path)
    assert Run.read(path).state == "running"
    script = f"from unmask.run.folder import held; from pathlib import Path; print(held(Path({str(path)!r})))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "True\n"
    folder.leave()
    assert Run.read(path).state == "stopped"


def test_without_locks_silence_decides(tmp_path):
    path = run_folder(tmp_path / "run", [1.0], status="running")
    assert not (path / ".lock").exists() and state_of(path, {"status": "running"}) == "running"
    long_ago = time.time() - SILENT - 60
    for entry in path.iterdir():
        os.utime(entry, (long_ago, long_ago))
    assert state_of(path, {"status": "running"}) == "stopped"


def test_figures_of_every_kind():
    top1 = Figure.of({"top1": 41.234, "interval": [38.0, 44.5], "top5": 80.0})
    assert (top1.name, top1.text, top1.between) == ("top-1", "41.2 %", "38.0 to 44.5")
    share, percent = Figure.of({"metric": "auroc", "auroc": 0.8123, "interval": [0.79, 0.83]}), Figure.of({"metric": "auroc", "auroc": 81.23})
    assert (share.text, share.between, percent.text, percent.between) == ("0.812", "0.790 to 0.830", "81.2 %", "")
    r2 = Figure.of({"metric": "r2", "r2": -3.25, "interval": [-4.0, -2.5]})
    assert (r2.name, r2.text) == ("R²", "-3.250")
    assert Figure.of({"metric": "top1", "top1": None}) is None and Figure.of({"protocol": "knn"}) is None
    assert top1.above(Figure("top1", 30.0, 27.0, 33.0)) is True and top1.above(Figure("top1", 50.0, 47.0, 53.0)) is False
    assert top1.above(Figure("top1", 40.0, 37.0, 43.0)) is None and top1.above(percent) is None
