"""Labels as people have them: classes, tags and numbers out of any table, told apart, and refused by row and value."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.labels import Labels, aligned
from unmask.data.sources import open_source
from unmask.errors import Refused
from unmask.settings import Labelled

nan = float("nan")


def told(labels, count: int = 4, **asked) -> tuple[Labels, str]:
    """What is made of labels in memory, and how that is said."""
    source = open_source(np.zeros((count, 8, 8), np.uint8), Labelled(labels=labels, **asked))
    return source.labels, source.said[-1]


@pytest.mark.parametrize(
    ("given", "kind", "values", "names"),
    [
        ([3, 1, None, 1], "classes", [1, 0, -1, 0], ["1", "3"]),
        (["b", "a", None, ""], "classes", [1, 0, -1, -1], ["a", "b"]),
        ([10, 9, -1, 9], "classes", [1, 0, -1, 0], ["9", "10"]),
        ([1, -1, -1, 1], "classes", [1, 0, 0, 1], ["-1", "1"]),
        (np.array([2, 0, 1, 2]), "classes", [2, 0, 1, 2], ["0", "1", "2"]),
        (torch.tensor([1, 0, 1, 0]), "classes", [1, 0, 1, 0], ["0", "1"]),
        ([True, False, True, True], "classes", [1, 0, 1, 1], ["0", "1"]),
        ([0.5, 1.0, nan, 2.0], "numbers", [[0.5], [1.0], [nan], [2.0]], ["label"]),
        (np.array([1.0, 2.0, 3.0, 4.0]), "numbers", [[1.0], [2.0], [3.0], [4.0]], ["label"]),
        (np.array([[1, 0], [0, 0], [1, 1], [0, 1]]), "tags", [[1, 0], [0, 0], [1, 1], [0, 1]], ["label 0", "label 1"]),
        (torch.tensor([[1.0, nan], [0, 0], [1, 1], [0, 1]]), "tags", [[1, nan], [0, 0], [1, 1], [0, 1]], ["label 0", "label 1"]),
        (np.array([[1.5, 2], [0, 0], [1, 1], [0, 1]]), "numbers", [[1.5, 2], [0, 0], [1, 1], [0, 1]], ["label 0", "label 1"]),
        ([["a", "b"], [], ["b"], None], "tags", [[1, 1], [0, 0], [0, 1], [nan, nan]], ["a", "b"]),
        (["a;b", "", "b", "b ; c"], "tags", [[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 1, 1]], ["a", "b", "c"]),
        (["a|b", "a", "b", "a|b"], "tags", [[1, 1], [1, 0], [0, 1], [1, 1]], ["a", "b"]),
        (["a, b", "a", "b", "['a', 'b']"], "tags", [[1, 1], [1, 0], [0, 1], [1, 1]], ["a", "b"]),
        (["tench, Tinca", "shark, Carcharodon", "tench, Tinca", "x"], "classes", [1, 0, 1, 2], ["shark, Carcharodon", "tench, Tinca", "x"]),
        (["12.5", "NA", "3", ""], "numbers", [[12.5], [nan], [3], [nan]], ["label"]),
        (["1.0", "0.0", "", "1.0"], "classes", [1, 0, -1, 1], ["0", "1"]),
        (["1.0", "0.0", "nan", "1.0"], "classes", [1, 0, -1, 1], ["0", "1"]),
        (["NA", "0", "1", "N/A"], "classes", [-1, 0, 1, -1], ["0", "1"]),
        (["2", "null", "None", "1"], "classes", [1, -1, -1, 0], ["1", "2"]),
        (["none", "mild", "none", "severe"], "classes", [1, 0, 1, 2], ["mild", "none", "severe"]),
        ({"cat": [1, 0, 1, 1], "dog": ["0", "1", "", "1"]}, "tags", [[1, 0], [0, 1], [1, nan], [1, 1]], ["cat", "dog"]),
        ({"height": [1, 2, 3, 4], "age": [0.5, 1, 2, 3]}, "numbers", [[1, 0.5], [2, 1], [3, 2], [4, 3]], ["height", "age"]),
    ],
)
def test_what_columns_are_taken_for(given, kind, values, names):
    labels, said = told(given)
    assert (labels.kind, labels.names) == (kind, names) and f"read as {kind}" in said
    assert np.array_equal(labels.values, np.array(values), equal_nan=kind != "classes")
    assert labels.values.dtype == (np.int64 if kind == "classes" else np.float32)
    assert labels.known.tolist() == ([value >= 0 for value in values] if kind == "classes" else [not np.isnan(row).all() for row in values])


def test_unknown_cells_are_counted():
    assert told(["NA", "0", "1", ""])[1].endswith("; 2 of 4 unknown") and "unknown" not in told(["none", "mild", "none", "mild"])[1]


def test_what_is_meant_goes_before_the_guess():
    assert told([1, 2, 2, 5], task="numbers")[0].values[:, 0].tolist() == [1, 2, 2, 5]
    assert told(["a;b", "a", "b", "a"], task="classes")[0].names == ["a", "a;b", "b"]
    assert told([0.5, 1.5, 0.5, 2.0], task="classes")[0].names == ["0.5", "1.5", "2"]
    assert told([1, 0, 1, 1], task="tags")[0].values.tolist() == [[1], [0], [1], [1]]
    one_hot = {"cat": [1, 0, 0, 0], "dog": [0, 1, 0, 1]}
    assert told(one_hot, task="classes")[0].values.tolist() == [0, 1, -1, 1]


@pytest.mark.parametrize(
    ("given", "asked", "says"),
    [
        ([1, 2, 3], {}, "3 labels for 4 samples"),
        (["1", "2", "x", "4"], {"task": "numbers"}, "row 2, label: 'x' is no number"),
        ({"cat": [1, 0, 2, 0]}, {"task": "classes", "label": "dog"}, "no column 'dog' .*cat"),
        ({"cat": [1, 0, 2, 0], "dog": [0, 0, 1, 1]}, {"task": "tags"}, "row 2, cat: '2' is neither 0 nor 1"),
        ({"cat": [1, 0, 1, 0], "dog": [0, 0, 1, 1]}, {"task": "classes"}, "row 2.*tags"),
        ({"a": ["x", "y", "x", "y"], "b": [1, 2, 3, 4]}, {}, "which column holds the labels"),
        ([None, "", None, None], {}, "empty in every row"),
        ({"label": [1, 2, 3, 4], "split": ["train", "train", "tset", "val"]}, {"split": "split"}, "row 2, split: 'tset' is none of train, val and test"),
        ({"label": [1, 2, 3, 4], "fold": [1, 2, 3, 4]}, {"split": "fold=9"}, "no row .* '9'"),
        ({"label": [1, 2, 3, 4], "patient": list("aabb")}, {"group": "patent"}, "did you mean patient"),
        (np.zeros((4, 2, 3)), {}, r"shape \(4, 2, 3\)"),
    ],
)
def test_bad_tables_are_refused_in_one_line(given, asked, says):
    with pytest.raises(Refused, match=says) as refused:
        told(given, **asked)
    assert "\n" not in str(refused.value)


def test_groups_and_splits():
    table = {"label": list("abab"), "patient": ["p1", "p2", "p1", None], "part": ["Train", "validation", "test", ""]}
    labels, said = told(table, group="patient", split="part")
    assert labels.groups[0] == labels.groups[2] and len(set(labels.groups.tolist())) == 3 and labels.groups[3] < 0
    assert labels.splits.tolist() == ["train", "val", "test", ""] and "groups by patient (3)" in said and "train 1, val 1, test 1, none 1" in said
    again, _ = told({"label": list("abab"), "group": ["p2", "p2", "p9", "p1"]})
    assert again.groups[3] == labels.groups[0] and again.groups[0] == labels.groups[1], "a group has the same number in every table"
    flags, _ = told({"label": [0, 1, 0, 1], "is_test": [True, False, False, True]})
    assert flags.splits.tolist() == ["test", "train", "train", "test"]
    folds, said = told({"label": [0, 1, 0, 1], "split": [0, 1, 2, 3]})
    assert folds.splits is None and "split is left alone" in said, "a column that was not asked for is no reason to refuse"
    none, said = told({"label": [0, 1, 0, 1], "split": ["train"] * 4, "group": [1] * 4}, split="-", group="-")
    assert none.splits is None and none.groups is None and "label read as classes" in said
    part = labels.rows([2, 1])
    assert part.values.tolist() == [0, 1] and part.splits.tolist() == ["test", "val"] and part.groups[0] == labels.groups[0]


def test_labels_agree_by_name():
    val = Labels("classes", np.array([0, 1, -1, 2]), ["dog", "cat", "cow"])
    assert aligned(val, Labels("classes", np.zeros(1), ["cat", "dog"])).values.tolist() == [1, 0, -1, -1]
    val = Labels("tags", np.array([[1, 0]], np.float32), ["b", "c"])
    assert np.array_equal(aligned(val, Labels("tags", val.values, ["a", "b"])).values, [[nan, 1]], equal_nan=True)
    val = Labels("numbers", np.array([[1.5]], np.float32), ["height"])
    assert aligned(val, Labels("numbers", val.values, ["size"])).names == ["size"]
    with pytest.raises(Refused, match="share none of their tags"):
        aligned(Labels("tags", np.zeros((1, 1)), ["x"]), Labels("tags", np.zeros((1, 1)), ["y"]))
    with pytest.raises(Refused, match="--task"):
        aligned(val, Labels("tags", np.zeros((1, 1)), ["y"]))


def test_uneven_classes_are_reported():
    even = Labels("classes", np.repeat([0, 1], [50, 50]), ["a", "b"])
    assert even.balance() == {"largest": ["a", 50], "smallest": ["a", 50], "imbalance": 1.0} and len(even.said()) == 1
    uneven = Labels("classes", np.repeat([0, 1, 2], [110, 10, 40]), ["a", "b", "c"])
    line, hint = uneven.said()
    assert line == "160 labelled pictures, 3 classes: largest a 110 (68.8%), smallest b 10 (6.2%)" and "11 times" in hint and "balanced_accuracy" in hint
    assert Labels("classes", np.repeat([0, 1], [100, 10]), ["a", "b"]).said()[1:] == [], "a hint only above ten times"
    assert "map" in Labels("tags", np.array([[1, 0]] * 30 + [[0, 1]], np.float32), ["a", "b"]).said()[1]
    assert Labels("numbers", np.array([[1.5], [nan], [3]], np.float32), ["x"]).balance() == {"range": {"x": [1.5, 3.0]}}


@pytest.fixture
def photos(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/3.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "parquet"])
def test_label_files(photos, kind):
    columns = {"path": ["a/1.png", "photos/a/2.png", str(photos / "b/1.png"), "elsewhere/3.png", "no/9.png"], "label": ["x", "y", "x", "z", "x"]}
    path = photos.parent / f"labels.{'csv' if kind == 'semicolon' else kind}"
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)
    else:
        mark = {"csv": ",", "semicolon": ";", "tsv": "\t"}[kind]
        path.write_text("\n".join(mark.join(row) for row in [columns.keys(), *zip(*columns.values())]), encoding="utf-8-sig")
    source = open_source(str(photos), str(path))
    assert [source.labels.names[number] for number in source.labels.values] == ["x", "y", "x", "z"]
    assert source.said[-1] == f"1 of 5 paths in {path} are none of these pictures"


def test_a_file_of_groups_goes_beside_class_folders(photos):
    path = photos.parent / "patients.csv"
    path.write_text("path,patient\na/1.png,p\na/2.png,q\nb/1.png,p\n")
    source = open_source(str(photos), Labelled(labels=str(path), group="patient"))
    assert source.labels.names == ["a", "b"] and source.labels.values.tolist() == [0, 0, 1, 1] and source.labels.groups[0] == source.labels.groups[2]
    assert source.labels.groups[3] < 0, "a picture without a row is no group's"


def test_names_without_endings(photos):
    path = photos.parent / "ids.csv"
    path.write_text("id,label\na/1,x\n2,y\nb/1,z\n3,x\n")
    assert open_source(str(photos), str(path)).labels.values.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("rows", "values", "says"),
    [
        (["one/0,x", "one/1,y"], [0, 1, -1, -1], "2 of 4 pictures have no row"),  # two/0 is not one/0
        (["0,x", "one/1,y"], [-1, 1, -1, -1], "3 of 4 pictures have no row"),  # which 0?
        (["0.png,x", "one/1.png,y"], [-1, 1, -1, -1], "1 of 2 paths in .* are none of these pictures"),
        (["two/1,x", "one/1,y", "two/0,x", "one/0,y"], [1, 1, 0, 0], "read as classes"),
    ],
)
def test_a_picture_without_a_row_takes_no_other_ones_label(tmp_path, rows, values, says):
    for folder in ("one", "two"):
        (tmp_path / "p" / folder).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "p" / folder / f"{number}.png").write_bytes(png(80 * number))
    (tmp_path / "l.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    source = open_source(str(tmp_path / "p"), str(tmp_path / "l.csv"))
    assert source.labels.values.tolist() == values and re.search(says, "\n".join(source.said))


def test_a_row_of_another_folder_is_said(photos):
    path = photos.parent / "names.csv"
    path.write_text("path,label\n1.png,w\nelsewhere/3.png,x\n")
    source = open_source(str(photos), str(path))
    assert source.labels.values.tolist() == [-1, -1, -1, 1], "two pictures are called 1.png"
    assert f"1 pictures are found by their file name: 'elsewhere/3.png' of {path} is taken for {photos / 'b/3.png'}" in source.said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column 'path'"),
        ("path,label\n", "is empty"),
        ("name,label\na,b\n", r"no column 'path' \(it has name, label\)"),
        ("path,label\na/1.png,x\na/1.png,y\n", r"'a/1.png' stands in rows 2 and 3 with different labels.*a;b"),
        ("path,label\na/1.png,x,y\n", "3 cells, but the first line names 2"),
        ("path,label\na/1.png,\n", "empty in every row"),
        ("path,label\nelse.png,1\n", "no row of .* matches"),
        ("path,label,label\na/1.png,1,2\n", "two columns are called 'label'"),
        ("path\na/1.png\n", "only column is 'path'"),
    ],
)
def test_bad_label_files_are_refused_in_one_line(photos, text, says):
    path = photos.parent / "labels.csv"
    path.write_text(text)
    with pytest.raises(Refused, match=says) as refused:
        open_source(str(photos), str(path))
    assert "\n" not in str(refused.value)


def test_the_same_row_twice_and_odd_files(photos):
    path = photos.parent / "labels.csv"
    path.write_text("path,label\na/1.png,x\na/1.png,x\n\nb/1.png,y\n")
    assert open_source(str(photos), str(path)).labels.values.tolist() == [0, -1, 1, -1]
    with pytest.raises(Refused, match="no label file"):
        open_source(str(photos), str(photos / "none.csv"))
    path.write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(Refused, match="UTF-8"):
        open_source(str(photos), str(path))
    (photos.parent / "labels.json").write_text("{}")
    with pytest.raises(Refused, match=r"\.csv, \.tsv or \.parquet"):
        open_source(str(photos), str(photos.parent / "labels.json"))
    with pytest.raises(Refused, match="--group names a column"):
        open_source(str(photos), Labelled(group="patient"))


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


def as_csv(folder, rows):
    for i in range(len(rows)):
        (folder / f"{i}.png").write_bytes(png(i))
    path = folder / "data.csv"
    path.write_text("path,label,age,group,split\n" + "\n".join(f"{i}.png,{';'.join(tags)},{age},{group},{split}" for i, (tags, age, group, split) in enumerate(rows)))
    return str(path)


def as_tsv(folder, rows):
    path = folder / "data.tsv"
    path.write_text(Path(as_csv(folder, rows)).read_text().replace(",", "\t"))
    return str(path)


def as_tar(folder, rows):
    with tarfile.open(folder / "data.tar", "w") as tar:
        for i, (tags, age, group, split) in enumerate(rows):
            for name, data in ((f"{i}.png", png(i)), (f"{i}.json", json.dumps({"label": tags, "age": age, "group": group, "split": split, "url": {}}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(folder / "data.tar")


def as_parquet(folder, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [row[place] for row in rows] for place, name in enumerate(("label", "age", "group", "split"))}
    pq.write_table(pa.table({"image": [{"bytes": png(i), "path": None} for i in range(len(rows))], **columns}), folder / "data.parquet")
    return str(folder / "data.parquet")


def as_hub(folder, rows):
    datasets = pytest.importorskip("datasets")
    words = ["cat", "dog"]
    features = {"image": datasets.Image(), "label": datasets.Sequence(datasets.ClassLabel(names=words)), "age": datasets.Value("float32")}
    features |= {"group": datasets.Value("string"), "split": datasets.Value("string")}
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("label", "age", "group", "split"))}
    columns["label"] = [[words.index(word) for word in tags] for tags in columns["label"]]
    columns["image"] = [{"bytes": png(i), "path": None} for i in range(len(rows))]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def as_hub_parquet(folder, rows):
    as_hub(folder, rows).to_parquet(str(folder / "hub.parquet"))
    return str(folder / "hub.parquet")


def as_npz(folder, rows):
    ages, groups, splits = (np.array([row[place] for row in rows]) for place in (1, 2, 3))
    tags = np.array([[word in row[0] for word in ("cat", "dog")] for row in rows])
    np.savez(folder / "data.npz", images=np.zeros((len(rows), 8, 8), np.uint8), label=tags, age=ages, group=groups, split=splits)
    return str(folder / "data.npz")


@pytest.mark.parametrize("form", [as_csv, as_tsv, as_tar, as_parquet, as_hub, as_hub_parquet, as_npz], ids=lambda form: form.__name__[3:])
def test_every_form_of_data_tells_tags_numbers_groups_and_parts(form, tmp_path):
    rows = [(["cat"], 1.5, "p", "train"), (["cat", "dog"], 2.25, "q", "val"), ([], 3.0, "p", "train"), (["dog"], 0.5, "r", "test")]
    data = form(tmp_path, rows)
    source = open_source(data)
    assert source.labels.kind == "tags" and source.labels.values.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]], source.said
    if form is not as_npz:
        assert source.labels.names == ["cat", "dog"]
    assert source.labels.groups[0] == source.labels.groups[2] and len(set(source.labels.groups.tolist())) == 3
    assert source.labels.splits.tolist() == ["train", "val", "train", "test"] and "groups by group (3)" in source.said[-1]
    other = open_source(data, Labelled(label="age", split="group=q"))
    assert (other.labels.kind, other.labels.names) == ("numbers", ["age"]) and other.labels.values[:, 0].tolist() == [1.5, 2.25, 3.0, 0.5]
    assert other.labels.splits.tolist() == ["train", "val", "train", "train"]
    with pytest.raises(Refused, match="no column 'agee'" + (", did you mean age" if form is not as_tar else "")):
        open_source(data, Labelled(label="agee"))


def test_torch_datasets_tell_their_labels():
    from torch.utils.data import Subset, TensorDataset

    x = torch.zeros(4, 3, 8, 8)
    assert open_source(TensorDataset(x, torch.tensor([2, 0, 1, 2]))).labels.values.tolist() == [2, 0, 1, 2]
    assert open_source(TensorDataset(x, torch.rand(4, 3))).labels.kind == "numbers"
    assert open_source(TensorDataset(x, x)).labels is None, "pictures of pictures are no labels"
    part = Subset(TensorDataset(x, torch.tensor([2, 0, 1, 2])), [3, 1])
    assert [open_source(part).labels.names[i] for i in open_source(part).labels.values] == ["2", "0"]
    pictures = [Image.new("L", (8, 8)) for _ in range(3)]
    assert open_source([(picture, word) for picture, word in zip(pictures, "bab")]).labels.names == ["a", "b"]
    assert open_source([{"image": picture, "label": 0.5 * i} for i, picture in enumerate(pictures)]).labels.kind == "numbers"


def test_names_of_classes_beside_numbers(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8), np.uint8), label=np.array([2, 0, -1], np.int16), class_names=np.array(["cat", "cow", "dog"]))
    labels = open_source(str(tmp_path / "x.npz")).labels
    assert labels.names == ["cat", "cow", "dog"] and labels.values.tolist() == [2, 0, -1]
    np.savez(tmp_path / "y.npz", images=np.zeros((3, 8, 8), np.uint8), label=np.array([2, 0, 3]), class_names=np.array(["cat", "cow", "dog"]))
    with pytest.raises(Refused, match="row 2, label: '3' is none of the 3 classes"):
        open_source(str(tmp_path / "y.npz"))


def test_a_large_table_is_read_in_seconds(tmp_path):
    rng, began = np.random.default_rng(0), time.perf_counter()
    values = (rng.random((100_000, 20)) < 0.2).astype(int)
    labels, _ = told({f"tag {k}": values[:, k].tolist() for k in range(20)}, count=100_000)
    assert np.array_equal(labels.values, values) and time.perf_counter() - began < 30
