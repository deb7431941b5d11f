"""Weights from elsewhere: every published family is opened with its own function, or refused with its name."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from golden_files import keys, lists, names, published
from safetensors.torch import save_file
from test_published import OPENED as OTHERS
from torch.nn import functional as F
from torch.testing import assert_close

from unmask.encoders.vit import ViT
from unmask.errors import Refused
from unmask.interchange.encoder import load_encoder
from unmask.interchange.official import take_apart
from unmask.interchange.shapes import heads_of_family, network_of
from unmask.interchange.timm import photograph, rebuild
from unmask.interchange.weights import Weights
from unmask.mask import Mask

CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def under(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@torch.no_grad()
def features(encoder, x):
    return encoder.model.forward_features(x)


# ------------------------------------------------------------------------------------------- the official code's own numbers


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mae", "output.encoder_nomask"))
@pytest.mark.parametrize("form", ["pretrain", "full", "training checkpoint", "plain", "wrapped"])
def test_mae_files_give_the_official_features(golden, name, form, tmp_path):
    from argparse import Namespace

    tensors, metadata = golden(name)
    whole = under(tensors, "weights.")
    encoder = {key: value for key, value in whole.items() if not key.startswith(("decoder_", "mask_token"))}
    content = {"pretrain": {"model": encoder}, "full": {"model": whole}, "plain": encoder, "wrapped": {"state_dict": {f"module.{key}": v for key, v in whole.items()}}}
    content["training checkpoint"] = {"model": whole, "optimizer": {}, "epoch": 3, "args": Namespace(norm_pix_loss=True, output_dir="x")}
    torch.save(content[form], tmp_path / "mae.pth")
    said = []
    opened = load_encoder(tmp_path / "mae.pth", heads=metadata["config"]["num_heads"], say=said.append)
    assert_close(features(opened, tensors["input.imgs"]), tensors["output.encoder_nomask"], **CLOSE)
    assert any("decoder_*" in line and "not needed" in line for line in said) == (form in ("full", "training checkpoint", "wrapped"))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mae", "output.finetune_feature_meanpool"))
def test_fine_tuned_mae_gives_the_official_pooled_features(golden, name, tmp_path):
    tensors, metadata = golden(name)
    state = {key: value for key, value in under(tensors, "weights.").items() if not key.startswith(("decoder_", "mask_token", "norm."))}
    torch.save({"model": state | under(tensors, "weights_finetune.")}, tmp_path / "mae_finetuned.pth")
    said = []
    opened = load_encoder(tmp_path / "mae_finetuned.pth", heads=metadata["config"]["num_heads"], say=said.append)
    with torch.no_grad():
        pooled = opened.model.forward_head(features(opened, tensors["input.imgs"]), pre_logits=True)
    assert_close(pooled, tensors["output.finetune_feature_meanpool"], **CLOSE)
    assert any("mean pooling" in line for line in said) and any("head.* (2 tensors), a classifier" in line for line in said)


@pytest.mark.golden
def test_dino_gives_the_official_features(golden, tmp_path):
    tensors, metadata = golden("dino")
    state = {f"module.{key}": value for key, value in under(tensors, "weights.student.").items()}
    teacher = under(tensors, "weights.teacher.")
    torch.save({"student": state, "epoch": 3}, tmp_path / "student.pth")
    torch.save({"student": state, "teacher": teacher, "dino_loss": {"center": torch.zeros(1, 4)}}, tmp_path / "both.pth")
    opened = load_encoder(tmp_path / "student.pth", heads=metadata["config"]["heads"])
    assert_close(features(opened, tensors["input.view.0"])[:, 0], tensors["output.backbone.student_cls_global0"], **CLOSE)
    both = load_encoder(tmp_path / "both.pth", heads=2)
    assert torch.equal(both.model.norm.weight, teacher["backbone.norm.weight"]), "the teacher is the encoder that DINO publishes"


@pytest.mark.golden
def test_moco_v3_gives_the_official_features(golden, tmp_path):
    tensors, metadata = golden("mocov3")
    torch.save({"state_dict": {f"module.{key}": value for key, value in under(tensors, "weights.").items()}}, tmp_path / "vit-s-300ep.pth.tar")
    opened = load_encoder(tmp_path / "vit-s-300ep.pth.tar", heads=metadata["config"]["heads"])
    assert_close(features(opened, tensors["input.view1"])[:, 0], tensors["output.features_view1"], rtol=1e-4, atol=5e-5)
    assert_close(opened.model.norm.weight.data, tensors["weights.base_encoder.norm.weight"])


@pytest.mark.golden
def test_i_jepa_gives_the_official_features(golden, tmp_path):
    tensors, metadata = golden("ijepa")
    parts = {part: {f"module.{key}": value for key, value in under(tensors, f"weights.{part}.").items()} for part in ("encoder", "predictor", "target_encoder")}
    torch.save(parts | {"opt": {}, "epoch": 1, "loss": 0.1}, tmp_path / "IN1K.pth.tar")
    opened = load_encoder(tmp_path / "IN1K.pth.tar", heads=metadata["config"]["num_heads"])
    assert_close(features(opened, tensors["input.image"]), tensors["output.target_encoder_out"], **CLOSE)


@pytest.mark.golden
def test_pixio_s_class_tokens_are_prefix_tokens(golden, tmp_path):
    tensors, metadata = golden("pixio")
    torch.save(under(tensors, "weights."), tmp_path / "pixio.pth")
    opened = load_encoder(tmp_path / "pixio.pth", heads=metadata["config"]["num_heads"])
    x, kept = tensors["input.image"], tensors["output.mask"] == 0
    visible = kept.nonzero()[:, 1].view(len(x), -1)
    hidden = (~kept).nonzero()[:, 1].view(len(x), -1)
    grid = opened.model.patch_embed.grid_size
    with torch.no_grad():
        found = ViT(opened.model)(x, Mask(visible, hidden, grid))
    official = tensors["output.latent"]
    prefix = metadata["config"]["n_cls_tokens"]
    assert_close(found.prefix, official[:, :prefix], **CLOSE)
    order = lambda tokens: tokens.gather(1, tokens[:, :, :1].argsort(dim=1).expand_as(tokens))  # noqa: E731  kept tokens come in other orders
    assert_close(order(found.patches), order(official[:, prefix:]), **CLOSE)


# ----------------------------------------------------------------------------------------------------- published key lists

OPENED = {  # key list: heads, size
    "mae_pretrain_vit_base": (12, 224),
    "mae_pretrain_vit_large": (16, 224),
    "mae_pretrain_vit_huge": (16, 224),
    "mae_full_vit_base": (12, 224),
    "mae_full_vit_large": (16, 224),
    "mae_full_vit_huge": (16, 224),
    "mae_finetuned_vit_base": (12, 224),
    "mae_finetuned_vit_large": (16, 224),
    "mae_finetuned_vit_huge": (16, 224),
    "mae_lite_mae_vit_tiny_patch16": (12, 224),
    "crossmae_vit_small": (6, 224),
    "crossmae_vit_base": (12, 224),
    "crossmae_vit_base_448": (12, 448),
    "crossmae_vit_large": (16, 224),
    "crossmae_vit_huge": (16, 224),
    "dino_vits16": (6, 224),
    "dino_vits8": (6, 224),
    "dino_vitb16": (12, 224),
    "dino_vitb8": (12, 224),
    "dino_vits16_full_teacher": (6, 224),
    "dino_vitb16_full_teacher": (12, 224),
    "dinov2_vits14": (6, 518),
    "dinov2_vits14_reg4": (6, 518),
    "dinov2_vitb14": (12, 518),
    "dinov2_vitb14_reg4": (12, 518),
    "dinov2_vitl14": (16, 518),
    "dinov2_vitl14_reg4": (16, 518),
    "dinov2_vitg14": (24, 518),
    "dinov2_vitg14_reg4": (24, 518),
    "dinov2_vitl16_short_teacher": (16, 224),
    "ibot_vits16_student_full": (6, 224),
    "ibot_vits16_teacher_backbone": (6, 224),
    "ibot_vitb16_student_full": (12, 224),
    "ibot_vitb16_teacher_backbone": (12, 224),
    "ibot_vitl16_student_full": (16, 224),
    "ibot_vitl16_teacher_backbone": (16, 224),
    "ijepa_vit_h14": (16, 224),
    "ijepa_vit_h16_448": (16, 448),
    "ijepa_vit_g16": (16, 224),
    "mocov3_vits": (12, 224),
    "mocov3_vitb": (12, 224),
    "pixio_vitb16": (12, 256),
    "pixio_vit1b16": (24, 256),
    "pixio_vit5b16": (32, 256),
    "pixio_vith16": (16, 256),
    "pixio_vitl16": (16, 256),
    "pixio_pretrain_h16": (16, 256),
    "pixio_pretrain_5b16": (32, 256),
}
REFUSED = {  # beginning of key lists: what the refusal says
    "adamae": "AdaMAE",
    "aim": "AIM",  # opened by tables of its own: tests/methods/test_aim.py
    "audiomae_finetune": "no square grid",
    "audiomae_pretrain": "AudioMAE",
    "beit3": "BEiT-3",
    "beit_customized": "tokenizer",
    "bootmae": "BootMAE",  # opened by tables of its own: tests/methods/test_bootmae.py
    "convnextv2": "ConvNeXt V2",
    "dalle": "tokenizer",
    "dit": "DiT",
    "fcmae": "FCMAE",
    "galileo": "Galileo",
    "hiera": "Hiera",
    "imagegpt": "Image GPT",
    "mae_lite_mae_vit_tiny_d13": "MAE-Lite",
    "mae_st": "mae_st",
    "maskfeat_k400": "MaskFeat",
    "multimae": "MultiMAE",
    "pointmae": "Point-MAE",
    "presto": "Presto",
    "sam": "SAM",
    "satmae_group": "SatMAE",
    "satmae_temporal": "SatMAE",
    "scalemae": "Scale-MAE",
    "videomae": "VideoMAE",
    "vitdet": "ViTDet",
    "vqkd": "VQ-KD",
}


def test_every_key_list_is_expected_somewhere():
    assert not [name for name in lists() if name not in OPENED | OTHERS and not any(name.startswith(start) for start in REFUSED)]


@pytest.mark.parametrize("name", sorted(OPENED.keys() & lists()))
def test_published_names_and_shapes_fill_a_network_without_rest(name):
    weights, (heads, size) = published(name), OPENED[name]
    parts = take_apart(weights)
    network = network_of(parts.trunk, name, hint=heads_of_family(parts.family, parts.trunk, parts.decoder))
    assert (network.kwargs["num_heads"], network.kwargs["img_size"]) == (heads, (size, size))
    with torch.device("meta"):
        trunk = timm.create_model(network.name, **network.kwargs)
    trunk.load_state_dict({key: torch.empty_like(value, device="meta") for key, value in parts.trunk.items()})  # strict
    left = {key for names in parts.left.values() for key in names}
    assert len(left) + len(parts.trunk) + len(parts.decoder) >= len(weights.state), "every name is used or reported"
    assert not left & set(parts.trunk)


@pytest.mark.parametrize("name", sorted(name for name in lists() if name not in OPENED | OTHERS))
def test_other_families_are_refused_by_name(name):
    says = REFUSED[max((start for start in REFUSED if name.startswith(start)), key=len)]
    with pytest.raises(Refused, match=says) as refusal:
        parts = take_apart(published(name))
        network_of(parts.trunk, name)
    assert "\n" not in str(refusal.value) and name in str(refusal.value)


def test_a_file_of_vit_base_with_random_weights_computes_what_its_names_mean(tmp_path):
    """Names and shapes of mae_pretrain_vit_base.pth, its function written out here once more."""
    torch.manual_seed(0)
    state = {key: torch.randn(shape) * 0.02 for key, shape in keys("mae_pretrain_vit_base").items()}
    torch.save({"model": state}, tmp_path / "mae_pretrain_vit_base.pth")
    said = []
    opened = load_encoder(tmp_path / "mae_pretrain_vit_base.pth", say=said.append)
    assert said[0].endswith("vit_base_patch16_224, 12 blocks of width 768, 12 heads, patches of 16, pictures of 224x224 with 3 channels") and len(said) == 2
    assert (opened.img_size, opened.mean) == ((224, 224), (0.485, 0.456, 0.406))
    image = torch.randn(1, 3, 224, 224)
    x = F.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"], x], dim=1) + state["pos_embed"]  # (1, 197, 768)
    for i in range(12):
        block = under(state, f"blocks.{i}.")
        y = F.layer_norm(x, (768,), block["norm1.weight"], block["norm1.bias"], 1e-6)
        q, k, v = F.linear(y, block["attn.qkv.weight"], block["attn.qkv.bias"]).view(1, 197, 3, 12, 64).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)) * 64**-0.5).softmax(-1) @ v
        x = x + F.linear(y.transpose(1, 2).flatten(2), block["attn.proj.weight"], block["attn.proj.bias"])
        y = F.layer_norm(x, (768,), block["norm2.weight"], block["norm2.bias"], 1e-6)
        x = x + F.linear(F.gelu(F.linear(y, block["mlp.fc1.weight"], block["mlp.fc1.bias"])), block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    assert_close(features(opened, image), F.layer_norm(x, (768,), state["norm.weight"], state["norm.bias"], 1e-6), rtol=1e-4, atol=1e-6)


def test_dinov2s_places_and_gates_become_timms_as_timm_itself_does_it():
    """The same numbers as timm's own conversion of DINOv2's files, with registers, gated blocks and chunks."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    torch.manual_seed(0)
    state = {"cls_token": torch.randn(1, 1, 16), "pos_embed": torch.randn(1, 17, 16), "register_tokens": torch.randn(1, 4, 16), "mask_token": torch.zeros(1, 16)}
    inner = {"norm1.weight": (16,), "norm1.bias": (16,), "attn.qkv.weight": (48, 16), "attn.qkv.bias": (48,), "attn.proj.weight": (16, 16), "attn.proj.bias": (16,)}
    inner |= {"ls1.gamma": (16,), "norm2.weight": (16,), "norm2.bias": (16,), "ls2.gamma": (16,), "mlp.w12.weight": (48, 16), "mlp.w12.bias": (48,)}
    inner |= {"mlp.w3.weight": (16, 24), "mlp.w3.bias": (16,)}
    state |= {f"blocks.{i}.{name}": torch.randn(shape) for i in range(2) for name, shape in inner.items()}
    state |= {"patch_embed.proj.weight": torch.randn(16, 3, 8, 8), "patch_embed.proj.bias": torch.randn(16), "norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    chunked = {key.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): value for key, value in state.items()}
    network = network_of(take_apart(Weights("x", state)).trunk, "x", heads=2)
    trunk = rebuild(network.name, network.kwargs)
    wanted = checkpoint_filter_fn(dict(state), trunk)
    for form in (state, chunked):
        found = take_apart(Weights("x", form)).trunk
        assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


# --------------------------------------------------------------------------------------------------------- sizes of one's own


@pytest.mark.parametrize(
    "arguments",
    [
        {"embed_dim": 96, "depth": 3, "num_heads": 4, "patch_size": 8, "img_size": 40, "in_chans": 2},
        {"embed_dim": 64, "depth": 1, "num_heads": 1, "mlp_ratio": 2.5, "patch_size": 16, "img_size": 64},
        {"embed_dim": 64, "depth": 2, "num_heads": 1, "qkv_bias": False, "qk_norm": True, "init_values": 0.1, "img_size": 32, "patch_size": 8},
        {"embed_dim": 64, "depth": 2, "num_heads": 1, "reg_tokens": 3, "no_embed_class": True, "img_size": 32, "patch_size": 8},
        {"embed_dim": 64, "depth": 2, "num_heads": 1, "reg_tokens": 2, "img_size": 32, "patch_size": 8},
        {"embed_dim": 64, "depth": 2, "num_heads": 1, "class_token": False, "global_pool": "avg", "fc_norm": False, "img_size": 32, "patch_size": 8},
        {"embed_dim": 64, "depth": 2, "num_heads": 1, "global_pool": "avg", "img_size": 32, "patch_size": 8},
    ],
    ids=lambda arguments: ", ".join(f"{key} {value}" for key, value in arguments.items()),
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_network_of_any_size_is_read_off_its_shapes(arguments, suffix, tmp_path):
    torch.manual_seed(1)
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=7, **arguments).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path / f"weights{suffix}"
    torch.save(trunk.state_dict(), path) if suffix == ".pth" else save_file(trunk.state_dict(), path)
    opened = load_encoder(path, heads=arguments["num_heads"])
    x = photograph(opened, 2)
    with torch.no_grad():
        assert torch.equal(opened.model.forward_features(x), trunk.forward_features(x))
        assert torch.equal(opened.model.forward_head(trunk.forward_features(x), pre_logits=True), trunk.forward_head(trunk.forward_features(x), pre_logits=True))


def test_heads_are_assumed_aloud_and_can_be_said(tmp_path):
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=128, depth=1, num_heads=4, img_size=32)
    torch.save(trunk.state_dict(), tmp_path / "fork.pth")
    said = []
    assert load_encoder(tmp_path / "fork.pth", say=said.append).model.blocks[0].attn.num_heads == 2
    assert any("2 heads assumed" in line and "FILE:heads=N" in line for line in said)
    said = []
    assert load_encoder(tmp_path / "fork.pth", heads=4, say=said.append).model.blocks[0].attn.num_heads == 4
    assert not any("assumed, " in line for line in said)
    assert load_encoder(f"{tmp_path}/fork.pth:heads=4", say=said.append).model.blocks[0].attn.num_heads == 4, "said in the word itself"
    with pytest.raises(Refused, match="after a file may stand heads"):
        load_encoder(f"{tmp_path}/fork.pth:head=4")
    with pytest.raises(Refused, match="heads is a number, not 'many'"):
        load_encoder(f"{tmp_path}/fork.pth:heads=many")
    with pytest.raises(Refused, match="heads=3 does not divide"):
        load_encoder(tmp_path / "fork.pth", heads=3)


