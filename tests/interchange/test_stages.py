"""Networks of stages, Hiera and ConvNeXt, out of a run and in again: encoder files, other sizes, --init, timm's folder, ONNX."""

import pytest
import timm
import torch
from torch.testing import assert_close

from unmask.encoders.build import adapted, create_trunk
from unmask.errors import Refused
from unmask.evaluation.features import pool
from unmask.interchange.encoder import load_encoder, resize, save_encoder
from unmask.interchange.initialise import fill
from unmask.interchange.onnx import export_onnx
from unmask.interchange.report import network_in_words
from unmask.interchange.timm_export import export_timm
from unmask.testing import pictures

NETWORKS = {"hiera_tiny_224": {"width": 24, "q_pool": 2}, "convnextv2_atto": {"width": 8}, "convnext_tiny": {"width": 8}}
STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2]}


def made(name, img_size=(64, 96), seed=0):
    torch.manual_seed(seed)
    trunk = create_trunk(name, img_size, 3, **NETWORKS[name]).eval()
    for value in trunk.parameters():
        value.data.normal_(std=0.2)
    return trunk


@pytest.fixture(params=NETWORKS)
def saved(request, tmp_path):
    trunk = made(request.param)
    save_encoder(tmp_path / "encoder.safetensors", trunk, STATISTICS)
    return trunk, tmp_path / "encoder.safetensors", request.param


@torch.no_grad()
def test_an_encoder_file_opens_as_it_was(saved):
    trunk, file, name = saved
    opened, x = load_encoder(file), pictures(2, 3, (64, 96))
    assert (opened.name, opened.img_size, opened.in_chans, opened.patch_size) == (name, (64, 96), 3, (4, 4))
    assert torch.equal(opened.model.forward_features(x), trunk.forward_features(x))
    assert_close(pool(opened.model, x)["avg"], trunk.forward_head(trunk.forward_features(x), pre_logits=True))
    assert "stages of" in network_in_words(name, opened.model) and "64x96" in network_in_words(name, opened.model)


@torch.no_grad()
def test_another_size_interpolates_places_where_there_are_any(saved):
    trunk, file, name = saved
    other = resize(load_encoder(file), (96, 64))
    x = pictures(2, 3, (96, 64))
    encoder = adapted(trunk)
    assert other.img_size == (96, 64) and other.kwargs["img_size"] == (96, 64)
    assert_close(other.model.forward_features(x), encoder.as_timm(encoder(x), encoder.grid(x)), rtol=1e-5, atol=1e-4)
    if "hiera" in name:
        with pytest.raises(Refused, match="no multiple of the encoder's patch 32"):
            resize(load_encoder(file), (80, 64))


@torch.no_grad()
def test_features_of_the_adapter_have_timms_form(saved):
    trunk, _, _ = saved
    x, encoder = pictures(2, 3, (64, 96)), adapted(trunk)
    assert_close(encoder.as_timm(encoder(x), encoder.grid(x)), trunk.forward_features(x), rtol=0, atol=1e-5)


def test_a_network_begins_with_its_weights(saved):
    trunk, file, name = saved
    said = fill(fresh := made(name, (64, 64), seed=1), str(file), STATISTICS)
    assert any("interpolated" in line for line in said) == ("hiera" in name)
    x = pictures(2, 3, (64, 64))
    with torch.no_grad():
        assert_close(adapted(fresh.eval())(x).patches, adapted(trunk)(x).patches, rtol=1e-5, atol=1e-4)
    with pytest.raises(Refused, match=r"another kind of network|has|lacks"):
        fill(made("convnextv2_atto" if "hiera" in name else "hiera_tiny_224"), str(file))
    grey = create_trunk(name, (64, 96), 1, **NETWORKS[name])
    assert any("3 channels to 1" in line for line in fill(grey, str(file)))


@torch.no_grad()
def test_timm_opens_the_folder(saved, tmp_path):
    trunk, file, _ = saved
    export_timm(load_encoder(file), tmp_path / "timm")
    x = pictures(2, 3, (64, 96))
    opened = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, num_classes=0).eval()
    assert torch.equal(opened.forward_features(x), trunk.forward_features(x))
    again = load_encoder(tmp_path / "timm")
    assert again.mean == (0.4, 0.5, 0.6) and again.img_size == (64, 96) and torch.equal(again.model.forward_features(x), trunk.forward_features(x))
    made_of = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, num_classes=7)  # a fresh classifier
    assert made_of.get_classifier().out_features == 7


@torch.no_grad()
def test_onnx_computes_the_same(saved, tmp_path):
    pytest.importorskip("onnxruntime")
    _, file, name = saved
    if name == "convnext_tiny":
        pytest.skip("the second ConvNeXt tells nothing new")
    done = export_onnx(load_encoder(file), tmp_path / "encoder.onnx")
    assert done.difference < 1e-2 and (tmp_path / "encoder.onnx").is_file()
