"""The embedded default: its photographs are in the wheel, its parts are disjoint, it goes on where it stopped, and says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution

import numpy as np
import pytest
import torch
from PIL import Image

from unmask import cli, proof, quickstart
from unmask.errors import Refused

skimage = pytest.importorskip("skimage", reason="the photographs come with scikit-image")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_photographs_are_in_the_wheel():
    """Each is a file that the package itself lists, so nothing is ever fetched; there are sixteen, half of them in colour."""
    listed = {str(file) for file in distribution("scikit-image").files}
    assert {f"skimage/data/{name}" for name in quickstart.PHOTOGRAPHS} <= listed
    assert len(quickstart.PHOTOGRAPHS) == len(set(quickstart.PHOTOGRAPHS)) == 16
    modes = [Image.open(file).mode for file in quickstart._originals()]
    assert modes.count("RGB") == modes.count("L") == 8


def test_training_and_judging_crops_come_from_disjoint_parts(tmp_path, monkeypatch):
    """A photograph whose left 64 % is black and whose rest is white gives black and white crops only."""
    picture = np.zeros((120, 400, 3), dtype=np.uint8)
    picture[:, int(quickstart.LEFT * 400) :] = 255
    Image.fromarray(picture).save(tmp_path / "split.png")
    monkeypatch.setattr(quickstart, "COUNTS", {"train": 40, "val": 20})
    quickstart._cut([tmp_path / "split.png"], tmp_path / "a", seed=1)
    quickstart._cut([tmp_path / "split.png"], tmp_path / "b", seed=1)
    for split, value, count in (("train", 0, 40), ("val", 255, 20)):
        files = sorted((tmp_path / "a" / split / "split").glob("*.png"))
        crops = [np.asarray(Image.open(file)) for file in files]
        assert len(files) == count and all(crop.shape == (48, 48, 3) and (crop == value).all() for crop in crops)
        assert [file.read_bytes() for file in files] == [(tmp_path / "b" / split / "split" / file.name).read_bytes() for file in files]


def test_without_scikit_image_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(quickstart.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["quickstart", "--out", str(tmp_path / "q")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("unmask: ") and 'pip install "unmask[demo]"' in said and said.count("\n") == 1
    assert not (tmp_path / "q").exists()


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(Refused, match="holds holiday"):
        quickstart.run(tmp_path)
    with pytest.raises(Refused, match="is a file"):
        quickstart.run(tmp_path / "holiday.jpg")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The whole of it at a tiny length: (folder, what it returned, what it printed)."""
    import contextlib
    import io

    said, out = io.StringIO(), tmp_path_factory.mktemp("quick") / "out"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(quickstart, "COUNTS", {"train": 12, "val": 6})
        patch.setattr(quickstart, "SETTINGS", {**quickstart.SETTINGS, "batch_size": 32, "depth": 1, "workers": 0})
        result = quickstart.run(out, seed=2, steps=4)
    return out, result, said.getvalue()


def test_it_leaves_what_it_says(small):
    out, result, said = small
    for name in ("run/report.html", "run/encoder.safetensors", "reconstruction.png", "attention.png", "timm/config.json"):
        assert (out / name).is_file(), name
    assert {entry.name for entry in out.iterdir()} == set(quickstart.PARTS)
    assert json.loads((out / "run" / "status.json").read_text())["status"] == "finished"
    assert result["export"] < 1e-4
    assert {"loss", "patch_mean", "copy_nearest"} <= set(result["loss"])
    assert said.rstrip().endswith("unmask reconstruct runs/first photos/ --out grid.png")


def test_its_table_is_what_it_measured(small):
    """Three encoders under two protocols, each printed with its interval; what is not shown is not claimed."""
    _, result, said = small
    for who, rows in result["figures"].items():
        line = next(line for line in said.splitlines() if line.startswith(who))
        for protocol in ("knn", "linear"):
            low, high = rows[protocol]["interval"]
            assert f"{rows[protocol]['top1']:.1f}  ({low:.1f} to {high:.1f})" in line and low <= rows[protocol]["top1"] <= high
            assert rows[protocol]["n_val"] == 16 * 6
    knn = {who: rows["knn"] for who, rows in result["figures"].items()}
    sentence = next(line for line in said.splitlines() if line.startswith("kNN: "))
    apart = knn["trained encoder"]["interval"][0] > knn["random encoder"]["interval"][1]
    apart |= knn["trained encoder"]["interval"][1] < knn["random encoder"]["interval"][0]
    assert ("random encoder, but the intervals overlap" in sentence) == (not apart)


def test_the_commands_that_it_prints_are_commands(small):
    _, _, said = small
    lines = [line.strip().removeprefix("$ ") for line in said.splitlines() if line.strip().removeprefix("$ ").startswith("unmask ")]
    assert len(lines) > 10
    for line in lines:
        words = line.partition(" #")[0].split()[1:]
        name, rest = cli.command_of(words)
        cli.read(name, rest)


def test_again_it_goes_on(small, capsys):
    """The same command trains nothing again and measures the same; another seed is refused."""
    out, result, _ = small
    before = (out / "run" / "encoder.safetensors").stat().st_mtime_ns
    again = quickstart.run(out, seed=2, steps=4)
    assert (out / "run" / "encoder.safetensors").stat().st_mtime_ns == before
    assert "finished" in capsys.readouterr().out
    same = {who: {name: row["top1"] for name, row in rows.items()} for who, rows in again["figures"].items()}
    assert same == {who: {name: row["top1"] for name, row in rows.items()} for who, rows in result["figures"].items()}
    with pytest.raises(Refused, match="seed 2, not 0"):
        quickstart.run(out, steps=4)
    with pytest.raises(Refused, match="steps 4, not 400"):
        quickstart.run(out, seed=2)


def test_help_needs_no_torch():
    code = "import sys; from unmask import cli; cli.main(['quickstart', '--help']); assert 'torch' not in sys.modules"
    assert "--seed" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_table_of_proof(tmp_path, monkeypatch, capsys):
    """Each method is trained once, stands beside its random encoder, and "yes" means above it beyond both intervals."""
    monkeypatch.setattr(quickstart, "COUNTS", {"train": 12, "val": 6})
    monkeypatch.setattr(quickstart, "SETTINGS", {**quickstart.SETTINGS, "batch_size": 32, "depth": 1, "workers": 0})
    monkeypatch.setattr(proof, "OWN", {name: proof.OWN[name] for name in ("mae", "maskfeat")})
    found = proof.run(tmp_path / "table", steps=3)["figures"]
    said = capsys.readouterr().out.splitlines()
    for method in proof.OWN:
        line = next(line for line in said if line.startswith(f"{method} "))
        pairs = [(found[method]["random encoder"][protocol], found[method]["trained encoder"][protocol]) for protocol in ("knn", "linear")]
        assert all(f"{row['top1']:.1f}  (" in line for pair in pairs for row in pair)
        assert line.endswith("yes") == any(trained["interval"][0] > random["interval"][1] for random, trained in pairs)
    before = {method: (tmp_path / "table" / method / "encoder.safetensors").stat().st_mtime_ns for method in proof.OWN}
    proof.run(tmp_path / "table", steps=3)
    assert before == {method: (tmp_path / "table" / method / "encoder.safetensors").stat().st_mtime_ns for method in proof.OWN}
    (tmp_path / "table" / "holiday.jpg").touch()
    with pytest.raises(Refused, match="holds holiday"):
        proof.run(tmp_path / "table", steps=3)