def test_a_grid_that_is_not_square_is_asked_for(tmp_path):
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=64, depth=1, num_heads=1, img_size=(64, 32), patch_size=8).eval()
    torch.save(trunk.state_dict(), tmp_path / "wide.pth")
    with pytest.raises(Refused, match="--img_size HEIGHT WIDTH"):
        load_encoder(tmp_path / "wide.pth")
    opened = load_encoder(tmp_path / "wide.pth", img_size=(64, 32))
    with torch.no_grad():
        assert torch.equal(opened.model.forward_features(photograph(opened)), trunk.forward_features(photograph(opened)))


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("backbone.", {"head.mlp.0.weight": (4, 64)}),  # solo-learn, lightly
        ("student.backbone.", {"teacher.backbone.": None, "student.head.mlp.0.weight": (4, 64)}),
        ("encoder.trunk.", {"objectives.pixels.decoder.mask_token": (1, 1, 8)}),
        ("model.backbone.", {"criterion.center": (4,)}),
    ],
)
def test_the_encoder_is_found_behind_any_prefix(prefix, others, tmp_path):
    make = lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=64, depth=1, num_heads=1, img_size=32, patch_size=8)  # noqa: E731
    trunk, teacher = make(), make()
    state = {prefix + key: value for key, value in trunk.state_dict().items()}
    for name, shape in others.items():
        state |= {name + key: value for key, value in teacher.state_dict().items()} if shape is None else {name: torch.zeros(shape)}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    said = []
    opened = load_encoder(tmp_path / "last.ckpt", say=said.append)
    wanted = teacher if None in others.values() else trunk
    assert torch.equal(opened.model.blocks[0].attn.qkv.weight, wanted.blocks[0].attn.qkv.weight)
    assert any("left out" in line for line in said) and opened.report.left, "what was not taken is said"
    assert all(any(name in line for line in opened.report.whole()) for name, shape in others.items() if shape)


