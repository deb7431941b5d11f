"""`unmask runs`: one line a run, whatever state it is in, and nothing damaged is fatal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from run_folders import falling, held, measured, run_folder

from unmask.errors import Refused
from unmask.run import listing
from unmask.run.listing import lines


@pytest.fixture
def several(tmp_path):
    monitor = {100: {"knn": 30.0, "rank": 20.0}, 200: {"knn": 34.5, "rank": 22.0}}
    rows = [measured("linear", 41.0, 37.1, 45.0), measured("linear", 50.0, 46.0, 54.0, random=True), measured("knn", 60.0, 56.0, 64.0)]
    rows += [measured("finetune", 90.0, 88.0, 92.0)]  # trained further from it: no figure of its own weights
    run_folder(tmp_path / "old" / "done", falling(), every=monitor, evaluations=rows)
    run_folder(tmp_path / "broke", falling(5), status="failed")
    run_folder(tmp_path / "stop it", falling(20), status="interrupted")
    run_folder(tmp_path / "killed", falling(20), status="running")
    (tmp_path / "killed" / ".lock").touch()
    tuned = {"encoder": "runs/done", "method": "finetune", "model": None}
    run_folder(tmp_path / "old" / "tuned", falling(40), config=tuned, every={40: {"top1": 71.25, "val_loss": 1.0}}, evaluations=[measured("finetune", 72.0, 69.0, 75.0)])
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "status.json").write_text("{")
    (tmp_path / "half" / "config.yaml").write_text("method: [")
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "status.json").write_text("{}")
    (tmp_path / "lost" / "metrics.jsonl").write_text("\x00\xff")
    (tmp_path / "no run").mkdir()
    (tmp_path / "no run" / "config.yaml").write_text("some: other program")
    return tmp_path


def test_every_run_is_found_and_told(several):
    live = held(run_folder(several / "live", falling(10), status="running", config={"steps": 400}))
    found = {row["run"].removeprefix(f"{several}/"): row for row in listing.listing(several)}
    live.leave()
    assert {name: row["status"] for name, row in found.items()} == {
        "old/done": "finished", "broke": "failed", "stop it": "interrupted", "killed": "stopped", "old/tuned": "finished", "half": "broken", "lost": "broken", "live": "running",
    }  # fmt: skip
    done, tuned = found["old/done"], found["old/tuned"]
    assert (done["step"], done["steps"], done["knn"], done["kind"]) == (200, 200, 34.5, "mae")
    assert done["best"] == {"protocol": "linear", "metric": "top1", "value": 41.0, "interval": [37.1, 45.0]}  # not the random encoder's, and no kNN beside a probe
    assert tuned["validation"] == {"metric": "top1", "value": 71.25} and tuned["best"]["protocol"] == "finetune"
    assert found["live"]["resume"] is None and found["live"]["steps"] == 400 and done["resume"] is None
    assert found["killed"]["resume"] == f"unmask resume {several}/killed" and found["stop it"]["resume"] == f"unmask resume '{several}/stop it'"
    assert "config.yaml" in found["lost"]["why"] and "cannot be read" in found["half"]["why"]
    assert done["bytes"] == sum(path.stat().st_size for path in (several / "old" / "done").rglob("*") if path.is_file()) and done["age"] < 60
    json.dumps(found)


def test_the_text_is_one_line_a_run_and_the_commands(several):
    rows = listing.listing(several)
    text = lines(rows, several)
    table = text[: 1 + len(rows)]
    assert all(sum(row["run"] in line for line in table) >= 1 for row in rows)
    assert any("linear 41.0 % (37.1 to 45.0)" in line for line in table) and any("top-1 71.2 %" in line for line in table)
    assert any("failed" in line for line in table) and f"  unmask resume '{several}/stop it'" in text
    assert any(line.startswith(f"{several}/lost is broken") for line in text)
    assert lines([], "here") == ["no runs below here"]


def test_the_last_that_gave_a_sign_stands_first(several):
    ago = time.time() - 7200
    for path in (several / "broke").rglob("*"):
        os.utime(path, (ago, ago))
    rows = listing.listing(several)
    assert rows[-1]["run"] == str(several / "broke") and listing.age(rows[-1]["age"]) == "2 h"


def test_a_long_run_is_read_from_its_end(tmp_path, monkeypatch):
    """Only as much of metrics.jsonl as reaches back to the last measurement."""
    monkeypatch.setattr(listing, "BLOCK", 1000)
    path = run_folder(tmp_path / "long", [1.0] * 3000, every={1000: {"knn": 20.0, "rank": 3.0}, 2900: {"knn": 25.0, "rank": 4.0}})
    rows = listing.tail(path / "metrics.jsonl")
    assert listing.last(rows, "knn") == 25.0 and 100 <= len(rows) < 200
    whole = run_folder(tmp_path / "none", [1.0] * 50)
    assert len(listing.tail(whole / "metrics.jsonl")) == 50


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (1500, "1.5 KB"), (23_400_000, "23 MB"), (2.5e13, "25.0 TB")])
def test_sizes(count, text):
    assert listing.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (59, "59 s"), (61, "1 min"), (7199, "119 min"), (7200, "2 h"), (200_000, "2 d")])
def test_ages(seconds, text):
    assert listing.age(seconds) == text


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(Refused, match="no folder"):
        listing.listing(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="is a file"):
        listing.listing(tmp_path / "file")


def test_the_command_answers_without_torch(several):
    script = "import sys; from unmask.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", script, "runs", str(several), "--json"], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["runs"]) == 7 and done.stderr.rstrip().endswith("False")
