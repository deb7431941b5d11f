"""Fine-tuning runs as a person makes them: begun, killed, resumed to the same weights, from scratch, refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import unmask
from unmask import api, cli
from unmask.errors import Refused
from unmask.evaluation.features import pool
from unmask.interchange.encoder import load_encoder

QUICK = {"batch_size": 8, "accelerator": "cpu", "workers": 0, "steps": 12, "seed": 3, "monitor_every": 6, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.1, "lr": 1e-3}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["unmask.training.start", "unmask.transfer.teaching", "unmask.visualize.report", "lightning_fabric"])


def finetune(encoder, data: Path, out: Path, **more) -> dict:
    return api.evaluate("finetune", encoder, str(data), out=out, **QUICK | more)


@pytest.fixture(scope="module")
def whole(encoder, data, tmp_path_factory) -> Path:
    """One uninterrupted run, with everything that draws numbers, and an average of the weights."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finetune(encoder, data, out, ema=0.9)
    return out


def first(run: Path) -> dict:
    """The first row of what was measured on a run."""
    return json.loads((run / "evaluations.jsonl").read_text().splitlines()[0])


def same(one: Path, other: Path) -> bool:
    a, b = (load_file(run / "model.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_what_every_run_leaves_and_its_figures(whole, encoder):
    assert {"config.yaml", "metrics.jsonl", "encoder.safetensors", "model.safetensors", "report.html", "status.json", "evaluations.jsonl"} <= {p.name for p in whole.iterdir()}
    row = first(whole)
    assert row["protocol"] == "finetune" and row["n_train"] == 64 and row["n_val"] == 16 and row["pooling"] == "avg" and "top1_average" in row
    assert {"top1", "interval", "img_size", "seed", "seconds", "encoder", "lr", "mixup"} <= row.keys()
    assert first(encoder)["run"] == row["run"]
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "top1" in r] == [0, 6, 12] and all("top1_average" in r and "val_loss" in r for r in rows if "top1" in r)
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 13))


def test_the_encoder_it_leaves_is_an_encoder(whole, data):
    opened = load_encoder(whole)
    assert isinstance(opened.model.fc_norm, torch.nn.LayerNorm) and opened.img_size == (32, 32)
    weights = load_file(whole / "model.safetensors")
    assert torch.equal(opened.model.state_dict()["blocks.0.attn.qkv.weight"], weights["encoder.trunk.blocks.0.attn.qkv.weight"])
    assert 0 <= api.evaluate("knn", str(whole), str(data))["top1"] <= 100
    with safe_open(whole / "encoder.safetensors", "pt") as file:
        assert {"model", "img_size", "mean", "std", "kwargs"} <= file.metadata().keys() and "drop_path" not in file.metadata()["kwargs"]


def test_load_gives_the_classifier_back(whole):
    learner = unmask.load(whole)
    answers = learner.predict(torch.zeros(2, 3, 32, 32))
    assert answers.shape == (2, 4) and learner.names == ["0", "1", "2", "3"] and torch.allclose(answers.sum(1), torch.ones(2))


def test_the_page_shows_how_the_head_is_used(whole, tmp_path, monkeypatch, capsys):
    from PIL import Image
    from test_docs import ROOT, blocks

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first-finetuned").symlink_to(whole)
    Image.new("RGB", (40, 50), (200, 60, 60)).save("photo.jpg")
    (code,) = blocks(ROOT / "docs" / "fine-tuning.md", "python")
    exec(compile(code, "fine-tuning.md", "exec"), {})
    name, share = capsys.readouterr().out.split()
    assert name in ("0", "1", "2", "3") and 25 <= int(share[:-1]) <= 100


def test_the_average_is_exported_when_asked(encoder, data, tmp_path):
    row = finetune(encoder, data, tmp_path / "run", ema=0.9, weights="average")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    mine = load_encoder(tmp_path / "run").model.state_dict()["blocks.0.attn.qkv.weight"]
    assert torch.equal(mine, weights["average.encoder.trunk.blocks.0.attn.qkv.weight"]) and "top1_last" in row
    assert not torch.equal(mine, weights["encoder.trunk.blocks.0.attn.qkv.weight"])


def test_its_config_runs_again_to_the_same_weights(whole, tmp_path):
    api.evaluate("finetune", None, None, config=whole / "config.yaml", out=tmp_path / "again")
    assert same(whole, tmp_path / "again")


def test_workers_and_parts_change_nothing_and_another_seed_does(whole, encoder, data, tmp_path):
    finetune(encoder, data, tmp_path / "workers", ema=0.9, workers=1)
    assert same(whole, tmp_path / "workers")
    finetune(encoder, data, tmp_path / "seed", ema=0.9, seed=4)
    assert not same(whole, tmp_path / "seed")