def test_every_name_is_shown_on_demand(tmp_path, capsys):
    from unmask.cli import main

    torch.save({"model": {key: torch.zeros(()).expand(shape) for key, shape in keys("mae_finetuned_vit_base").items()}}, tmp_path / "mae_finetuned_vit_base.pth")
    assert main(["show", "weights", str(tmp_path / "mae_finetuned_vit_base.pth")]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("vit_base_patch16_224, 12 blocks", "mean pooling", "left out, a classifier:", "    head.weight\n"))
    assert main(["show", "weights", "random:vit_tiny_patch16_224", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {}


def test_names_that_are_not_known_are_refused_not_dropped(tmp_path):
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=64, depth=1, num_heads=1, img_size=32)
    torch.save(trunk.state_dict() | {"blocks.0.attn.gate": torch.zeros(1)}, tmp_path / "gated.pth")
    with pytest.raises(Refused, match=r"blocks\.0\.attn\.gate.*not known"):
        load_encoder(tmp_path / "gated.pth")
    cut = {key: value for key, value in trunk.state_dict().items() if not key.startswith("norm.")}
    torch.save(cut, tmp_path / "cut.pth")
    with pytest.raises(Refused, match=r"missing are norm\.\*"):
        load_encoder(tmp_path / "cut.pth")


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch16_rope_224", "vit_xsmall_patch16_clip_224", "resnet18"])
def test_timms_own_files_of_other_networks_by_their_name(name, tmp_path):
    torch.manual_seed(2)
    size = {} if name == "resnet18" else {"img_size": 56 if "14" in name else 64}
    trunk = timm.create_model(name, num_classes=5, **size).eval()
    torch.save(trunk.state_dict(), tmp_path / "timm.pth")
    opened = load_encoder(tmp_path / "timm.pth", model=name, **({"img_size": (64, 64)} if "rope" in name else {}))
    x = torch.randn(2, 3, *(size.get("img_size", 224),) * 2)
    again = load_encoder(f"{tmp_path}/timm.pth:model={name}", img_size=opened.img_size)
    with torch.no_grad():
        assert torch.equal(opened.model.forward_features(x), trunk.forward_features(x))
        assert torch.equal(again.model.forward_features(x), trunk.forward_features(x))
    with pytest.raises(Refused, match="FILE:model=NAME"):
        load_encoder(tmp_path / "timm.pth")
    with pytest.raises(Refused, match="has no model 'no_such_net'"):
        load_encoder(tmp_path / "timm.pth", model="no_such_net")


# ---------------------------------------------------------------------------------------------------- Hugging Face's folders

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
FOLDERS = {
    "ViTMAEForPreTraining": ("ViTMAE", {"intermediate_size": 96, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}),
    "ViTMAEModel": ("ViTMAE", {"intermediate_size": 40}),
    "ViTModel": ("ViT", {"intermediate_size": 40, "layer_norm_eps": 1e-3, "hidden_act": "quick_gelu"}),
    "ViTForImageClassification": ("ViT", {"intermediate_size": 40, "qkv_bias": False}),
    "DeiTModel": ("DeiT", {"intermediate_size": 40}),
    "DeiTForImageClassificationWithTeacher": ("DeiT", {"intermediate_size": 40}),
    "ViTMSNModel": ("ViTMSN", {"intermediate_size": 40}),
    "IJepaModel": ("IJepa", {"intermediate_size": 40}),
    "Dinov2Model": ("Dinov2", {"use_swiglu_ffn": True}),
    "Dinov2ForImageClassification": ("Dinov2", {"num_channels": 5}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegisters", {"num_register_tokens": 4}),
    "DINOv3ViTModel": ("DINOv3ViT", {"intermediate_size": 48, "num_register_tokens": 2, "layer_norm_eps": 1e-4, "rope_theta": 50.0}),
    "DINOv3ViTModel, gated": ("DINOv3ViT", {"intermediate_size": 64, "use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 0}),
}


@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("what", FOLDERS)
def test_hugging_face_folders_compute_the_same(what, binary, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    family, more = FOLDERS[what]
    config = getattr(transformers, f"{family}Config")(**SIZES, **more)
    model = getattr(transformers, what.partition(",")[0])(config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    if binary:  # the names in memory, as older versions wrote files
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    statistics = {"image_mean": [0.1] * config.num_channels, "image_std": [0.9] * config.num_channels, "rescale_factor": 1 / 4095}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    opened = load_encoder(tmp_path)
    x = torch.randn(2, config.num_channels, 32, 32)
    inner = model if type(model).__name__.endswith("Model") else getattr(model, model.base_model_prefix)
    with torch.no_grad():
        wanted = features_of_mae(inner, x) if family == "ViTMAE" else inner(x).last_hidden_state
    assert_close(features(opened, x), wanted, rtol=0, atol=2e-5 if "DINOv3" in what else 1e-5)
    assert opened.mean == (0.1,) * config.num_channels and opened.img_size == (32, 32) and opened.high == (4095.0,)
    file = "pytorch_model.bin" if binary else "model.safetensors"
    assert torch.equal(features(load_encoder(tmp_path / file), x), features(opened, x)), "the file in the folder means the folder"
    assert_close(features(load_encoder(tmp_path, img_size=(48, 32)), torch.randn(1, config.num_channels, 48, 32)).shape[1], 24 + opened.model.num_prefix_tokens)


def features_of_mae(model, x):
    """ViTMAEModel with nothing masked, in raster order."""
    model.config.mask_ratio = 0.0
    return model(x, noise=torch.arange(16.0).expand(len(x), -1)).last_hidden_state


def test_the_norms_epsilon_is_theirs_and_survives_an_export(tmp_path):
    transformers = pytest.importorskip("transformers")
    from unmask.interchange.timm_export import export_safetensors, export_timm

    torch.manual_seed(4)
    model = transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=96, layer_norm_eps=1e-2)).eval()
    model.save_pretrained(tmp_path / "hf")
    said = []
    opened = load_encoder(tmp_path / "hf", say=said.append)
    assert {layer.eps for layer in opened.model.modules() if isinstance(layer, torch.nn.LayerNorm)} == {1e-2}
    assert any("0.01" in line for line in said)
    assert export_safetensors(opened, tmp_path / "out.safetensors").difference == 0
    with pytest.raises(Refused, match="no word for the epsilon"):
        export_timm(opened, tmp_path / "timm")
    again = load_encoder(tmp_path / "out.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(features(again, x), features(opened, x))
    assert {layer.eps for layer in load_encoder(tmp_path / "hf", random=True).model.modules() if isinstance(layer, torch.nn.LayerNorm)} == {1e-2}


@pytest.mark.parametrize(
    ("config", "says"),
    [({"model_type": "levit"}, "'levit'.*vit_mae"), ({"model_type": "vit", "num_attention_heads": 2}, "neither model.safetensors"), ("{", "no JSON")],
)
def test_folders_that_do_not_fit_are_refused_in_one_line(config, says, tmp_path):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(Refused, match=says) as refusal:
        load_encoder(tmp_path)
    assert "\n" not in str(refusal.value)


def test_hugging_face_names_without_their_folder_are_explained(tmp_path):
    torch.save({"vit.embeddings.cls_token": torch.zeros(1, 1, 8), "vit.encoder.layer.0.layernorm_before.weight": torch.zeros(8)}, tmp_path / "x.pth")
    with pytest.raises(Refused, match=r"config\.json"):
        load_encoder(tmp_path / "x.pth")
