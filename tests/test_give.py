"""`unmask export` as a person uses it: every format of a real run, on the run's own pictures, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import unmask
from unmask import cli

TINY = {"model": "vit_tiny_patch16_224", "width": 48, "depth": 2, "heads": 3, "patch_size": 8, "img_size": 32, "batch_size": 16, "workers": 0, "accelerator": "cpu"}
TINY |= {"method.decoder_width": 32, "method.decoder_depth": 2, "method.decoder_heads": 2, "steps": 4, "monitor_every": 4}


@pytest.fixture(scope="module")
def run(imagenette, tmp_path_factory):
    folder = tmp_path_factory.mktemp("give")
    shutil.copytree(imagenette / "val", folder / "photos")
    return unmask.pretrain("mae", folder / "photos", folder / "run", **TINY)


def said(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    answer = capsys.readouterr()
    return code, answer.out, answer.err


@pytest.mark.parametrize("to", ["timm", "hf", "onnx", "safetensors", "paper"])
def test_each_format_is_compared_on_the_runs_own_pictures(to, run, tmp_path, capsys):
    {"hf": lambda: pytest.importorskip("transformers"), "onnx": lambda: pytest.importorskip("onnxscript")}.get(to, lambda: None)()
    code, out, err = said(capsys, "export", run, "--to", to, "--out", tmp_path / "out", "--json")
    assert code == 0
    row = json.loads(out)
    assert row["to"] == to and row["difference"] < (1e-4 if to == "onnx" else 1e-9)
    assert "differ by at most" in err and "4 pictures of the run's data" in err


@pytest.fixture(scope="module", params=["dino", "ibot", "dinov2", "mocov3"])
def followed(request, run):
    """A run after enough steps that its running average is not the student any more."""
    own = {"mocov3": {"method.hidden": 16, "method.out": 8}}.get(request.param, {"method.prototypes": 24, "method.hidden": 16, "method.bottleneck": 8, "views.local_crops": 0})
    words = {name: value for name, value in TINY.items() if not name.startswith("method.")} | own | {"steps": 6, "lr": 0.01, "method.momentum": 0.9}
    return unmask.pretrain(request.param, run.parent / "photos", run.parent / request.param, **words)


@pytest.mark.parametrize("to", ["timm", "hf", "onnx", "safetensors", "paper", "dit"])
def test_a_run_with_a_teacher_is_compared_with_what_it_hands_on(to, followed, tmp_path, capsys):
    {"hf": lambda: pytest.importorskip("transformers"), "onnx": lambda: pytest.importorskip("onnxscript")}.get(to, lambda: None)()
    if to == "onnx" and followed.name != "dino":
        pytest.skip("one is enough where a file takes its time to write")
    learner = unmask.load(followed)
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(learner.encoder.parameters(), learner.handed().parameters())) == (followed.name != "mocov3")
    code, _, err = said(capsys, "export", followed, "--to", to, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    assert "4 pictures of the run's data" in err or to == "dit"


def test_without_the_data_a_photograph_is_used_and_that_is_said(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "config.yaml").write_text((run / "config.yaml").read_text().replace("photos", "moved-away"))
    code, out, _ = said(capsys, "export", copy, "--out", tmp_path / "out")
    assert code == 0 and "crops of a photograph that comes with matplotlib: the run's data is not here" in out


@pytest.mark.parametrize("to", ["timm", "safetensors", "onnx", "paper", "sam", "vitdet", "dit"])
def test_the_learner_is_what_is_compared_with(to, run, tmp_path, capsys, monkeypatch):
    """encoder.safetensors that is not the trained encoder is found out, though it loads; no folder stays behind."""
    if to == "onnx":
        pytest.importorskip("onnxscript")
    from safetensors import safe_open
    from safetensors.torch import save_file

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with safe_open(run / "encoder.safetensors", "pt") as file:
        words, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(state | {"norm.bias": state["norm.bias"] + 0.5}, copy / "encoder.safetensors", words)
    if to == "paper":  # it is written out of the learner itself: this time that is another
        shutil.copy(run / "encoder.safetensors", copy)
        with safe_open(run / "model.safetensors", "pt") as file:
            words, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        monkeypatch.setattr("unmask.api.give.trained_of", lambda name, opened: None)
        save_file(state | {"encoder.trunk.norm.bias": state["encoder.trunk.norm.bias"] + 0.5}, copy / "model.safetensors", words)
    code, _, err = said(capsys, "export", copy, "--to", to, "--out", tmp_path / "out" / "of" / "it")
    assert code == 1 and "differs by" in err and sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_whole_mae_goes_on_in_transformers(run, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    code, out, _ = said(capsys, "export", run, "--to", "hf", "--with_decoder", "--out", tmp_path / "whole")
    assert code == 0 and "ViTMAEForPreTraining" in out and "its loss is" in out
    model, info = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    learner, x, noise = unmask.load(run), torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    with torch.no_grad():
        assert float(model.eval()(pixel_values=x, noise=noise).loss) == pytest.approx(float(learner(x, noise=noise)["loss"]), abs=1e-5)
    loss = model.train()(pixel_values=x).loss
    loss.backward()
    assert model.decoder.decoder_pred.weight.grad.abs().sum() > 0 and (model.config.mask_ratio, model.config.norm_pix_loss) == (0.75, True)


def test_a_file_of_maes_own_code_goes_on_in_transformers_too(tmp_path, capsys):
    """Official names in, transformers' out, with a decoder whose table of places is not the usual one."""
    transformers = pytest.importorskip("transformers")
    from test_load import official_full

    made, state = official_full(norm_pix=False)
    state["decoder_pos_embed"] = torch.nn.functional.pad(state["decoder_pos_embed"][:, 1:] + 0.5, (0, 0, 1, 0))
    made.objectives["pixels"].decoder.places.add_(0.5)
    torch.save({"model": state}, tmp_path / "full.pth")
    code, out, _ = said(capsys, "export", f"{tmp_path / 'full.pth'}:norm_pix=no", "--to", "hf", "--with_decoder", "--out", tmp_path / "whole")
    assert code == 0 and "ViTMAEForPreTraining" in out and "photograph" in out
    model = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "whole").eval()
    x, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        assert float(model(pixel_values=x, noise=noise).loss) == pytest.approx(float(made(x, noise=noise)["loss"]), rel=1e-5)
    assert not model.config.norm_pix_loss


