"""Hugging Face folders of Beit, data2vec's vision network and Swin compute with timm what transformers computes, whatever head they were saved with."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.interchange.encoder import load_encoder
from unmask.interchange.huggingface_export import export_huggingface

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "image_size": 32, "patch_size": 8}
SHARED = SIZES | {"use_shared_relative_position_bias": True, "use_mean_pooling": False}
STAGES = {"image_size": 64, "patch_size": 4, "embed_dim": 12, "depths": [1, 2, 1], "num_heads": [1, 2, 3], "window_size": 4, "mlp_ratio": 2.0}
FOLDERS = {
    "BeitModel": ("Beit", SHARED | {"layer_norm_eps": 1e-3}),
    "BeitModel, tables in the blocks, mean pooling": ("Beit", SIZES | {"use_relative_position_bias": True, "layer_norm_eps": 1e-6}),
    "BeitModel, absolute places, no layer scale": ("Beit", SIZES | {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0, "use_mean_pooling": False}),
    "BeitForMaskedImageModeling": ("Beit", SIZES | {"use_shared_relative_position_bias": True, "use_mask_token": True, "vocab_size": 11}),
    "BeitForImageClassification": ("Beit", SIZES | {"use_relative_position_bias": True, "num_labels": 4}),
    "Data2VecVisionModel": ("Data2VecVision", SHARED | {"num_channels": 2}),
    "Data2VecVisionForImageClassification": ("Data2VecVision", SIZES | {"use_shared_relative_position_bias": True, "num_labels": 4}),
    "SwinModel": ("Swin", STAGES),
    "SwinModel, no biases": ("Swin", STAGES | {"qkv_bias": False}),
    "SwinForMaskedImageModeling": ("Swin", STAGES | {"encoder_stride": 16}),
    "SwinForImageClassification": ("Swin", STAGES | {"num_labels": 4}),
}


def folder_of(what, tmp_path):
    """A folder that transformers wrote, of random weights, and the model itself."""
    torch.manual_seed(3)
    family, sizes = FOLDERS[what]
    model = getattr(transformers, what.partition(",")[0])(getattr(transformers, f"{family}Config")(**sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "hf")
    return model


@torch.no_grad()
def features_of(model, x):
    """The features of the encoder in a model with or without a head: behind the last norm that stands before the head."""
    bare = model if type(model).__name__.endswith("Model") else getattr(model, model.base_model_prefix)
    found = bare(x).last_hidden_state
    return model.layernorm(found) if type(model).__name__ == "BeitForMaskedImageModeling" else found


@pytest.mark.parametrize("memory", [False, True], ids=["as written", "names in memory"])
@pytest.mark.parametrize("what", FOLDERS)
def test_folders_compute_the_same(what, memory, tmp_path):
    model = folder_of(what, tmp_path)
    if memory:
        (tmp_path / "hf" / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "hf" / "pytorch_model.bin")
    said = []
    encoder = load_encoder(tmp_path / "hf", say=said.append)
    side, channels = model.config.image_size, model.config.num_channels
    assert (encoder.img_size, encoder.in_chans) == ((side, side), channels)
    x = torch.randn(2, channels, side, side)
    with torch.no_grad():
        found = encoder.model.forward_features(x)
    assert_close(found.flatten(1, -2), features_of(model, x), rtol=0, atol=2e-5)
    if what == "BeitForImageClassification":
        with torch.no_grad():
            assert_close(encoder.model.fc_norm(found[:, 1:].mean(1)), model.beit(x).pooler_output, rtol=0, atol=2e-5)
    assert any("classifier" in line for line in said) == ("Classification" in what)
    assert any("stood for masked patches" in line for line in said) == ("Masked" in what)


@pytest.mark.parametrize("what", ["BeitModel", "BeitModel, tables in the blocks, mean pooling", "BeitForImageClassification", "Data2VecVisionModel", "SwinModel"])
def test_in_and_out_again(what, tmp_path):
    """What transformers wrote, read and written by us, is opened by the same class with the same features."""
    model = folder_of(what, tmp_path)
    done = export_huggingface(load_encoder(tmp_path / "hf"), tmp_path / "again")
    form = {"BeitForImageClassification": "BeitModel"}.get(what, what.partition(",")[0])
    again = transformers.AutoModel.from_pretrained(tmp_path / "again").eval()
    assert done.form == form == type(again).__name__ and done.difference <= 2e-5
    x = torch.randn(2, model.config.num_channels, *(model.config.image_size,) * 2)
    assert_close(features_of(again, x), features_of(model, x), rtol=0, atol=2e-5)
    if form == "BeitModel":
        bare = model if what.startswith("BeitModel") else model.beit
        with torch.no_grad():
            assert_close(again(x).pooler_output, bare(x).pooler_output, rtol=0, atol=2e-5)


def changed(tmp_path, **words):
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | words))


def test_what_timm_does_not_compute_is_refused_in_one_line(tmp_path):
    folder_of("SwinModel", tmp_path)
    changed(tmp_path, layer_norm_eps=1e-3)
    with pytest.raises(Refused, match="do not add 1e-5"):
        load_encoder(tmp_path / "hf")
    changed(tmp_path, layer_norm_eps=1e-5, image_size=48)
    with pytest.raises(Refused, match="48x48"):
        load_encoder(tmp_path / "hf")
    changed(tmp_path, image_size=64, hidden_act="relu")
    with pytest.raises(Refused, match="activation relu"):
        load_encoder(tmp_path / "hf")


def test_a_folder_without_its_last_norm_is_refused(tmp_path):
    folder_of("Data2VecVisionForImageClassification", tmp_path)
    file = tmp_path / "hf" / "model.safetensors"
    state = load_file(file)
    save_file({key: value for key, value in state.items() if "pooler" not in key}, file)
    with pytest.raises(Refused, match="no final norm"):
        load_encoder(tmp_path / "hf")
    save_file(state | {"data2vec_vision.encoder.layer.0.gate": torch.zeros(1)}, file)
    with pytest.raises(Refused, match="which no network of BEiT's kind has") as refusal:
        load_encoder(tmp_path / "hf")
    assert "\n" not in str(refusal.value)
