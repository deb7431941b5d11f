"""A run, its file or an official file, to the learner that made it."""

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.errors import Refused
from unmask.interchange import official, papers
from unmask.load import load, metadata_of
from unmask.methods.crossmae import CrossMAE
from unmask.methods.mae import MAE
from unmask.methods.pixio import Pixio
from unmask.testing import SMALL, pictures

BUILD = SMALL | {"img_size": (32, 48), "in_chans": 5}


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return MAE(mask_ratio=".6:.8", norm_pix=False, decoder_width=32, decoder_depth=1).build(**BUILD).eval()


def write(learner, file, **changes):
    method = MAE(mask_ratio=".6:.8", norm_pix=False, decoder_width=32, decoder_depth=1)
    metadata = metadata_of(method, "mae", **BUILD | {"img_size": list(BUILD["img_size"])}) | changes
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(learner.state_dict(), file, metadata)


def same(one, other, channels=5, size=(32, 48)):
    x = pictures(2, channels, size)
    noise = torch.rand(2, one.draws(x))
    assert torch.equal(one(x, noise)["loss"], other(x, noise)["loss"])
    assert str(one.masking.ratio) == str(other.masking.ratio)


def test_a_run_folder_and_its_file(tmp_path, learner):
    write(learner, tmp_path / "model.safetensors")
    same(learner, load(tmp_path))
    same(learner, load(str(tmp_path / "model.safetensors")))


def test_a_run_that_has_not_ended_gives_its_newest_checkpoint(tmp_path, learner):
    older = MAE(norm_pix=False, decoder_width=32, decoder_depth=1).build(**BUILD)
    write(older, tmp_path / "checkpoints" / "step-999" / "model.safetensors")
    write(learner, tmp_path / "checkpoints" / "step-1000" / "model.safetensors")
    write(older, tmp_path / "checkpoints" / ".step-2000" / "model.safetensors")  # not complete
    same(learner, load(tmp_path))


FORK = {"width": 64, "depth": 2, "heads": 1}  # the sizes that are assumed where a file does not say them


def official_full(**changes):
    """A learner at a fork's size, and its tensors under MAE's own names."""
    torch.manual_seed(0)
    method = MAE(decoder_width=32, decoder_depth=3, decoder_heads=1, **changes)
    made = method.build("vit_tiny_patch16_224", (32, 32), 3, 8, **FORK).eval()
    table = torch.cat([torch.zeros(1, 1, 32), made.objectives["pixels"].decoder.places], dim=1)
    return made, official.to_mae(made.state_dict(), (8, 8)) | {"decoder_pos_embed": table}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_official_full_file(tmp_path, suffix, capsys):
    made, state = official_full()
    torch.save({"model": state}, tmp_path / "full.pth") if suffix == ".pth" else save_file(state, tmp_path / "full.safetensors")
    found = load(tmp_path / f"full{suffix}")
    same(made, found, channels=3, size=(32, 32))
    assert found.objectives["pixels"].target.normalize and "normalised patch by patch is assumed" in capsys.readouterr().err


def test_the_published_files_of_plain_pixels_are_known_by_their_name(tmp_path, capsys):
    made, state = official_full(norm_pix=False)
    torch.save({"model": state}, tmp_path / "mae_visualize_vit_base.pth")
    same(made, load(tmp_path / "mae_visualize_vit_base.pth"), channels=3, size=(32, 32))
    assert "plain pixels" in capsys.readouterr().err
    assert load(tmp_path / "mae_visualize_vit_base.pth", norm_pix=True).objectives["pixels"].target.normalize


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_training_checkpoint_says_its_settings(tmp_path, norm_pix, capsys):
    made, state = official_full(norm_pix=norm_pix, mask_ratio=0.5)
    args = argparse.Namespace(norm_pix_loss=norm_pix, mask_ratio=0.5, model="mae_vit_small_patch8")
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 3, "scaler": {}, "args": args}, tmp_path / "checkpoint-3.pth")
    same(made, load(tmp_path / "checkpoint-3.pth"), channels=3, size=(32, 32))
    assert "target" not in capsys.readouterr().err


PAPERS = {
    "crossmae": (CrossMAE(decoder_width=32, decoder_depth=2), papers.CROSSMAE),
    "pixio": (Pixio(decoder_width=32, decoder_depth=2, cls_tokens=4), papers.PIXIO),
}


