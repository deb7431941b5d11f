"""Every form of DATA gives the same samples, the right labels, or one clear refusal."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.data.quarantine import BadSample
from unmask.data.sources import Names, check, open_source
from unmask.errors import Refused


def picture(number: int, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def tree(tmp_path):
    """photos/{train,val}/{cat,dog}/*.png, four a folder."""
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "photos" / place / f"{number}.PNG").write_bytes(png(len(place) * 10 + number))
    return tmp_path / "photos"


def tar_of(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def same(source, numbers):
    assert len(source) == len(numbers)
    for index, number in enumerate(numbers):
        assert np.array_equal(source.read(index), picture(number))


def test_names_are_a_list_of_strings():
    names = ["a", "", "sub/ünï.jpg", os.fsdecode(b"bad\xff.png")]
    packed = Names(names)
    assert list(packed) == names and packed[-1] == names[-1] and packed[1:3] == names[1:3]
    assert list(pickle.loads(pickle.dumps(packed))) == names
    with pytest.raises(IndexError):
        packed[4]


def test_check_needs_neither_torch_nor_numpy(tree):
    code = f"import sys; from unmask.data.sources import check; check({str(tree)!r}); print({{'torch', 'numpy', 'PIL'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda d: d / "phots", "did you mean .*photos"),
        (lambda d: d / "photos" / "trian" / "cat", "photos.* train|train"),
        (lambda d: (d / "empty").mkdir() or d / "empty", "empty"),
        (lambda d: (d / "a.xyz").write_text("x") and d / "a.xyz", r"a\.xyz.*\.xyz"),
        (lambda d: (d / "a.tar.gz").write_text("x") and d / "a.tar.gz", "compressed tar"),
        (lambda d: f"{d}/*.nothing", "no file matches"),
        (lambda d: f"{d}/x-{{00..02}}.tar", "3 of the 3 files"),
        (lambda d: "hf:a b", "owner/name"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(tree, make, says):
    with pytest.raises(Refused, match=says) as told:
        check(str(make(tree.parent)))
    assert "\n" not in str(told.value)


def test_folder_labels_and_splits(tree):
    check(str(tree))
    source = open_source(str(tree))
    assert len(source) == 16 and source.labels.names == ["cat", "dog"] and source.labels.counts().tolist() == [8, 8]
    assert {split: len(indices) for split, indices in source.splits.items()} == {"train": 8, "val": 8}
    assert "train/ 8, val/ 8" in source.said[0]
    part = open_source(str(tree / "val"))
    assert part.labels.names == ["cat", "dog"] and part.splits == {} and part.said == ()
    assert open_source(str(tree / "val" / "cat")).labels is None
    assert source.name(0) == f"{tree}/train/cat/0.PNG"
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint == source.fingerprint and np.array_equal(again.read(5), source.read(5))


def test_an_irregular_tree_has_no_labels(tree):
    (tree / "train" / "loose.png").write_bytes(png(0))
    assert open_source(str(tree)).labels is None


def test_only_splits_are_no_classes(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(3):
            (tmp_path / split / f"{number}.png").write_bytes(png(number))
    assert open_source(str(tmp_path)).labels is None


def test_links_hidden_files_and_folders_named_like_pictures(tmp_path):
    folder = tmp_path / "d"
    (folder / "x.jpg").mkdir(parents=True)
    (folder / "x.jpg" / "inner.png").write_bytes(png(1))
    (folder / "a.png").write_bytes(png(0))
    (folder / "._a.png").write_bytes(b"mac")
    (folder / "notes.txt").write_text("x")
    (folder / "loop").symlink_to(folder)
    (folder / "b.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(str(folder))
    assert [os.path.relpath(source.name(index), folder) for index in range(len(source))] == ["a.png", "b.png", "x.jpg/inner.png"]
    with pytest.raises(BadSample, match="nowhere"):
        source.read(1)


def test_lists_globs_single_files_and_several(tree):
    paths = sorted(str(path) for path in (tree / "train").rglob("*.PNG"))
    (tree.parent / "list.txt").write_text("# comment\n" + "\n".join(os.path.relpath(path, tree.parent) for path in paths))
    (tree.parent / "labelled.txt").write_text("\n".join(f"{path}\t{'ab'[i % 2]}" for i, path in enumerate(paths)))
    (tree.parent / "table.csv").write_text("path,label\n" + "\n".join(f"{path},{i % 3}" for i, path in enumerate(paths)))
    for data in (str(tree.parent / "list.txt"), f"{tree}/train/*/*.PNG", f"{tree}/**/train/**/*.PNG", paths, [str(tree / "train/cat"), str(tree / "train/dog")]):
        source = open_source(data)
        assert len(source) == 8 and source.read(0).shape == (20, 24, 3), data
        assert source.labels.names == ["cat", "dog"], data
    assert open_source(str(tree.parent / "labelled.txt")).labels.names == ["a", "b"]
    assert open_source(str(tree.parent / "table.csv")).labels.values.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert len(open_source(paths[0])) == 1
    (tree.parent / "prose.txt").write_text("This is no list.\n")
    with pytest.raises(Refused, match="names no picture"):
        open_source(str(tree.parent / "prose.txt"))


