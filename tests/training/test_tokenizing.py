"""A vocabulary and the encoder that predicts it, as a person makes them: `tokenizer train`, stopped, resumed, `pretrain beit`, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unmask import cli
from unmask.load import load
from unmask.training.stop import Stop
from unmask.visualize.panels import Sheet

FEW = ["--batch_size", "8", "--accelerator", "cpu", "--workers", "0", "--img_size", "32"]
SMALL = [*FEW, "--vocabulary", "32", "--hidden", "8", "--blocks", "1", "--stride", "4"]
TINY = [*FEW, "--model", "vit_tiny_patch16_224", "--width", "32", "--depth", "2", "--heads", "2", "--patch_size", "8"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npz"
    smooth = np.cumsum(np.cumsum(np.random.default_rng(0).normal(size=(40, 32, 32, 3)), 1), 2)
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    np.savez(path, images=((smooth - low) / (high - low) * 255).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def tokenizer(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "run"
    assert cli.answer(["tokenizer", "train", "dvae", str(data), "--out", str(out), "--steps", "24", *SMALL]) == 0
    return out


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_run_shows_its_codes_and_its_paintings(tokenizer):
    measured = [row for row in rows(tokenizer) if "codes_used" in row]
    assert measured[0]["step"] == 0 and measured[-1]["step"] == 24 and 1 <= measured[-1]["codes_used"] <= 32
    assert 1 <= measured[-1]["codes_as_many_as"] <= measured[-1]["codes_used"] and measured[-1]["best_constant"] < 0
    pictures = sorted((tokenizer / "pictures").glob("*.png"))
    assert "painted from its codes" in Sheet.read(pictures[-1]).header
    assert not (tokenizer / "encoder.safetensors").exists() and json.loads((tokenizer / "status.json").read_text())["status"] == "finished"
    page = (tokenizer / "report.html").read_text()
    assert "Codes in use" in page and "codes are in use at step 24" in page
    assert "unmask pretrain beit DATA" in page and "unmask evaluate knn" not in page, "it has no encoder to measure"
    assert "codes in use, as evenly as" in (tokenizer / "log.txt").read_text()


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("dvae", ["--model", "vit_tiny_patch16_224", "--width", "32"], "dvae does not use --model --width: its network is its own"),
        ("dvae", ["--patch_size", "8", "--heads", "2"], "dvae does not use --patch_size --heads"),
        ("vqkd", ["--teacher", "random:vit_tiny_patch16_224", "--activation_checkpointing"], "vqkd does not use --activation_checkpointing"),
    ],
)
def test_what_a_tokenizer_does_not_use_is_refused(name, words, said, data, tmp_path, capsys):
    assert cli.main(["tokenizer", "train", name, str(data), "--out", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_tokenizers_run_is_drawn_by_reconstruct(tokenizer, data, tmp_path, capsys):
    assert cli.answer(["reconstruct", str(tokenizer), str(data), "--count", "3", "--out", str(tmp_path / "x.png")]) == 0
    sheet = Sheet.read(tmp_path / "x.png")
    assert "painted from its codes" in sheet.header
    for words, said in ((["--mask_ratio", ".5"], "a tokenizer, which hides nothing"), (["--img_size", "30"], "no multiple of the 4 pixels")):
        assert cli.main(["reconstruct", str(tokenizer), str(data), "--out", str(tmp_path / "y.png"), *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "y.png").exists()


def test_its_loss_falls_below_the_best_constant(data, tmp_path):
    """More steps than the fixture's: the pictures are smooth."""
    out = tmp_path / "run"
    assert cli.answer(["tokenizer", "train", "dvae", str(data), "--out", str(out), "--steps", "120", "--lr", "0.003", "--kl_weight", "0.5", *SMALL]) == 0
    found = rows(out)
    constant = next(row["best_constant"] for row in reversed(found) if "best_constant" in row)
    assert np.mean([row["loss"] for row in found if "loss" in row][-10:]) < constant