@pytest.mark.parametrize("name", PAPERS)
def test_files_of_other_papers_give_their_learner(tmp_path, name, capsys):
    torch.manual_seed(0)
    method, table = PAPERS[name]
    made = method.build("vit_tiny_patch16_224", (32, 32), 3, 8, **FORK).eval()
    state = table.theirs(made.state_dict(), (8, 8))
    torch.save({"model": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    same(made, load(tmp_path / "checkpoint.pth"), channels=3, size=(32, 32))
    assert "heads assumed" in capsys.readouterr().err
    lost = state.pop("decoder_norm.bias")
    torch.save({"model": state}, tmp_path / "cut.pth")
    assert "missing" in refusal(tmp_path / "cut.pth") and lost is not None


def test_what_a_file_does_not_tell_can_stand_behind_it(tmp_path):
    torch.manual_seed(0)
    made = MAE(decoder_width=32, decoder_depth=1, decoder_heads=4, norm_pix=False).build("vit_tiny_patch16_224", (32, 32), 3, 8, **FORK | {"heads": 4}).eval()
    torch.save({"model": official.to_mae(made.state_dict(), (8, 8))}, tmp_path / "fork.pth")
    same(made, load(f"{tmp_path}/fork.pth:heads=4,decoder_heads=4,norm_pix=no"), channels=3, size=(32, 32))
    assert "norm_pix is yes or no" in refusal(f"{tmp_path}/fork.pth:norm_pix=maybe")


def test_a_decoder_with_places_of_its_own_keeps_them(tmp_path):
    made, state = official_full()
    state["decoder_pos_embed"] = state["decoder_pos_embed"].clone()
    state["decoder_pos_embed"][:, 1:] += 0.5
    torch.save({"model": state}, tmp_path / "learned.pth")
    found = load(tmp_path / "learned.pth")
    made.objectives["pixels"].decoder.places.add_(0.5)
    same(made, found, channels=3, size=(32, 32))
    state["decoder_pos_embed"][:, 0] += 0.5
    torch.save({"model": state}, tmp_path / "class.pth")
    assert "places of its own" in refusal(tmp_path / "class.pth")


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("names", ["file", "memory", "4.x"])
def test_a_hugging_face_folder_is_its_model(tmp_path, names, norm_pix):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
    sizes |= {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 128}
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes, norm_pix_loss=norm_pix, mask_ratio=0.6, layer_norm_eps=1e-3)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.decoder.decoder_pos_embed.data[:, 0] = 0
    model.save_pretrained(tmp_path)
    if names != "file":
        state = {key.replace("decoder_encoder.layer", "decoder_layers"): value for key, value in load_file(tmp_path / "model.safetensors").items()}
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict() if names == "memory" else state, tmp_path / "pytorch_model.bin")
    found = load(tmp_path)
    x = pictures(3, 3, (32, 32))
    noise = torch.rand(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(found(x, noise)["loss"], model(x, noise=noise).loss, rtol=1e-5, atol=1e-6)
    assert found.objectives["pixels"].target.normalize == norm_pix
    assert load(tmp_path / ("model.safetensors" if names == "file" else "pytorch_model.bin")).masking.now == 0.6


def refusal(path) -> str:
    with pytest.raises(Refused) as refused:
        load(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path, learner):
    assert "nowhere" in refusal(tmp_path / "nowhere")
    assert "no run with weights" in refusal(tmp_path)
    save_file(learner.encoder.trunk.state_dict(), tmp_path / "encoder.safetensors")
    assert "decoder" in refusal(tmp_path / "encoder.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    assert "broken.safetensors" in refusal(tmp_path / "broken.safetensors")
    write(learner, tmp_path / "future.safetensors", format="99")
    assert "update unmask" in refusal(tmp_path / "future.safetensors")
    write(learner, tmp_path / "unknown.safetensors", method="maee")
    assert "did you mean mae" in refusal(tmp_path / "unknown.safetensors")
    settings = {"mask_ratio": ".75", "decoder_depth": 3, "decoder_width": 32}
    write(learner, tmp_path / "other.safetensors", settings=json.dumps(settings))
    assert "other.safetensors does not fit" in refusal(tmp_path / "other.safetensors")
    _, state = official_full()
    lost = {key: value for key, value in state.items() if key != "decoder_blocks.1.norm1.weight"}
    torch.save({"model": lost}, tmp_path / "cut.pth")
    assert "decoder_blocks" in refusal(tmp_path / "cut.pth") or "does not fit MAE's decoder" in refusal(tmp_path / "cut.pth")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "vit_mae", "num_attention_heads": 1}')
    save_file({"embeddings.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "hf" / "model.safetensors")
    assert "ViTMAEForPreTraining" in refusal(tmp_path / "hf")
