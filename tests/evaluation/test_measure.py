"""The row of figures: every number with what is needed to read it, on real photographs, bands and grey; bad files only counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.splits import parts
from unmask.data.statistics import Format
from unmask.encoders.build import create_trunk
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.interchange.encoder import save_encoder
from unmask.settings import Labelled, Views

FIELDS = "kind metric balanced_accuracy intervals interval_over imbalance protocol top1 top5 interval pooling img_size seed n_train n_val seconds epochs majority chance encoder random skipped rank val model"


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


def scene(tmp_path, kind: str) -> tuple:
    """Drawn pictures with a table of labels, patients and parts; brightness tells the label."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    rows = []
    for i in range(60):
        light = rng.random()
        name = f"photos/{i:02d}.png"
        Image.fromarray((40 + 150 * light + rng.normal(0, 10, (20, 20, 3))).clip(0, 255).astype(np.uint8)).save(tmp_path / name)
        label = {"classes": "light" if light > 0.5 else "dark", "tags": ";".join(w for w, is_so in (("light", light > 0.5), ("pale", light > 0.8)) if is_so), "numbers": f"{light:.3f}"}
        rows.append(f"{name},{label[kind]},p{i % 12}")
    (tmp_path / "labels.csv").write_text("path,label,patient\n" + "\n".join(rows))
    return tmp_path / "photos", tmp_path / "labels.csv"


@pytest.mark.parametrize("protocol", ["knn", "linear"])
@pytest.mark.parametrize(("kind", "metric", "above"), [("classes", "top1", 60), ("tags", "auroc", 0.6), ("numbers", "r2", 0.2)])
def test_every_kind_of_label_is_measured_with_groups_apart(protocol, kind, metric, above, run, tmp_path, capsys):
    photos, table = scene(tmp_path, kind)
    row = unmask.evaluate(protocol, run, photos, labels=str(table), group="patient")
    said = capsys.readouterr().out
    assert (row["kind"], row["metric"]) == (kind, metric) and row[metric] > above and row["interval"][0] <= row[metric] <= row["interval"][1]
    assert "of 12 groups, kept apart" in row["val"] and row["interval_over"].endswith("groups") and row["n_train"] + row["n_val"] == 60
    assert f"label read as {kind}" in said and row["val"] in said and json.loads(json.dumps(row)) == row
    if protocol == "linear" and kind != "classes":
        with pytest.raises(Refused, match=f"--paper is MAE's protocol for classes, and these labels are {kind}"):
            unmask.evaluate("linear", run, photos, labels=str(table), paper=True)


def test_labels_in_memory_and_a_hint_for_uneven_classes(run, tmp_path, capsys):
    photos, _ = scene(tmp_path, "numbers")
    labels = ["rare" if i < 4 else "common" for i in range(60)]
    row = unmask.evaluate("knn", run, photos, labels=labels)
    assert row["imbalance"] > 10 and row["largest"][0] == "common" and "hint: the largest of the classes" in capsys.readouterr().out
    row = unmask.evaluate("knn", run, photos, labels=np.linspace(0, 1, 60))
    assert row["metric"] == "r2"
    row = unmask.evaluate("linear", run, photos, labels=torch.stack([torch.arange(60) % 2, torch.arange(60) // 30], 1), epochs=3)
    assert row["metric"] == "auroc" and row["tags"] == 2


@pytest.mark.data
def test_tags_of_coco(run, shared_data, tmp_path):
    """Boxes of COCO become tags: a picture has those of which it shows an object; pictures without objects have none."""
    import tarfile

    names, tags, pictures = {}, {}, []
    with tarfile.open(shared_data / "coco128.tar") as tar:
        for member in tar:
            if member.name.endswith("classes_boxes.json"):
                names = json.load(tar.extractfile(member))
            elif "labels_boxes/" in member.name and member.isfile():
                tags[Path(member.name).stem] = {line.split()[0] for line in tar.extractfile(member).read().decode().splitlines()}
            elif member.name.endswith(".jpg"):
                pictures.append(member.name.removeprefix("./"))
    rows = [f"{name},{';'.join(names[number] for number in sorted(tags.get(Path(name).stem, ())))},{'train' if 'train' in name else 'val'}" for name in pictures]
    (tmp_path / "tags.csv").write_text("path,label,split\n" + "\n".join(rows))
    row = unmask.evaluate("knn", run, shared_data / "coco128.tar/images", labels=str(tmp_path / "tags.csv"))
    assert (row["kind"], row["n_train"], row["n_val"], row["skipped"]) == ("tags", 128, 128, 0) and row["val"].startswith("the split column")
    assert 0.4 < row["auroc"] < 0.8 and row["map"] > row["map_chance"] and row["per_tag"]["person"]["pictures"] > 40


@pytest.mark.data
def test_fuel_moisture_as_it_lies(shared_data):
    """Three months of eighteen bands as pictures of 3 × 18: targets with decimals are numbers, `is_test` says who judges."""
    row = unmask.evaluate(
        "linear", "random:vit_tiny_patch16_224", shared_data / "presto_fuel_moisture.npz", img_size=(3, 18), patch_size=3, batch_size=512, workers=0
    )
    assert (row["kind"], row["n_train"], row["n_val"]) == ("numbers", 1578, 735) and row["val"] == "the split column: test judges"
    assert 0.1 < row["r2"] < 0.5 and row["mae"] < row["mae_of_median"]


@pytest.mark.data
def test_wildfires_stay_whole(run, shared_data, tmp_path):
    """Patches of twenty fires, class and burnt share in one table; a fire never teaches and judges."""
    import tarfile

    with tarfile.open(shared_data / "s2_wildfire.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    data = next(tmp_path.rglob("patches.csv"))
    form = Format(5, (0,) * 5, (255,) * 5, (0.5,) * 5, (0.25,) * 5)
    for label, kind in (("cls", "classes"), ("burn_fraction", "numbers")):
        seen = Pictures(open_source(str(data), Labelled(label=label, group="fire", split="-")), form, Views(), (16, 16))
        for seed in range(5):
            _, teach, _, judge, said = parts(seen, None, "x", seed)
            sides = [set(seen.labels.groups[rows].tolist()) for rows in (teach, judge)]
            assert not sides[0] & sides[1] and "of 20 groups, kept apart" in said and 0.15 < len(judge) / 1050 < 0.25, said
            shares = [np.mean(seen.labels.values[rows] == 0) for rows in (teach, judge)]  # fire edges, or nothing burnt
            assert seen.labels.kind == kind and abs(shares[0] - shares[1]) < 0.1
    row = unmask.evaluate(
        "knn", "random:vit_tiny_patch16_224", data, label="burn_fraction", group="fire", img_size=(16, 16), patch_size=8, batch_size=256, workers=0
    )
    assert (row["n_train"], row["n_val"], row["interval_over"]) == (805, 245, "5 groups") and row["val"].endswith("groups apart") and row["r2"] > 0.1