def test_stopped_and_resumed_it_ends_with_the_same_weights(data, tokenizer, tmp_path, monkeypatch):
    """Soft draws are a function of the step."""
    out, asked, agree = tmp_path / "run", iter(range(10**6)), Stop.agree

    def soon(self, fabric):
        self.wish = "SIGTERM" if next(asked) > 9 else self.wish
        agree(self, fabric)

    monkeypatch.setattr(Stop, "agree", soon)
    code = cli.main(["tokenizer", "train", "dvae", str(data), "--out", str(out), "--steps", "24", *SMALL])
    monkeypatch.undo()
    assert code == 75
    assert cli.answer(["resume", str(out)]) == 0
    one, other = (load_file(run / "model.safetensors") for run in (out, tokenizer))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_vocabulary_taught_by_a_run(data, tmp_path):
    """Teacher, tokenizer, encoder: three runs."""
    runs = [tmp_path / name for name in ("teacher", "words", "beit2")]
    assert cli.answer(["pretrain", "mae", str(data), "--out", str(runs[0]), "--steps", "2", *TINY]) == 0
    words = ["--teacher", str(runs[0]), "--vocabulary", "24", "--columns", "8", "--decoder_depth", "1"]
    assert cli.answer(["tokenizer", "train", "vqkd", str(data), "--out", str(runs[1]), "--steps", "12", *words, *TINY]) == 0
    measured = [row for row in rows(runs[1]) if "codes_used" in row]
    assert measured[-1]["step"] == 12 and measured[-1]["codes_used"] > 1 and 0 < measured[-1]["best_constant"] <= 1
    assert "spelled by patches of the others" in Sheet.read(sorted((runs[1] / "pictures").glob("*.png"))[-1]).header
    assert "unmask pretrain beit2" in (runs[1] / "log.txt").read_text()
    again = tmp_path / "again"
    assert cli.answer(["tokenizer", "train", "--config", str(runs[1] / "config.yaml"), "--out", str(again)]) == 0
    one, other = (load_file(run / "model.safetensors") for run in (runs[1], again))
    assert all(torch.equal(one[key], other[key]) for key in one), "the same words, the same run"
    assert cli.answer(["pretrain", "beit2", str(data), "--out", str(runs[2]), "--steps", "4", "--method.tokenizer", str(runs[1]), *TINY]) == 0
    assert cli.answer(["reconstruct", str(runs[2]), str(data), "--out", str(tmp_path / "grid.png")]) == 0
    assert "prediction, as patches" in Sheet.read(tmp_path / "grid.png").header
    assert json.loads((runs[2] / "status.json").read_text())["status"] == "finished"


def test_beit_predicts_its_codes_and_draws_them(data, tokenizer, tmp_path):
    run = tmp_path / "beit"
    assert cli.answer(["pretrain", "beit", str(data), "--out", str(run), "--steps", "6", "--method.tokenizer", str(tokenizer), *TINY]) == 0
    assert json.loads((run / "status.json").read_text())["status"] == "finished" and (run / "encoder.safetensors").is_file()
    best = next(row["best_constant"] for row in reversed(rows(run)) if "best_constant" in row)
    assert 0 < best < np.log(32), "the entropy of its codes"
    assert cli.answer(["reconstruct", str(run), str(data), "--out", str(tmp_path / "grid.png")]) == 0
    assert "prediction, painted from codes" in Sheet.read(tmp_path / "grid.png").header
    assert load(run).objectives["codes"].target.tokenizer.vocabulary == 32
    assert not any(key.startswith("tokenizer") for key in load_file(run / "model.safetensors"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tokenizer train dva DATA --out x", "did you mean dvae?"),
        ("tokenizer train mae DATA --out x", "unmask pretrain mae"),
        ("tokenizer train dvae --out x", "DATA is missing: unmask tokenizer train dvae"),
        ("tokenizer train vqkd DATA --out x", "needs a teacher: --teacher ENCODER"),
        ("tokenizer train dvae DATA --out x --stride 5", "stride must be 2, 4 or 8"),
        ("pretrain dvae DATA --out x", "unmask tokenizer train dvae"),
        ("pretrain beit DATA --out x", "--method.tokenizer RUN"),
        ("pretrain beit DATA --out x --method.tokenizer nothing", "no run or file"),
        ("evaluate knn RUN DATA", "no encoder"),
        ("export RUN --to timm --out x", "encoder"),
    ],
)
def test_wrong_words_are_answered_in_a_line(words, said, data, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([{"DATA": str(data), "RUN": str(tokenizer)}.get(word, word) for word in words.split()]) == 2
    line = capsys.readouterr().err.strip()
    assert said in line and "\n" not in line and not list(tmp_path.iterdir())
