"""The row of figures: every number with what is needed to read it, on real photographs, bands and grey; bad files only counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.encoders.build import create_trunk
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.interchange.encoder import save_encoder

FIELDS = "protocol top1 top5 interval pooling img_size seed n_train n_val seconds epochs majority chance encoder random skipped rank val model"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run leaves, by a network that has learnt nothing."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    trunk = create_trunk("vit_tiny_patch16_224", (32, 32), 3, 8, width=48, depth=2, heads=3)
    mae_init(trunk)
    fix_places(trunk)
    save_encoder(folder / "encoder.safetensors", trunk, {"mean": [0.45] * 3, "std": [0.25] * 3})
    (folder / "config.yaml").write_text("format: 1\n")
    return folder


@pytest.mark.parametrize("protocol, more", [("knn", {}), ("linear", {"epochs": 5}), ("linear", {"paper": True, "epochs": 3})])
def test_every_figure_says_how_it_came_about(protocol, more, run, imagenette):
    before = len((run / "evaluations.jsonl").read_text().splitlines()) if (run / "evaluations.jsonl").exists() else 0
    train, val = imagenette / "train", imagenette / "val"
    row = unmask.evaluate(protocol, run, train, val=str(val), **more)
    assert not set(FIELDS.split()) - set(row), set(FIELDS.split()) - set(row)
    assert (row["n_train"], row["n_val"], row["classes"], row["img_size"], row["random"]) == (120, 120, 10, [32, 32], False)
    assert row["interval"][0] <= row["top1"] <= row["interval"][1] and row["chance"] == row["majority"] == 10 and row["top1"] <= row["top5"]
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert len(rows) == before + 1 and rows[-1] == json.loads(json.dumps(row))
    assert unmask.evaluate(protocol, run, train, val=str(val), **more)["top1"] == row["top1"], "the same seed gives the same figure"


def test_random_and_other_sizes_differ(run, imagenette):
    train, val = imagenette / "train", str(imagenette / "val")
    rows = [unmask.evaluate("knn", run, train, val=val, **more) for more in ({}, {"random": True}, {"img_size": (48, 40)})]
    assert rows[1]["random"] and rows[2]["img_size"] == [48, 40]
    assert len({(row["top1"], row["rank"]) for row in rows}) == 3


def test_without_val_a_part_is_kept_apart_and_said(run, imagenette):
    row = unmask.evaluate("knn", run, imagenette / "train")
    assert (row["n_train"], row["n_val"]) == (100, 20) and "kept apart" in row["val"]


def test_bands_and_grey_and_bad_files(tmp_path):
    generator = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "grey" / str(label)).mkdir(parents=True)
        for i in range(10):
            Image.fromarray((generator.random((20, 20)) * (100 + 100 * label)).astype(np.uint8)).save(tmp_path / "grey" / str(label) / f"{i}.png")
    (tmp_path / "grey" / "0" / "empty.png").write_bytes(b"")
    row = unmask.evaluate("linear", "random:vit_tiny_patch16_224", tmp_path / "grey", img_size=(16, 16), patch_size=8, epochs=5, max_bad_share=0.2)
    assert row["skipped"] == 1 and row["n_train"] + row["n_val"] == 20
    bands = (generator.random((24, 16, 16, 13)) * 3000).astype(np.uint16)
    np.savez(tmp_path / "bands.npz", images=bands, labels=np.arange(24) % 2)
    row = unmask.evaluate("knn", "random:vit_tiny_patch16_224", tmp_path / "bands.npz", img_size=(16, 16), patch_size=8)
    assert row["n_train"] + row["n_val"] == 24 and 0 <= row["top1"] <= 100


def test_no_labels_is_refused(run, imagenette, tmp_path):
    for path in sorted((imagenette / "val").rglob("*.*"))[:4]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(Refused, match="label"):
        unmask.evaluate("knn", run, tmp_path)
