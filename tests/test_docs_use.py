"""The worked pages run from top to bottom as a reader would: their commands in a shell, then their code, in one folder."""

from __future__ import annotations

import shlex
import shutil

import numpy as np
import pytest
import torch
from test_docs import ROOT, blocks, commands

import unmask
from unmask import cli

TINY = {"model": "vit_tiny_patch16_224", "width": 48, "depth": 2, "heads": 3, "patch_size": 8, "img_size": 32, "batch_size": 32, "workers": 0, "accelerator": "cpu"}
TINY |= {"method.decoder_width": 32, "method.decoder_depth": 1, "method.decoder_heads": 2, "steps": 6, "monitor_every": 6}


@pytest.fixture(scope="module")
def desk(imagenette, tmp_path_factory):
    """What the pages take for granted: a finished run and labelled pictures (five classes of them)."""
    folder = tmp_path_factory.mktemp("use")
    for split in ("train", "val"):
        for path in sorted((imagenette / split).iterdir())[:5]:
            shutil.copytree(path, folder / "labelled" / split / path.name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    unmask.pretrain("mae", folder / "labelled" / "train", folder / "runs" / "first", **TINY)
    yield folder
    torch.set_num_threads(threads)


def run(page: str, replacing: dict[str, str], desk, monkeypatch) -> dict:
    """The page's commands, then its code, shortened where `replacing` says so; the names that the code leaves."""
    monkeypatch.chdir(desk)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = ROOT / "docs" / page
    for line in (line for block in blocks(path, "bash") for line in commands(block)):
        words = shlex.split(line)[1:]
        if "--license" in words:  # the folder is there by then: a second one is written beside it
            words[words.index("--out") + 1] = "again"
        assert cli.main(words) == 0, line
    scope: dict = {"__name__": "a_page"}
    code = "\n".join(blocks(path, "python"))
    for long, short in replacing.items():
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, page, "exec"), scope)
    return scope


def test_timm(desk, monkeypatch, capsys):
    scope = run("use-in-timm.md", {"epochs, batch_size, classes = 10, 32": "epochs, batch_size, classes = 2, 20"}, desk, monkeypatch)
    assert capsys.readouterr().out.count("% of 60 right") == 2 and len(scope["losses"]) == 6
    assert np.isfinite(scope["losses"]).all() and scope["losses"][0] == pytest.approx(np.log(5), abs=0.7)
    encoder, x = unmask.load_encoder(desk / "runs" / "first"), scope["val"][0][0].unsqueeze(0)
    assert torch.equal(scope["tokens"], encoder.forward_features(x)) and scope["maps"][0].shape == (1, 48, 4, 4)
    rates = sorted({group["lr_scale"] for group in scope["optimizer"].param_groups})
    assert rates[-1] == 1 and rates[0] == pytest.approx(0.75 ** (len(rates) - 1))


def test_transformers(desk, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    scope = run("use-in-transformers.md", {"num_train_epochs=10": "num_train_epochs=1, use_cpu=True, disable_tqdm=True"}, desk, monkeypatch)
    assert "% of 60 right" in capsys.readouterr().out and 0 <= scope["figures"]["eval_accuracy"] <= 1
    assert torch.equal(scope["pooled"], scope["tokens"][:, 0])
    again = transformers.ViTForImageClassification.from_pretrained("classifier-hf")
    assert again.config.id2label[0] == scope["train"].classes[0]
    first, moved = (model.vit.layers[0].mlp.fc1.weight for model in (transformers.ViTForImageClassification.from_pretrained("encoder-hf", num_labels=5), again))
    assert not torch.equal(first, moved), "the encoder was trained on"
    assert transformers.AutoConfig.from_pretrained("mae-hf").architectures == ["ViTMAEForPreTraining"]


def test_scikit_learn(desk, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    scope = run("use-in-scikit-learn.md", {}, desk, monkeypatch)
    assert "% of 60 right" in capsys.readouterr().out and scope["right"] > 0.25, "chance is 20 %"
    assert len(scope["answers"]) == 60 and set(scope["answers"]) <= set(scope["val"]["classes"].tolist())
    np.testing.assert_allclose(scope["mine"], scope["val"]["features"], rtol=0, atol=1e-5)
