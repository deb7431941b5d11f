"""The verbs in Python, on small drawn pictures: a run, and everything that takes one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import unmask

TINY = {"model": "vit_tiny_patch16_224", "width": 32, "depth": 2, "heads": 2, "patch_size": 4, "img_size": 16, "batch_size": 8, "workers": 0, "accelerator": "cpu"}
TINY |= {"method.decoder_width": 32, "method.decoder_depth": 1, "method.decoder_heads": 2, "steps": 4, "monitor_every": 4, "seed": 3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for i in range(10):
                level = 60 if name == "a" else 180
                Image.fromarray(rng.normal(level, 20, (20, 24, 3)).clip(0, 255).astype("uint8")).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield unmask.pretrain("mae", photos / "train", tmp_path_factory.mktemp("runs") / "a", **TINY)
    torch.set_num_threads(threads)


def test_importing_it_imports_no_torch():
    code = "import unmask, sys; dir(unmask); assert not {'torch', 'numpy', 'timm'} & set(sys.modules); assert callable(unmask.pretrain)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_public_names():
    for name in unmask.__all__:
        assert getattr(unmask, name) is not None
    assert set(unmask.__all__) <= set(dir(unmask))
    assert unmask.methods.MAE(mask_ratio=0.6).mask_ratio.first == 0.6
    importlib.import_module("unmask.load")  # a file of that name is there too
    assert callable(unmask.load)  # and the verb stays the verb
    with pytest.raises(AttributeError, match="nothing"):
        unmask.nothing  # noqa: B018


def test_a_run_leaves_what_was_promised(run):
    for name in ("config.yaml", "metrics.jsonl", "environment.json", "encoder.safetensors", "model.safetensors", "report.html", "log.txt", "status.json"):
        assert (run / name).is_file(), name
    assert json.loads((run / "status.json").read_text())["status"] == "finished"


def test_its_file_runs_again_to_the_same_weights(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = unmask.pretrain(config=run / "config.yaml", out="again")
    first, second = (load_file(path / "model.safetensors") for path in (run, again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    lines = [(path / "config.yaml").read_text() for path in (run, again)]
    assert lines[0] == lines[1]
    assert f"seed: {TINY['seed']}" in lines[0] and "\nout:" not in lines[0]


def test_resume_of_a_finished_run_and_of_none(run, tmp_path, capsys):
    assert unmask.resume(run) == run
    assert "finished" in capsys.readouterr().out
    with pytest.raises(unmask.Refused, match="no-run"):
        unmask.resume(tmp_path / "no-run")
    with pytest.raises(unmask.Refused, match="did you mean epochs"):
        unmask.resume(run, epoch=3)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [({"epoch": 3}, "did you mean epochs"), ({"img_size": "big"}, "img_size"), ({"method.mask_ratio": 2}, "mask_ratio"), ({"steps": 1, "epochs": 1}, "how long"), ({"init": "x"}, "x")],
)
def test_what_is_wrong_is_refused_and_leaves_nothing(photos, tmp_path, settings, answer):
    with pytest.raises(unmask.Refused, match=answer):
        unmask.pretrain("mae", photos, tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_a_method_instance_and_a_torch_dataset(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [(Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)), i % 2) for i in range(16)]
    own = {name: value for name, value in TINY.items() if not name.startswith("method.")}
    method = unmask.methods.MAE(mask_ratio=0.5, decoder_width=32, decoder_depth=1, decoder_heads=2)
    out = unmask.pretrain(method, pictures, tmp_path / "run", **own | {"steps": 2})
    assert "method.mask_ratio: 0.5" in (out / "config.yaml").read_text()


def test_load_gives_the_learner_and_load_encoder_a_timm_model(run):
    x = torch.randn(2, 3, 16, 16)
    learner, encoder = unmask.load(run), unmask.load_encoder(run)
    assert learner(x)["loss"].ndim == 0
    with torch.no_grad():
        assert encoder.forward_features(x).shape == (2, 17, 32)
    assert unmask.load_transform(run)(Image.new("RGB", (40, 30))).shape == (3, 16, 16)


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_evaluate_gives_the_row_and_keeps_it(run, photos, protocol):
    rows = [unmask.evaluate(protocol, run, photos / "train", val=photos / "val", random=random, workers=0) for random in (False, True)]
    for row in rows:
        assert {"protocol", "top1", "interval", "pooling", "img_size", "seed", "n_train", "n_val", "seconds", "epochs"} <= set(row)
        assert 0 <= row["interval"][0] <= row["top1"] <= row["interval"][1] <= 100 and row["n_val"] == 20
    assert [row["random"] for row in rows] == [False, True]
    kept = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert kept[-2:] == rows


def test_evaluate_takes_its_own_part_where_there_is_no_val(run, photos):
    row = unmask.evaluate("knn", run, photos / "train", workers=0)
    assert (row["n_train"], row["n_val"]) == (16, 4) and "kept apart" in row["val"]
    row = unmask.evaluate("knn", run, photos, workers=0)
    assert (row["n_train"], row["n_val"], row["val"]) == (20, 20, "DATA's own folders")
    with pytest.raises(unmask.Refused, match="label"):
        unmask.evaluate("knn", run, photos / "train" / "a", workers=0)


def test_embed_writes_what_numpy_and_parquet_open(run, photos, tmp_path):
    opened = np.load(unmask.embed(run, photos / "val", out=tmp_path / "f.npz", workers=0), allow_pickle=False)
    assert opened["features"].shape == (20, 32) and opened["features"].dtype == np.float32
    assert opened["paths"].dtype.kind == "U" and opened["paths"][0].endswith("val/a/0.png")
    assert opened["labels"].tolist() == [0] * 10 + [1] * 10 and opened["classes"].tolist() == ["a", "b"]
    few = [photos / "val" / "a" / "1.png", photos / "val" / "b" / "2.png"]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(unmask.embed(run, few, out=tmp_path / "f.parquet", workers=0))
    assert table.num_rows == 2 and table["path"].to_pylist() == [os.fspath(path) for path in few]
    with pytest.raises(unmask.Refused, match="npz"):
        unmask.embed(run, few, out=tmp_path / "f.csv")


def test_pictures_are_drawn(run, photos, tmp_path):
    from unmask import api

    few = sorted((photos / "val" / "a").iterdir())[:2]
    for drawn in (
        unmask.reconstruct(run, few, out=tmp_path / "grid.png"),
        unmask.reconstruct(run, few, out=tmp_path / "half.png", mask_ratio=0.5, statistics="truth"),
        unmask.reconstruct(run, few, out=tmp_path / "green.png", bands=2),
        api.show_encoder("attention", run, few, out=tmp_path / "attention.png"),
        api.show_encoder("features", run, few, out=tmp_path / "features.png"),
        api.show_views(photos / "val", out=tmp_path / "views.png", img_size=32, count=2, epochs=2),
        api.show_mask("block", out=tmp_path / "mask.png", grid=8),
    ):
        assert min(Image.open(drawn).size) >= 100
    with pytest.raises(unmask.Refused, match="decoder"):
        unmask.reconstruct(run / "encoder.safetensors", few, out=tmp_path / "no.png")


def test_export_inspect_and_report(run, photos, tmp_path):
    for to in ("timm", "safetensors"):
        assert unmask.export(run, out=tmp_path / to, to=to)["difference"] < 1e-5
    with pytest.raises(unmask.Refused, match="timm, hf, onnx, safetensors"):
        unmask.export(run, out=tmp_path / "other", to="keras")
    assert unmask.inspect(photos / "val")["samples"] == 20
    assert unmask.report([run], out=tmp_path / "report.html").is_file()
    assert unmask.report([run, run], out=tmp_path / "drawn.html", pictures=photos / "val").stat().st_size > 10_000
    (listed,) = unmask.runs(run.parent)["runs"]
    assert listed["run"] == str(run) and listed["status"] == "finished" and listed["step"] == listed["steps"]
    with pytest.raises(unmask.Refused, match="1 to 3"):
        unmask.reconstruct(run, photos / "val", out=tmp_path / "no.png", bands=(4, 3, 2))
