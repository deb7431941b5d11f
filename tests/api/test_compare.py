"""`unmask compare` from words to files, on real photographs and networks of one block."""

import csv
import json
import re
import shutil

import pytest
import torch

import unmask
from unmask import cli
from unmask.encoders.build import create_trunk
from unmask.interchange.timm import save_encoder

SMALL = {"img_size": 32, "workers": 0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two encoders of one architecture and a file of another, all of them fresh."""
    folder = tmp_path_factory.mktemp("runs")
    for place, width in (("a/encoder", 32), ("b/encoder", 32), ("other", 48)):
        torch.manual_seed(width + len(place) + ord(place[0]))
        trunk = create_trunk("vit_tiny_patch16_224", (32, 32), 3, patch_size=16, width=width, depth=1, heads=2)
        save_encoder(folder / f"{place}.safetensors", trunk, {"mean": [0.45] * 3, "std": [0.25] * 3})
    return folder


@pytest.fixture(scope="module")
def compared(runs, imagenette, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep"
    return unmask.compare(imagenette / "train", [runs / "a", runs / "b"], val=imagenette / "val", out=out, **SMALL), out


def test_the_table_is_what_evaluate_says(compared, runs, imagenette):
    told, _ = compared
    rows = {row["name"]: row for row in told["table"]}
    ours = {name: next(row for word, row in rows.items() if word.endswith(name)) for name in ("/a", "/b")}
    for protocol in ("knn", "linear"):
        for random in (False, True):
            single = unmask.evaluate(protocol, runs / "a", imagenette / "train", val=imagenette / "val", random=random, **SMALL)
            made = (rows["random encoder"] if random else ours["/a"])[protocol]
            assert made["top1"] == single["top1"] and made["pooling"] == single["pooling"]
            assert made["interval"] == pytest.approx(single["interval"], abs=0.01)
    assert list(rows) == [*(row["name"] for row in ours.values()), "random encoder", "pixel statistics"]
    assert rows["random encoder"]["floor_of"] == list(rows)[:2], "one architecture has one random row"
    assert told["n_train"] == told["n_val"] == 120 and told["classes"] == 10 and told["val"] == "--val" and told["img_size"] == [32, 32]


def test_the_files(compared):
    told, out = compared
    kept = json.loads((out / "compare.json").read_text())
    assert kept["verdict"] == told["verdict"] and len(kept["pictures"]) == 120
    right = sum(row["truth"] == row["answers"]["pixel statistics"] for row in kept["pictures"])
    assert 100 * right / 120 == pytest.approx(told["pixel_statistics"]["linear"]["top1"], abs=1e-3)
    page = (out / "compare.html").read_text()
    assert "<table" in page and "https://" not in page and page.count("data:image/jpeg") >= 5


def test_words_end_with_one_json_object(runs, imagenette, tmp_path, monkeypatch, capsys):
    """Other sizes, another architecture, random:NAME with the data's channels, a split of DATA's own folders."""
    monkeypatch.chdir(tmp_path)
    words = ["compare", str(imagenette), str(runs / "a"), "random:vit_tiny_patch16_224", str(runs / "other.safetensors"), "--workers", "0"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    told = json.loads(said.splitlines()[-1])
    assert told["verdict"] in said and "pixel statistics" in said and told["img_size"] == [32, 32]
    kinds = [row["kind"] for row in told["table"]]
    assert kinds == ["encoder"] * 3 + ["random"] * 2 + ["pixels"], "the random network asked for is its own floor; the other two have one each"
    names = [row["name"] for row in told["table"]]
    assert names[3].startswith("random encoder (") and names[1] == "random:vit_tiny_patch16_224"
    assert (tmp_path / "compare.html").is_file() and (tmp_path / "compare.json").is_file()
    pairs = {(gap["first"], gap["second"]) for gap in told["differences"] if gap["protocol"] == "linear" and gap["second"] in names[:3]}
    assert len(pairs) == 3


def test_labels_and_groups_in_a_csv(runs, imagenette, tmp_path):
    """Groups are kept apart, and the interval of a difference is theirs."""
    files = sorted((imagenette / "train").rglob("*.*"))
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "group"])
        rows.writerows([path.name, path.parent.name, f"film-{i % 24 // 2}"] for i, path in enumerate(files))
    told = unmask.compare(imagenette / "train", [runs / "a", runs / "b"], labels=tmp_path / "labels.csv", out=tmp_path, **SMALL)
    assert told["groups"] in (2, 3) and told["n_train"] + told["n_val"] == 120
    gap = next(gap for gap in told["differences"] if gap["protocol"] == "linear" and "random" not in gap["second"] and "pixel" not in gap["second"])
    assert "mcnemar_p" not in gap and gap["half_width"] > 5
    assert any("groups" in note and "so few" in note for note in told["notes"])


def test_leaks_and_unreadable_pictures_are_said(runs, imagenette, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(imagenette / split, tmp_path / "data" / split)
    first = sorted((tmp_path / "data" / "train").rglob("*.*"))[:2]
    for file in first:
        shutil.copy(file, tmp_path / "data" / "val" / file.parent.name / f"again-{file.name}")
    (tmp_path / "data" / "val" / first[0].parent.name / "broken.jpg").write_bytes(b"no picture")
    told = unmask.compare(tmp_path / "data", runs / "a", out=tmp_path / "out", **SMALL)
    assert told["n_val"] == 122 and told["verdict"].count("reaches") == 1
    assert any(note.startswith("2 judging pictures are among the teaching ones") for note in told["notes"])
    assert any(note.startswith("1 judging pictures cannot be read") for note in told["notes"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "ENCODER is missing"),
        (["{a}", "{a}"], "named twice"),
        (["{a}", "no-such-run"], "no-such-run"),
        (["{a}", "--random"], "random:NAME"),
        (["{a}", "random:vit_tiny_patch16_22"], "vit_tiny_patch16_22"),
        (["{a}", "random:vit_small_patch14_dinov2"], "give --img_size"),
        (["{a}", "--pooling", "pixels"], "pooling"),
        (["{a}", "--labels", "no.csv"], "no.csv"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_computed(runs, imagenette, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", str(imagenette), *(word.format(a=runs / "a") for word in words)]) == 2
    told = capsys.readouterr()
    assert says in told.err and told.err.count("\n") == 1 and "kNN" not in told.out
    assert not list(tmp_path.iterdir())


def test_a_beit_has_a_class_token(runs, imagenette, tmp_path):
    torch.manual_seed(0)
    trunk = create_trunk("beit_base_patch16_224", (32, 32), 3, patch_size=16, width=32, depth=1, heads=2)
    save_encoder(tmp_path / "beit.safetensors", trunk, {"mean": [0.45] * 3, "std": [0.25] * 3})
    told = unmask.compare(imagenette / "train", tmp_path / "beit.safetensors", val=imagenette / "val", out=tmp_path, pooling="cls", **SMALL)
    assert all(row["knn"]["pooling"] == "cls" for row in told["table"] if row["name"] != "pixel statistics")


def test_without_labels(runs, imagenette, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = next((imagenette / "val").iterdir())
    assert cli.main(["compare", str(folder), str(runs / "a"), str(runs / "b")]) == 2
    said = capsys.readouterr().err
    assert "label" in said and "--labels" in said and "unmask neighbours" in said and said.count("\n") == 1


def test_weights_that_cannot_be_had(runs, imagenette, tmp_path, monkeypatch, capsys):
    """Published weights that are neither here nor to be fetched: one line, before the first encoder is measured."""
    import huggingface_hub

    def nowhere(*words, **more):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", nowhere)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *words, **more: None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", str(imagenette), str(runs / "a"), "timm:vit_tiny_patch16_224.augreg_in21k"]) == 2
    told = capsys.readouterr()
    assert re.search(r"weights of timm:vit_tiny_patch16_224\S* are not on this machine", told.err) and told.err.count("\n") == 1
    assert "kNN" not in told.out and not list(tmp_path.iterdir())


def test_names_tell_encoders_apart(runs, tmp_path):
    from unmask.api.compare import names

    words = [str(runs / "a"), str(runs / "b"), "timm:vit_small_patch16_224.dino", str(runs / "other.safetensors")]
    short = names(words)
    assert len(set(short)) == 4 and short[2] == words[2] and short[0].endswith("/a") and short[0].count("/") == 1
    (tmp_path / "x" / "run").mkdir(parents=True)
    (tmp_path / "y" / "x" / "run").mkdir(parents=True)
    assert len(set(names([str(tmp_path / "x" / "run"), str(tmp_path / "y" / "x" / "run")]))) == 2


def test_fine_tuned_too(runs, imagenette, tmp_path, capsys):
    """Every encoder is trained further and its network from scratch; that decides, and a second call takes the finished runs."""
    words = {"val": imagenette / "val", "finetune": True, "finetune_epochs": 2, "out": tmp_path, **SMALL}
    told = unmask.compare(imagenette / "train", [runs / "a", runs / "b"], **words)
    assert told["deciding"] == "finetune" and "fine-tuned" in told["verdict"] and "pixel statistics (linear)" in told["verdict"]
    rows = {row["kind"]: row for row in told["table"]}
    assert "finetune" not in rows["pixels"] and rows["random"]["finetune"]["run"].endswith("finetune/random-encoder")
    for kind in ("encoder", "random"):
        kept = json.loads((tmp_path.joinpath(rows[kind]["finetune"]["run"]) / "evaluations.jsonl").read_text().splitlines()[-1])
        assert kept["protocol"] == "finetune" and rows[kind]["finetune"]["top1"] == pytest.approx(kept["top1"], abs=1e-3)
    said = capsys.readouterr().out
    assert said.count("finished: ") == 3
    again = unmask.compare(imagenette / "train", [runs / "a", runs / "b"], **words)
    assert again["verdict"] == told["verdict"] and "finished: " not in capsys.readouterr().out
    with pytest.raises(unmask.Refused, match="another seed"):
        unmask.compare(imagenette / "train", [runs / "a", runs / "b"], seed=3, **words)