def test_csv_labels(tree):
    rows = [f"{split}/{kind}/{number}.PNG,{kind}-{split}" for split in ("train", "val") for kind in ("cat", "dog") for number in range(4)]
    path = tree.parent / "labels.csv"
    path.write_text("path,label\n" + "\n".join(rows[:-2]))
    source = open_source(str(tree), labels=str(path))
    assert source.labels.names == ["cat-train", "cat-val", "dog-train", "dog-val"]
    assert (~source.labels.known).sum() == 2 and "2 of 16" in source.said[-1]
    path.write_text("name,label\na,b")
    with pytest.raises(Refused, match="no column 'path'"):
        open_source(str(tree), labels=str(path))
    path.write_text("path,label\nelse.png,1")
    with pytest.raises(Refused, match="no row"):
        open_source(str(tree), labels=str(path))


def test_tar_with_class_folders_and_parts(tmp_path):
    names = [f"{split}/{kind}/{number}.png" for split in ("train", "val") for kind in ("cat", "dog") for number in range(3)]
    path = tar_of(tmp_path / "a.tar", {name: png(number) for number, name in enumerate(names)} | {"train/notes.txt": b"x", "train/._0.png": b"x"})
    check(path)
    source = open_source(path)
    same(source, range(12))
    assert source.labels.names == ["cat", "dog"] and set(source.splits) == {"train", "val"} and source.name(2) == f"{path}/train/cat/2.png"
    check(path + "/val")
    part = open_source(path + "/val")
    same(part, range(6, 12))
    assert part.labels.values.tolist() == [0, 0, 0, 1, 1, 1] and part.name(0) == f"{path}/val/cat/0.png"
    with pytest.raises(Refused, match=r"no pictures in .*a\.tar/tset"):
        open_source(path + "/tset")
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(3), picture(3))


def test_webdataset_shards(tmp_path):
    for shard in range(3):
        members = {}
        for number in range(4):
            members[f"{shard}{number}.png"] = png(shard * 4 + number)
            members[f"{shard}{number}.cls"] = str(number % 2).encode()
        tar_of(tmp_path / f"s-{shard:03d}.tar", members)
    for data in (str(tmp_path), f"{tmp_path}/s-*.tar", f"{tmp_path}/s-{{000..002}}.tar"):
        check(data)
        source = open_source(data)
        same(source, range(12))
        assert source.labels.values.tolist() == [0, 1] * 6
    path = tar_of(tmp_path / "j.tar", {"a.png": png(0), "a.json": json.dumps({"label": "x"}).encode(), "b.png": png(1), "b.json": b'{"label": "y"}'})
    assert open_source(path).labels.names == ["x", "y"]


def test_more_shards_than_stay_open(tmp_path, monkeypatch):
    from unmask.data import archives

    monkeypatch.setattr(archives, "OPEN", 2)
    for shard in range(5):
        tar_of(tmp_path / f"{shard}.tar", {"x.png": png(shard)})
    source = open_source(str(tmp_path))
    same(source, range(5))
    assert len(source._files) == 2


def test_a_tar_that_climbs_out_or_is_none_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"slip\.tar.*outside"):
        open_source(tar_of(tmp_path / "slip.tar", {"../slipped.png": png(0)}))
    (tmp_path / "no.tar").write_bytes(b"x" * 3000)
    with pytest.raises(Refused, match=r"no\.tar"):
        open_source(str(tmp_path / "no.tar"))
    whole = tar_of(tmp_path / "cut.tar", {f"{number}.png": png(number) for number in range(3)})
    data = Path(whole).read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: 512 + len(png(0)) + 700])
    try:
        source = open_source(str(tmp_path / "cut.tar"))
        same(open_source(str(tmp_path / "cut.tar")), range(len(source)))
    except (Refused, BadSample) as error:
        assert "archive" in str(error) or "cut.tar" in str(error)


