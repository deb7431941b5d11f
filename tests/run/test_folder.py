"""The run folder's contract: refused when taken, readable at any moment, cut back on resume, held by one process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from unmask.errors import Refused
from unmask.run.folder import RunFolder, refuse_taken

CONFIG = "format: 1\nmethod: mae\n"


def test_a_run_begins_with_its_config(tmp_path):
    folder = RunFolder.create(tmp_path / "a" / "run", CONFIG)
    assert (folder.path / "config.yaml").read_text() == CONFIG
    assert {entry.name for entry in folder.path.iterdir()} == {"config.yaml", "environment.json", "checkpoints", "pictures"}
    assert json.loads((folder.path / "environment.json").read_text())["packages"]["torch"]
    assert RunFolder.open(folder.path).resume == f"unmask resume {folder.path.absolute()}"


def test_what_is_taken_is_refused_by_name(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG).path
    other, file = tmp_path / "other", tmp_path / "file"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    file.write_text("mine")
    for path, said in ((run, "unmask resume"), (other, "thesis.tex"), (file, "is a file")):
        with pytest.raises(Refused, match=said):
            refuse_taken(path)
    with pytest.raises(Refused, match="nowhere"):
        RunFolder.open(tmp_path / "nowhere")


def test_leftovers_without_work_do_not_block_the_next_try(tmp_path):
    for name in ("status.json", "log.txt", ".config.yaml.4711"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "pictures").mkdir()
    refuse_taken(tmp_path)
    assert not (RunFolder.create(tmp_path, CONFIG).path / "log.txt").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pictures/holiday.png", "checkpoints/step-00000010"])
def test_work_is_never_taken_for_a_leftover(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("work")
    with pytest.raises(Refused, match="not empty"):
        refuse_taken(tmp_path)


def test_a_start_that_failed_leaves_nothing(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.take()
    folder.status("running")
    folder.log("a line")
    folder.metric({"step": 0, "knn": 10.0})
    folder.leave()
    folder.discard()
    assert not folder.path.exists()


def test_a_run_with_work_is_not_discarded(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.metric({"step": 1, "loss": 1.0})
    folder.discard()
    assert (folder.path / "config.yaml").exists()


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    for step in range(1, 8):
        folder.metric({"step": step, "loss": float(step)})
    folder.flush()
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # a kill in the middle of a line
    folder.cut_metrics(5)
    folder.metric({"step": 6, "loss": 6.5})
    folder.close()
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["loss"] == 6.5


def test_status_is_whole_at_any_moment(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    assert folder.read_status() == {}
    folder.status("interrupted", 7, why="SIGTERM")
    found = folder.read_status()
    assert found["status"] == "interrupted" and found["step"] == 7 and "unmask resume" in found["resume"]
    (folder.path / "status.json").write_text("{")
    assert folder.read_status() == {}


def test_one_process_at_a_time(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    hold = "import sys, time; from unmask.run.folder import RunFolder; RunFolder(sys.argv[1]).take(); print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", f"import sys\nkept = None\n{hold.replace('RunFolder(sys.argv[1]).take()', 'kept = RunFolder(sys.argv[1]); kept.take()')}", folder.path], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Refused, match="another process"):
            folder.take(patience=0.2)
    finally:
        other.kill()
        other.wait()
    folder.take(patience=5)
    folder.leave()


def test_the_folder_is_checked_without_torch():
    said = subprocess.run([sys.executable, "-c", "import sys, unmask.run.folder; print('torch' in sys.modules)"], capture_output=True, text=True)
    assert said.stdout.strip() == "False", said
