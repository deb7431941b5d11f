"""The model card says what the files of the run say, runs as it shows, and names nobody's folders."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image
from trunks import encoder_of

from unmask.errors import Refused
from unmask.interchange.card import Facts, name_of
from unmask.interchange.huggingface_export import export_huggingface
from unmask.interchange.timm_export import export_timm

CONFIG = "format: 1\nmethod: /home/jane/secret/my_method.py:Mine\ndata: /home/jane/clinic/mammograms\nseed: 7\nsteps: 40\nbatch_size: 32\ninit: /home/jane/old/run\nmethod.mask_ratio: 0.6\n"
KNN = {"encoder": "/home/jane/runs/a", "random": False, "protocol": "knn", "top1": 61.25, "interval": [58.1, 64.3], "pooling": "cls", "img_size": [64, 64], "n_train": 900, "n_val": 100}
ROWS = [KNN | {"top1": 10.0}, KNN, KNN | {"random": True, "top1": 31.0}, {"protocol": "linear", "metric": "auroc", "auroc": 0.91234, "interval": [0.9, 0.93], "n_train": 5, "n_val": 6}]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    encoder_of("square", folder)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "data.json").write_text(json.dumps({"format": 1, "count": 12345, "statistics": {"size": [300, 200]}}))
    (folder / "status.json").write_text(json.dumps({"status": "finished", "step": 40}))
    (folder / "evaluations.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + '\n{"protocol": "kn')
    return folder


def cards(run, tmp_path, license=None):
    """The card of each format."""
    from unmask.interchange.encoder import load_encoder

    encoder, facts = load_encoder(run), Facts.of(run, license)
    for library, writer in (("timm", export_timm), ("transformers", export_huggingface)):
        writer(encoder, tmp_path / library, facts=facts)
        yield library, (tmp_path / library / "README.md").read_text()


def test_it_says_what_the_files_say(run, tmp_path):
    for library, text in cards(run, tmp_path, "cc-by-4.0"):
        front = yaml.safe_load(text.split("---")[1])
        assert (front["library_name"], front["license"], front["pipeline_tag"]) == (library, "cc-by-4.0", "image-feature-extraction")
        assert {"unmask", "mine"} <= set(front["tags"])
        for said in ("`mammograms`", "12,345", "64 × 64 pixels, 3 channels", "| mask ratio | 0.6 |", "| optimiser steps | 40 |", "| seed | 7 |", "| method | Mine |", "| started from | run |"):
            assert said in text, said
        rows = [line for line in text.splitlines() if line.startswith(("| knn", "| linear"))]
        assert rows == [
            "| knn | trained | top1 61.25 % | 58.1 to 64.3 | 900, 100 | cls | 64×64 |",
            "| knn | random | top1 31 % | 58.1 to 64.3 | 900, 100 | cls | 64×64 |",
            "| linear | trained | auroc 0.9123 | 0.9 to 0.93 | 5, 6 | ? | ? |",
        ]
        assert "jane" not in text and "clinic" not in text and str(tmp_path) not in text


def test_the_hub_reads_it(run, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    for library, _ in cards(run, tmp_path, "mit"):
        data = hub.ModelCard.load(tmp_path / library / "README.md").data
        assert data.library_name == library and data.license == "mit"


def test_a_licence_is_never_guessed(run, tmp_path):
    for _, text in cards(run, tmp_path):
        assert "license" not in yaml.safe_load(text.split("---")[1]) and "No licence was stated" in text
    with pytest.raises(Refused, match="short name"):
        Facts(license="my own\nlicence: yes")


@pytest.mark.parametrize(
    ("config", "said", "unsaid"),
    [
        ("method: finetune\nencoder: timm:vit_tiny_patch16_224\n", "(timm:vit_tiny_patch16_224): their licence may bind", "from scratch"),
        ("method: finetune\nencoder: /d/mae_pretrain_vit_base.pth\n", "(mae_pretrain_vit_base.pth): their licence may bind", "from scratch"),
        ("method: mae\ninit: /d/vit-mae-base\n", "(vit-mae-base): their licence may bind", "from scratch"),
        ("method: finetune\nencoder: OTHER\nscratch: true\n", "trained from scratch on labels (finetune)", "started from"),
        ("method: attentive\nencoder: OTHER\n", "itself unchanged by that", "trained further"),
        ("method: finetune\nencoder: OTHER\n", "trained further on labels (finetune)", "their licence may bind"),
        ("method: mae\ndata: x\n", "It was trained on the pictures above", "their licence may bind"),
        ("method: mae\n", "On which pictures it was trained is not known", "pictures above"),
    ],
)
def test_where_weights_come_from(run, tmp_path, config, said, unsaid):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("method: mae\ndata: x\n")
    (run / "config.yaml").write_text(config.replace("OTHER", str(tmp_path / "other")))
    (run / "evaluations.jsonl").write_text(json.dumps(KNN | {"protocol": "finetune", "random": "scratch" in config}))
    _, text = next(cards(run, tmp_path))
    assert said in text and unsaid not in text
    assert ("| finetune | from scratch |" in text) == ("scratch" in config)


def test_a_file_of_others_says_so(run, tmp_path):
    from unmask.interchange.encoder import load_encoder

    (tmp_path / "mae_pretrain.safetensors").write_bytes((run / "encoder.safetensors").read_bytes())
    export_timm(load_encoder(tmp_path / "mae_pretrain.safetensors"), tmp_path / "out", facts=Facts.of(tmp_path / "mae_pretrain.safetensors"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "(mae_pretrain.safetensors): their licence may bind" in text and "pictures above" not in text


@pytest.mark.parametrize("case", ["square", "grey, narrow", "not square, 13 channels"])
@pytest.mark.parametrize("writer, library", [(export_timm, "timm"), (export_huggingface, "transformers")])
def test_what_it_shows_runs(writer, library, case, tmp_path, monkeypatch):
    if library == "transformers":
        pytest.importorskip("transformers")
    writer(encoder_of(case, tmp_path / "run"), tmp_path / "name")
    monkeypatch.chdir(tmp_path)
    Image.effect_mandelbrot((90, 70), (-2, -1.5, 1, 1.5), 50).convert("RGB").save("picture.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", Path("name/README.md").read_text(), re.S)
    assert len(code.splitlines()) <= 8
    scope: dict = {}
    exec(code, scope)
    assert scope["tokens"].shape == {"square": (1, 65, 192), "grey, narrow": (1, 65, 48), "not square, 13 channels": (1, 9, 192)}[case]


@pytest.mark.parametrize(
    "word, name",
    [("/home/jane/photos/", "photos"), ("photos", "photos"), ("../a b/*.jpg", "*.jpg"), ("hf:owner/name", "hf:owner/name"), ("timm:vit.mae", "timm:vit.mae"),
     ("C:\\jane\\pics", "pics"), ("[1, 2, 3]", "pictures given in Python"), (os.sep, "pictures"), ("mae", "mae")],
)  # fmt: skip
def test_names_without_the_folders_of_a_machine(word, name):
    assert name_of(word) == name