def test_accumulated_parts_mix_the_same_pairs(encoder, data, tmp_path):
    """Without what is drawn by the process itself, four parts give the losses of the whole batch."""
    for parts in (1, 4):
        finetune(encoder, data, tmp_path / str(parts), accumulate=parts, drop_path=0, erasing=0, steps=4)
    losses = [[json.loads(line).get("loss") for line in (tmp_path / part / "metrics.jsonl").read_text().splitlines()] for part in ("1", "4")]
    assert [x for x in losses[0] if x] == pytest.approx([x for x in losses[1] if x], abs=1e-5)


def command(words: list[str], log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    from unmask.training import step

    real = step.clip
    step.clip = lambda *a: (time.sleep(0.15), real(*a))[1]
    os._exit(cli.main(words))


def stopped(words: list, log: Path, out: Path, number: int) -> int:
    """Start a command, send it a signal after its first steps; how it ended."""
    process = PROCESSES.Process(target=command, args=([str(word) for word in words], str(log)))
    process.start()
    end = time.monotonic() + 120
    while time.monotonic() < end and not ((out / "metrics.jsonl").is_file() and '"loss"' in (out / "metrics.jsonl").read_text()):
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(process.pid, number)
    process.join(60)
    return process.exitcode


def words_for(encoder, data, out, **more) -> list:
    settings = QUICK | {"ema": 0.9, "out": out} | more
    return ["evaluate", "finetune", encoder, data, *(word for name, value in settings.items() for word in (f"--{name}", value))]


def test_killed_it_goes_on_to_the_same_weights(whole, encoder, data, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    assert stopped(words_for(encoder, data, out, checkpoint_every=2), log, out, signal.SIGKILL) == -signal.SIGKILL, log.read_text()
    assert any((out / "checkpoints").glob("step-*")), log.read_text()
    assert unmask.api.resume(out) == out
    assert same(whole, out)
    assert first(out)["top1"] == first(whole)["top1"]


def test_a_signal_saves_and_exits_75(whole, encoder, data, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    assert stopped(words_for(encoder, data, out), log, out, signal.SIGTERM) == 75, log.read_text()
    assert f"unmask resume {out}" in log.read_text() and "Traceback" not in log.read_text()
    assert json.loads((out / "status.json").read_text())["status"] == "interrupted"
    assert cli.main(["resume", str(out)]) == 0 and same(whole, out)


def test_from_scratch_is_the_same_network_with_other_weights(encoder, data, tmp_path):
    row = finetune(encoder, data, tmp_path / "run", random=True, steps=1, lr=1e-12)
    assert "scratch: true" in (tmp_path / "run" / "config.yaml").read_text()
    ours, theirs = load_encoder(tmp_path / "run").model.state_dict(), load_encoder(encoder).model.state_dict()
    assert row["random"] is True and ours["pos_embed"].shape == theirs["pos_embed"].shape
    assert not torch.allclose(ours["blocks.0.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"], atol=1e-3)


def test_another_size_interpolates_the_places(encoder, data, tmp_path):
    row = finetune(encoder, data, tmp_path / "run", img_size=(48, 48), steps=1)
    assert row["img_size"] == [48, 48] and load_encoder(tmp_path / "run").model.pos_embed.shape[1] == 37


def test_shots_teach_with_as_many_of_each_class(encoder, data, tmp_path):
    row = finetune(encoder, data, tmp_path / "run", shots=3, steps=1)
    assert (row["n_train"], row["n_val"], row["shots"]) == (12, 16, 3)
    with pytest.raises(Refused, match="only 16 pictures"):
        finetune(encoder, data, tmp_path / "none", shots=99)
    assert not (tmp_path / "none").exists()


def test_learning_works(encoder, data, tmp_path):
    """Colour tells the class: a hundred steps find it, and the frozen trunk with a head is below the whole."""
    row = finetune(encoder, data, tmp_path / "run", steps=100, mixup=0, cutmix=0, drop_path=0, randaugment=0, erasing=0, lr=2e-3)
    assert row["interval"][0] > 50


def test_what_was_not_said_is_chosen_and_said(encoder, data, tmp_path, capsys):
    api.evaluate("finetune", str(encoder), str(data), out=tmp_path / "a", accelerator="cpu", workers=0, steps=2)
    said = capsys.readouterr().out
    assert "mixup 0, cutmix 0: 0.5 epochs" in said and "drop_path 0, randaugment 0, erasing 0: 0.5 epochs" in said and "64 pictures teach, 16 judge" in said
    api.evaluate("finetune", str(encoder), str(data), out=tmp_path / "b", accelerator="cpu", workers=0, steps=1, paper=True, batch_size=8)
    config = (tmp_path / "b" / "config.yaml").read_text()
    assert all(line in config for line in ("mixup: 0.8", "cutmix: 1.0", "layer_decay: 0.65", "drop_path: 0.1", "randaugment: 9.0", "min_lr: 1.0e-06", "base_lr: 0.0005"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "finetune"], "wants data"),
        (["evaluate", "finetune", "nothing", "."], "no ENCODER 'nothing'"),
        (["evaluate", "finetune", "random:vit_tiny_patch16_224", "nothing"], "nothing"),
        (["evaluate", "finetune", "random:vit_tiny_patch16_224", ".", "--mixupp", "1"], "did you mean --mixup"),
        (["evaluate", "finetune", "random:vit_tiny_patch16_224", ".", "--drop_path", "1"], "drop_path must be less than 1"),
        (["evaluate", "finetune", "random:vit_tiny_patch16_224", ".", "--shots", "1", "--share", "1%"], "shots and share"),
        (["evaluate", "finetune", "random:vit_tiny_patch16_224", ".", "--weights", "average"], "wants --ema"),
        (["pretrain", "finetune", ".", "--out", "x"], "finetune"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def labelled(folder: Path, data: Path, labels) -> Path:
    """The same pictures with other labels."""
    import numpy as np

    np.savez(folder / "x.npz", images=np.load(data)["images"], labels=labels)
    return folder / "x.npz"


def test_tags_are_learnt_each_by_itself(encoder, data, tmp_path):
    import numpy as np

    number = np.arange(80) % 4
    tags = np.stack([number == 0, number <= 1, number == 3], 1).astype(np.float32)
    tags[::7, 1] = np.nan
    words = {"steps": 80, "mixup": 0, "cutmix": 0, "drop_path": 0, "randaugment": 0, "erasing": 0, "lr": 2e-3}
    row = finetune(encoder, labelled(tmp_path, data, tags), tmp_path / "run", **words, task="tags")
    assert row["kind"] == "tags" and row["metric"] == "auroc" and row["auroc"] > 0.8 and "map" in row
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("auroc" in r for r in rows) and not any("majority" in r for r in rows)
    answers = unmask.load(tmp_path / "run").predict(torch.zeros(2, 3, 32, 32))
    assert answers.shape == (2, 3) and ((answers > 0) & (answers < 1)).all()


def test_numbers_are_learnt_in_their_own_units(encoder, data, tmp_path, capsys):
    import numpy as np

    pictures = np.load(data)["images"].astype(np.float32)
    red = 1000 + 50 * pictures[..., 0].mean((1, 2)) / 255
    numbers = np.stack([red, pictures[..., 1].mean((1, 2))], 1).astype(np.float32)
    words = {name: value for name, value in QUICK.items() if name not in ("mixup", "cutmix", "drop_path")} | {"steps": 100, "lr": 2e-3, "ema": 0.9}
    row = api.evaluate("finetune", encoder, str(labelled(tmp_path, data, numbers)), out=tmp_path / "run", paper=True, epochs=None, **words, task="numbers")
    assert "mixup 0, cutmix 0: a mixture of two pictures does not have the mean" in capsys.readouterr().out
    assert row["kind"] == "numbers" and row["metric"] == "r2" and row["r2"] > 0.3 and "r2_average" in row
    answers = unmask.load(tmp_path / "run").predict(torch.zeros(2, 3, 32, 32))
    assert answers.shape == (2, 2) and (answers[:, 0] > 900).all() and (answers[:, 1] < 300).all()


def test_an_encoder_without_tokens_is_trained_on(data, tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "res.pth")
    word, words = f"{tmp_path / 'res.pth'}:model=test_resnet", {"img_size": 32, "steps": 2, "batch_size": 8, "workers": 0, "accelerator": "cpu"}
    for protocol in ("finetune", "attentive"):
        row = api.evaluate(protocol, word, str(data), out=str(tmp_path / protocol), **words)
        assert row["n_val"] == 16 and row["run"] == str(tmp_path / protocol)
    tuned, x = load_encoder(tmp_path / "finetune"), torch.rand(2, 3, 32, 32)
    assert (tuned.name, tuned.img_size, tuned.in_chans) == ("test_resnet", (32, 32), 3)
    with pytest.raises(Refused, match=r"a ResNet is in encoder.safetensors of its run"):
        unmask.export(tmp_path / "finetune", tmp_path / "timm")
    learner = unmask.load(tmp_path / "finetune")
    assert torch.equal(learner.pooled(x), pool(tuned.model, x)["avg"])
    assert all(torch.equal(a, b) for a, b in zip(load_encoder(word).model.state_dict().values(), load_encoder(tmp_path / "attentive").model.state_dict().values()))
    with pytest.raises(Refused, match="--last_blocks: test_resnet has no row of blocks"):
        api.evaluate("finetune", word, str(data), out=str(tmp_path / "no"), last_blocks=2, **words)
    assert not (tmp_path / "no" / "config.yaml").exists()
