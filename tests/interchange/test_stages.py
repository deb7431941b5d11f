"""Networks of stages, Hiera and ConvNeXt, out of a run and in again: encoder files, other sizes, --init, timm's folder, ONNX."""

import re

import pytest
import timm
import torch
from golden_files import keys, lists, names, published
from torch.testing import assert_close

from unmask.encoders.build import adapted, constructor, create_trunk
from unmask.encoders.convnext import ConvNeXt
from unmask.errors import Refused
from unmask.evaluation.features import pool
from unmask.interchange import convnext, hiera
from unmask.interchange.encoder import load_encoder, resize, save_encoder
from unmask.interchange.initialise import fill
from unmask.interchange.onnx import export_onnx
from unmask.interchange.report import network_in_words
from unmask.interchange.timm_export import export_timm
from unmask.load import load
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


# --------------------------------------------------------------------------------------------------------- published files


def under(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", [name for name in lists() if name.startswith(("hiera_mae_", "hiera_ft_", "convnextv2_ft_", "convnextv2_timm_", "fcmae_"))])
def test_every_published_name_is_used_or_explained(name):
    own = hiera if name.startswith("hiera") else convnext
    weights = published(name)
    assert own.tells(weights.state)
    if name.endswith("_16x224"):
        with pytest.raises(Refused, match="video"):
            own.network(own.trunk(weights.state)[0], name)
        return
    trunk, rest = own.trunk(weights.state)
    network = own.network(trunk, name, None, None, rest)
    size = name.removesuffix("_224").split("_", 2)[2]
    assert network.published and network.name == (f"hiera_{size}_224" if own is hiera else f"convnextv2_{size}") and network.kwargs["img_size"] == (224, 224)
    assert network.kwargs.get("q_pool", 3) == (2 if "mae" in name and own is hiera else 3)
    with torch.device("meta"):
        built = timm.create_model(network.name, **constructor(network.name, network.kwargs))
    assert {key: value.shape for key, value in built.state_dict().items()} == {key: value.shape for key, value in trunk.items()}
    usual = timm.get_pretrained_cfg(network.name)
    with torch.device("meta"):
        named = timm.create_model(network.name, num_classes=0)
    assert usual is not None and {key: value.shape for key, value in named.state_dict().items()} == {key: value.shape for key, value in trunk.items()}
    assert all(any(re.search(tells, key) for tells, _ in own.LEFT) for key in rest)


@torch.no_grad()
@pytest.mark.golden
@pytest.mark.parametrize("name", names("hiera", "output.latent"))
def test_a_file_of_hieras_mae_gives_the_official_features_and_loss(golden, name, tmp_path):
    tensors, metadata = golden(name)
    if "input.image" not in tensors:
        pytest.skip("for video")
    torch.save({"model_state": under(tensors, "weights.")}, tmp_path / "mae_hiera_own_64.pth")
    x, said, config = tensors["input.image"], [], metadata["config"]
    encoder = load_encoder(tmp_path / "mae_hiera_own_64.pth", img_size=tuple(config["input_size"]), say=said.append)
    assert encoder.model.q_pool == 2 and any("joins the stages" in line for line in said) and encoder.mean == (0.485, 0.456, 0.406)
    learner = load(tmp_path / "mae_hiera_own_64.pth", img_size=tuple(config["input_size"]), decoder_heads=config["decoder_num_heads"])
    assert_close(learner(x, noise=tensors["input.noise"])["loss"], tensors["output.loss"], rtol=1e-6, atol=1e-6)
    mask = learner.draw_mask(x, tensors["input.noise"])
    assert_close(adapted(encoder.model)(x, mask).patches, learner.encoder(x, mask).patches)


@torch.no_grad()
@pytest.mark.golden
@pytest.mark.parametrize("name", names("fcmae", "output.encoder"))
def test_a_file_of_fcmae_gives_the_official_features_and_loss(golden, name, tmp_path):
    tensors, metadata = golden(name)
    torch.save({"model": under(tensors, "weights.")}, tmp_path / "checkpoint-799.pth")
    x, config = tensors["input.image"], metadata["config"]
    encoder = load_encoder(tmp_path / "checkpoint-799.pth", img_size=(config["img_size"],) * 2, say=lambda line: None)
    learner = load(tmp_path / "checkpoint-799.pth")
    assert_close(learner(x, noise=tensors["input.noise"])["loss"], tensors["output.loss"], rtol=1e-6, atol=1e-6)
    mask = learner.draw_mask(x, tensors["input.noise"])
    wanted = mask.visible(tensors["output.encoder"].flatten(2).transpose(1, 2))
    assert_close(ConvNeXt(encoder.model, together=True)(x, mask).patches, wanted, rtol=1e-5, atol=3e-5)
    assert encoder.img_size == (96, 96) and "convnextv2" in encoder.name


def test_a_stranger_is_refused(tmp_path):
    state = {key: torch.zeros(shape) for key, shape in keys("convnextv2_ft_atto").items()}
    torch.save(state | {"neck.weight": torch.zeros(2)}, tmp_path / "own.pth")
    with pytest.raises(Refused, match=r"neck\.weight"):
        load_encoder(tmp_path / "own.pth")
    torch.save(state, tmp_path / "tuned.pth")
    with pytest.raises(Refused, match="encoder only"):
        load(tmp_path / "tuned.pth")
    assert load_encoder(tmp_path / "tuned.pth", say=lambda line: None).name == "convnextv2_atto"