def test_a_fine_tuned_run_is_compared_with_the_weights_that_it_hands_on(run, tmp_path, capsys):
    """Its encoder may be the moving average, which is not what the learner ends with."""
    pictures = run.parent / "photos"
    tuned = ("--epochs", 1, "--batch_size", 32, "--workers", 0, "--ema", 0.5, "--weights", "average")
    assert said(capsys, "evaluate", "finetune", run, pictures, "--out", tmp_path / "tuned", *tuned)[0] == 0
    code, out, err = said(capsys, "export", tmp_path / "tuned", "--out", tmp_path / "out")
    assert code == 0, err
    assert "differ by at most 0 " in out and "pictures of the run's data" in out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained further on labels (finetune)" in card and "| started from | run |" in card and "| finetune | trained | top1" in card
    code, _, err = said(capsys, "export", tmp_path / "tuned", "--to", "hf", "--out", tmp_path / "hf")
    assert code == 2 and "behind the pool" in err


def test_another_size_on_the_way_out(run, tmp_path, capsys):
    code, _, _ = said(capsys, "export", run, "--to", "timm", "--out", tmp_path / "wide", "--img_size", 48, 64)
    assert code == 0 and json.loads((tmp_path / "wide" / "config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 48, 64]


@pytest.mark.parametrize(
    "words, answer",
    [
        (["--to", "hugging"], "none of timm, hf, onnx, safetensors"),
        (["--to", "hf"], "--out is missing"),
        (["--to", "onnx", "--with_decoder", "--out", "x"], "--with_decoder is for --to hf"),
        (["--to", "onnx", "--license", "mit", "--out", "x"], "--license is for the model card"),
        (["--to", "timm", "--license", "all mine", "--out", "x"], "short name"),
        (["--to", "hf", "--with_decoder", "--img_size", "64", "--out", "x"], "leave --img_size out"),
        (["--to", "timm", "--out", "x", "--img_size", "30"], "no multiple"),
        (["--to", "safetensors", "--out", "{run}"], "is a run, whose encoder.safetensors is its own"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(words, answer, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, "export", run, *(word.format(run=run) for word in words))
    assert code == 2 and answer in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to, package", [("hf", "transformers"), ("onnx", "onnxscript")])
def test_a_missing_package_is_named_with_its_extra(to, package, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unmask.api.give.find_spec", lambda name: None if name == package else name)
    code, _, err = said(capsys, "export", "random:vit_tiny_patch16_224", "--to", to, "--out", tmp_path / "x")
    assert code == 2 and f"needs {package}" in err and f"unmask[{to}]" in err and not list(tmp_path.iterdir())


def test_an_encoder_alone_has_no_decoder(run, tmp_path, capsys):
    code, _, err = said(capsys, "export", run / "encoder.safetensors", "--to", "hf", "--with_decoder", "--out", tmp_path / "x")
    assert code == 2 and "decoder" in err
    code, out, _ = said(capsys, "export", run / "encoder.safetensors", "--to", "timm", "--out", tmp_path / "x")
    assert code == 0 and "photograph" in out


def test_random_networks_go_out_too(tmp_path, capsys):
    """Without known statistics there is no processor, and that is said."""
    pytest.importorskip("transformers")
    code, out, _ = said(capsys, "export", "random:vit_tiny_patch16_224", "--to", "hf", "--out", tmp_path / "r", "--img_size", 32)
    assert code == 0 and "ViTModel" in out
