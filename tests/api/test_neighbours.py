"""`unmask neighbours` on real photographs with planted copies and an odd one out."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import unmask
from unmask import cli

ENCODER = "random:vit_tiny_patch16_224"
SEEN = {"img_size": 48, "workers": 0}


@pytest.fixture(scope="module")
def planted(imagenette, tmp_path_factory):
    """bank/: 60 photographs, JPEG copies of three of them, a frame of noise; val/: 20 others and two that bank holds too."""
    folder = tmp_path_factory.mktemp("planted")
    files = sorted((imagenette / "train").rglob("*.*"))
    bank, others = files[::2][:60], files[1::2][:20]
    for split, chosen in (("bank", bank), ("val", others)):
        (folder / split).mkdir()
        for file in chosen:
            (folder / split / file.name).write_bytes(file.read_bytes())
    for i, file in enumerate(bank[:3]):
        Image.open(file).convert("RGB").save(folder / "bank" / f"copy-{i}.jpg", quality=60)
    noise = np.random.default_rng(0).integers(0, 2, (12, 12, 3), dtype=np.uint8) * 255
    Image.fromarray(noise).resize((224, 224), Image.Resampling.NEAREST).save(folder / "bank" / "odd.png")
    (folder / "bank" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    for file in bank[10:12]:
        (folder / "val" / f"again-{file.name}").write_bytes(file.read_bytes())
    return folder, [file.name for file in bank]


def test_duplicates_outliers_and_leaks(planted, tmp_path, capsys):
    folder, names = planted
    found = unmask.neighbours(ENCODER, folder / "bank", val=folder / "val", out=tmp_path / "out" / "n.png", max_bad_share=0.5, **SEEN)
    told = capsys.readouterr().out
    twins = {tuple(sorted(path["first" if side else "second"].rsplit("/", 1)[-1] for side in (0, 1))) for path in found["duplicates"]}
    assert {tuple(sorted((f"copy-{i}.jpg", names[i]))) for i in range(3)} <= twins and len(twins) <= 5
    assert found["outliers"][0]["path"].endswith("odd.png") and found["outliers"][0]["distance"] > 2 * found["usual_distance"]
    assert {leak["val"].rsplit("again-")[-1] for leak in found["leaks"] if "again-" in leak["val"]} == set(names[10:12])
    assert "of 22 pictures of --val have a near-duplicate" in told and "cosine similarity of" in told and "1 unreadable" in told
    assert found["pictures"] == 64
    assert json.loads((tmp_path / "out" / "n.json").read_text())["duplicates"] == found["duplicates"]
    rows = list(csv.reader((tmp_path / "out" / "n-duplicates.csv").open()))
    assert rows[0] == ["first", "second", "similarity"] and len(rows) == 1 + len(found["duplicates"])
    for name in ("n-duplicates.png", "n-outliers.png", "n-leaks.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 200


def test_queries_leave_themselves_out(planted, tmp_path):
    folder, names = planted
    asked = [folder / "bank" / "copy-1.jpg", folder / "val"]
    found = unmask.neighbours(ENCODER, folder / "bank", query=asked, k=3, out=tmp_path / "n.png", max_bad_share=0.5, **SEEN)
    assert len(found["queries"]) == 23 and all(len(row["nearest"]) == 3 for row in found["queries"])
    first = found["queries"][0]
    assert first["query"].endswith("copy-1.jpg") and first["nearest"][0]["path"].endswith(names[1])
    again = [row for row in found["queries"] if "again-" in row["query"]]
    assert len(again) == 2
    assert all(row["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-5) and row["nearest"][0]["path"].endswith(row["query"].rsplit("again-")[-1]) for row in again)
    values = [one["similarity"] for one in first["nearest"]]
    assert values == sorted(values, reverse=True)
    assert (tmp_path / "n.csv").read_text().count("\n") == 1 + 23 * 3 and min(Image.open(tmp_path / "n.png").size) > 300


def test_a_threshold_of_ones_own_and_a_split_in_folders(planted, tmp_path, capsys):
    folder, _ = planted
    both = tmp_path / "data"
    both.mkdir()
    for name, split in (("train", "bank"), ("val", "val")):
        (both / name).symlink_to(folder / split)
    found = unmask.neighbours(ENCODER, both, threshold=0.99999, out=tmp_path / "n.png", max_bad_share=0.5, **SEEN)
    assert found["threshold"] == 0.99999 and {pair["similarity"] > 0.99998 for pair in found["duplicates"]} == {True}
    assert len(found["across_splits"]) == 2 and "two sides of the split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--query", "no-such.jpg"], "no-such.jpg"),
        (["--out", "n.csv"], "png"),
        (["--threshold", "2"], "threshold"),
        (["--querry", "a"], "--query"),
        (["--query", "a.jpg", "--val", "b"], "--val"),
    ],
)
def test_what_is_wrong_is_refused_at_once(planted, words, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["neighbours", ENCODER, str(planted[0] / "bank"), *words]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_several_queries_are_read_as_words(planted):
    words = ["neighbours", ENCODER, "photos/", "--query", "a.jpg", "box 3.jpg", "--k", "4", "--query", "b.jpg"]
    assert cli.read(*cli.command_of(words)) == ([ENCODER, "photos/"], {"query": ("a.jpg", "box 3.jpg", "b.jpg"), "k": 4})