@pytest.mark.parametrize("order, shape", [("NHWC", (6, 20, 24, 3)), ("NCHW", (6, 3, 20, 24)), ("NHW", (6, 20, 24))])
def test_arrays_in_files_and_in_memory(tmp_path, order, shape):
    array = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    first = {"NHWC": lambda: array[2], "NCHW": lambda: array[2].transpose(1, 2, 0), "NHW": lambda: array[2][..., None]}[order]()
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", images=array, labels=np.arange(6) % 3)
    np.savez_compressed(tmp_path / "z.npz", images=array, labels=np.arange(6) % 3)
    for data in (str(tmp_path / "x.npy"), str(tmp_path / "x.npz"), str(tmp_path / "z.npz"), array):
        source = open_source(data)
        assert len(source) == 6 and np.array_equal(source.read(2), first)
        assert np.array_equal(pickle.loads(pickle.dumps(source)).read(2), first)
        if str(data).endswith("npz"):
            assert source.labels.values.tolist() == [0, 1, 2, 0, 1, 2] and source.labels.names == ["0", "1", "2"]
    assert isinstance(open_source(str(tmp_path / "x.npz")).array, np.memmap)
    assert len(pickle.dumps(open_source(str(tmp_path / "x.npy")))) < 2000


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


@pytest.mark.parametrize("name", ["evil.npy", "evil.npz"])
def test_python_objects_are_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    array = np.array([Evil()], dtype=object)
    np.save(tmp_path / "evil.npy", array, allow_pickle=True)
    np.savez(tmp_path / "evil.npz", images=np.array([[[Evil()]]], dtype=object))
    with pytest.raises(Refused, match=f"{name} is refused: it holds Python objects"):
        open_source(str(tmp_path / name))
    assert not (tmp_path / "pwned").exists()


def test_parquet_one_file_and_a_folder(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for part in range(2):
        rows = [{"bytes": png(part * 5 + number), "path": f"{number}.png"} for number in range(5)]
        table = pa.table({"image": rows, "label": [number % 3 for number in range(5)]})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=2)
    check(str(tmp_path))
    source = open_source(str(tmp_path))
    same(source, range(10))
    assert source.labels.values.tolist() == [0, 1, 2, 0, 1] * 2 and source.name(7) == f"{tmp_path}/1.parquet#2"
    source.prepare()
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(9), picture(9))
    pq.write_table(pa.table({"jpg": [png(1), png(2), None]}), tmp_path / "plain.parquet")
    plain = open_source(str(tmp_path / "plain.parquet"))
    assert np.array_equal(plain.read(1), picture(2)) and plain.labels is None
    with pytest.raises(BadSample, match="no picture"):
        plain.read(2)
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "none.parquet")
    with pytest.raises(Refused, match="no column of pictures"):
        open_source(str(tmp_path / "none.parquet"))


def test_large_parquet_goes_through_the_cache_of_datasets(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    from unmask.data import tables

    monkeypatch.setattr(tables, "IN_MEMORY", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"bytes": png(number), "path": f"{number}.png"} for number in range(5)]
    pq.write_table(pa.table({"image": rows, "label": ["b", "a", "b", "a", "b"]}), tmp_path / "x.parquet", row_group_size=1)
    source = open_source(str(tmp_path / "x.parquet"))
    same(source, range(5))
    assert source.labels.names == ["a", "b"] and source.labels.values.tolist() == [1, 0, 1, 0, 1] and "cache" in source.said[-1]
    monkeypatch.setattr(tables, "find_spec", lambda name: None if name == "datasets" else True)
    plain = open_source(str(tmp_path / "x.parquet"))
    same(plain, range(5))
    assert len(plain._cache) == tables.GROUPS and "slow" in plain.said[-1]


def test_hugging_face_folder_and_object(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": png(number), "path": None} for number in range(4)], "label": [0, 1, 1, 0]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": dataset, "test": dataset.select(range(2))}).save_to_disk(str(tmp_path / "dict"))
    for data in (str(tmp_path / "saved"), str(tmp_path / "dict"), dataset):
        if isinstance(data, str):
            check(data)
        source = open_source(data)
        same(source, range(4))
        assert source.labels.names == ["cat", "dog"] and source.labels.values.tolist() == [0, 1, 1, 0]


def test_any_dataset(tmp_path):
    import torch
    from torch.utils.data import TensorDataset

    tensors = torch.from_numpy(np.stack([picture(number).transpose(2, 0, 1) for number in range(3)]))
    same(open_source(TensorDataset(tensors, torch.arange(3))), range(3))
    same(open_source(tensors), range(3))
    same(open_source([Image.fromarray(picture(number)) for number in range(3)], labels=[0, 1, 0]), range(3))
    same(open_source([{"image": picture(number), "label": 1} for number in range(3)]), range(3))
    with pytest.raises(Refused, match="empty"):
        open_source([])
    with pytest.raises(Refused, match="IterableDataset"):
        open_source(iter([1]))


@pytest.mark.data
def test_the_real_sets_open(shared_data):
    source = open_source(str(shared_data / "imagenette224.tar") + "/val")
    assert len(source) == 3925 and len(source.labels.names) == 10 and source.read(100).shape == (224, 224, 3)
    source = open_source(str(shared_data / "cifar10-train.parquet"))
    assert len(source) == 25000 and source.labels.names[0] == "airplane" and source.read(24_999).shape == (32, 32, 3)
