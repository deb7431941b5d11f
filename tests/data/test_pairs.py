"""Captions of every form: matched, counted, refused; one of several a sample, whatever reads it."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.pairs import Captioned, captions_of, learnt, parts_of
from unmask.data.sources import open_source
from unmask.data.statistics import survey
from unmask.errors import Refused
from unmask.settings import Views
from unmask.text import Words, learn_words

ROWS = [
    {"file": "a.png", "split": "train", "captions": ["a red one", "a red one", "the first"]},
    {"file": "b.png", "split": "train", "captions": ["a green one"]},
    {"file": "c.png", "split": "val", "captions": ["a blue one", "the third"]},
    {"file": "elsewhere.png", "split": "train", "captions": ["nobody"]},
]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    for number, name in enumerate("abcd"):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)).save(place / f"{name}.png")
    return place


def file_of(tmp_path, kind):
    path = tmp_path / f"captions.{kind}"
    flat = [(row["file"], row["split"], caption) for row in ROWS for caption in row["captions"]]
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    elif kind == "parquet":
        pytest.importorskip("pyarrow")
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist([{"path": row["file"], "split": row["split"], "captions": row["captions"]} for row in ROWS]), path)
    else:
        mark = "," if kind == "csv" else "\t"
        path.write_text("\n".join(map(mark.join, [("image", "split", "caption"), *flat])))
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_a_file_of_any_kind_says_the_same(folder, tmp_path, kind):
    captions, said = captions_of(open_source(str(folder)), file_of(tmp_path, kind))
    assert [captions[index] for index in range(4)] == [["a red one", "the first"], ["a green one"], ["a blue one", "the third"], []]
    assert captions.splits.tolist() == ["train", "train", "val", ""] and captions.counts.tolist() == [2, 1, 2, 0]
    told = " | ".join(said)
    for part in ("5 of 3 pictures", "1 of 4 pictures have no row", "1 of 4 paths", "1 captions say the same"):
        assert part in told, told


def test_captions_inside_a_folder_a_tar_and_beside_each_picture(folder, tmp_path):
    def told(source):
        captions, said = captions_of(source, None)
        return [captions[index] for index in range(3)], said

    wanted = [["a red one", "the first"], ["a green one"], ["a blue one", "the third"]]
    lines = "\n".join(map(json.dumps, ROWS))
    with pytest.raises(Refused, match="no captions"):
        told(open_source(str(folder)))
    for name, text in zip("abc", wanted):
        (folder / f"{name}.txt").write_text("\n".join(text) + "\n")
    assert told(open_source(str(folder)))[0] == wanted
    for inside, kind in (("", "txt"), ("images/", "jsonl")):
        archive = tmp_path / f"{kind}.tar"
        with tarfile.open(archive, "w") as tar:
            for path in sorted(folder.iterdir()):
                if path.suffix == ".png" or kind == "txt":
                    tar.add(path, f"{inside}{path.name}")
            if kind == "jsonl":
                text = lines.replace('"file": "', '"file": "images/').encode()
                member = tarfile.TarInfo("captions.jsonl")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
        assert told(open_source(str(archive)))[0] == wanted, kind
    (folder / "captions.jsonl").write_text(lines)
    assert told(open_source(str(folder)))[0] == wanted


def test_the_split_decides_who_teaches_and_what_is_read_is_part_of_the_run(folder, tmp_path):
    path, said = file_of(tmp_path, "jsonl"), list[str]()
    file = tmp_path / "captions.jsonl"
    source = learnt(open_source(str(folder)), path)
    assert len(source) == 2 and source.name(1).endswith("b.png") and source.captions[0] == ["a red one", "the first"]
    assert any("2 of train" in line and "1 of val left alone" in line for line in source.said)
    assert parts_of(captions_of(open_source(str(folder)), path)[0], ("val",), said) == [2]
    file.write_text(file.read_text() + json.dumps({"file": "d.png", "split": "val", "captions": ["new"]}))
    assert learnt(open_source(str(folder)), path).fingerprint == source.fingerprint, "who judges is no part of the run"
    file.write_text(file.read_text().replace("a green one", "a grey one"))
    assert learnt(open_source(str(folder)), path).fingerprint != source.fingerprint


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "is empty"),
        ("{\n", "line 1, is no JSON"),
        ("[1]\n", "line 1, is no object"),
        ('{"file": "a.png"}\n', "no column 'caption'"),
        ('{"caption": "a"}\n', "no 'file' or 'path'"),
        ('{"file": "a.png", "caption": " "}\n', "holds no caption"),
        ('{"file": "z.png", "caption": "a"}\n', "no row of .* matches a picture"),
        ('{"file": "a.png", "caption": "a", "split": "maybe"}\n', "row 1: 'maybe'"),
        ('{"file": "a.png", "caption": "a", "split": "train"}\n{"file": "a.png", "caption": "b", "split": "val"}\n', "row 2 under 'val'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(folder, tmp_path, text, answer):
    path = tmp_path / "captions.jsonl"
    path.write_text(text)
    with pytest.raises(Refused, match=answer) as caught:
        captions_of(open_source(str(folder)), str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(folder, tmp_path):
    (tmp_path / "captions.xml").write_text("<a/>")
    for name, answer in (("nothing.jsonl", "there is no file"), ("captions.xml", "captions are a .jsonl")):
        with pytest.raises(Refused, match=answer):
            captions_of(open_source(str(folder)), str(tmp_path / name))


def test_one_of_several_captions_is_a_function_of_seed_epoch_and_sample(folder, tmp_path):
    source = learnt(open_source(str(folder)), file_of(tmp_path, "jsonl"))
    words = learn_words(source.captions.words, least=1)

    def drawn(seed, start=0, steps=12, **how):
        pictures = Captioned(Words(words, 5), source, survey(source), Views(), (16, 16), seed)
        batches = list(pictures.batches(2, start, steps, **how))
        shapes = [pictures.finish(batch, "cpu") for batch in batches]
        assert all(list(x) == ["images", "text"] and x["images"].shape == (2, 3, 16, 16) and x["text"].shape == (2, 5) for x in shapes)
        for batch, x in zip(batches, shapes):
            for row, index in enumerate(batch["index"].tolist()):
                said = source.captions.words[batch["caption"][row]]
                assert said in source.captions[index]
                assert torch.equal(x["text"][row], Words(words, 5)([said])[0])
        return [batch["caption"].tolist() for batch in batches]

    once = drawn(0)
    assert once == drawn(0) and once == drawn(0, workers=2) and once[5:] == drawn(0, start=5, steps=7)
    assert once != drawn(1)
    assert len({caption for batch in once for caption in batch}) == 3, "in twelve passes every caption is read"


def test_inspect_counts_what_is_said(folder, tmp_path):
    from unmask.data.inspect import inspect, lines

    report = inspect(str(folder), captions=file_of(tmp_path, "csv"), workers=1)
    told = report["captions"]
    assert (told["captions"], told["pictures"], told["per_picture"], told["words"], told["shared"]) == (5, 3, "0 to 2 (median 1)", "2 to 3 (median 3)", 0)
    assert "captions   5 of 3 pictures" in "\n".join(lines(report))
    assert inspect(str(folder), workers=1)["captions"] is None
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert inspect(str(folder), workers=1)["captions"]["captions"] == 5
