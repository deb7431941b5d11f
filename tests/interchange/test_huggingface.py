"""Hugging Face's names, both ways: on the same weights, transformers' module and timm's give the same features."""

from __future__ import annotations

import pytest
import timm
import torch
from golden_files import keys
from safetensors.torch import load_file, save_file

from unmask.errors import Refused
from unmask.interchange.huggingface import from_huggingface, to_huggingface

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
PLAIN = SMALL | {"intermediate_size": 40, "layer_norm_eps": 1e-6}
KINDS = {  # what it is: class, arguments of its config, timm's name and arguments, largest difference of the features
    "vit": ("ViT", PLAIN, "vit_tiny_patch16_224", {"mlp_ratio": 40 / 24}, 0),
    "vit without biases": ("ViT", PLAIN | {"qkv_bias": False}, "vit_tiny_patch16_224", {"mlp_ratio": 40 / 24, "qkv_bias": False}, 0),
    "deit": ("DeiT", PLAIN, "vit_tiny_patch16_224", {"mlp_ratio": 40 / 24, "reg_tokens": 1}, 0),
    "vit_msn": ("ViTMSN", PLAIN, "vit_tiny_patch16_224", {"mlp_ratio": 40 / 24}, 0),
    "ijepa": ("IJepa", PLAIN, "vit_tiny_patch16_224", {"mlp_ratio": 40 / 24, "class_token": False, "global_pool": "avg", "fc_norm": False}, 0),
    "dinov2": ("Dinov2", SMALL, "vit_small_patch14_dinov2", {}, 0),
    "dinov2 giant": ("Dinov2", SMALL | {"use_swiglu_ffn": True}, "vit_giant_patch14_dinov2", {"mlp_ratio": 128 / 24}, 1e-6),
    "registers": ("Dinov2WithRegisters", SMALL | {"num_register_tokens": 3}, "vit_small_patch14_reg4_dinov2", {"reg_tokens": 3}, 0),
}
WRITTEN = ("vit", "dinov2", "dinov2 giant", "registers")


def theirs(what: str):
    name, config, *_ = KINDS[what]
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    return model


def timms(what: str, state):
    _, _, name, more, _ = KINDS[what]
    trunk = timm.create_model(name, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0, **more).eval()
    trunk.load_state_dict(state)
    return trunk


@pytest.mark.parametrize("what", KINDS)
def test_their_names_in_memory_and_in_files_give_their_features(what, tmp_path):
    model, x = theirs(what), torch.randn(2, 3, 32, 32)
    model.save_pretrained(tmp_path)
    for state in (model.state_dict(), load_file(tmp_path / "model.safetensors")):
        ours, left = from_huggingface(state, model.config.model_type)
        assert {key.split(".")[0] for key in left} <= {"pooler", "embeddings"}
        with torch.no_grad():
            torch.testing.assert_close(timms(what, ours).forward_features(x), model(x).last_hidden_state, rtol=0, atol=KINDS[what][4])


@pytest.mark.parametrize("what", WRITTEN)
def test_what_is_written_opens_in_transformers(what, tmp_path):
    model, x = theirs(what), torch.randn(2, 3, 32, 32)
    trunk = timms(what, from_huggingface(model.state_dict(), model.config.model_type)[0])
    model.config.save_pretrained(tmp_path)
    save_file(to_huggingface(trunk.state_dict(), model.config.model_type, (4, 4)), tmp_path / "model.safetensors", {"format": "pt"})
    opened, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and all(key.startswith("pooler.") for key in info["missing_keys"])
    with torch.no_grad():
        torch.testing.assert_close(opened.eval()(x).last_hidden_state, trunk.forward_features(x), rtol=0, atol=KINDS[what][4])


@pytest.mark.parametrize("no_embed_class", [True, False])
def test_registers_with_and_without_places_become_dinov2s(no_embed_class, tmp_path):
    torch.manual_seed(2)
    sizes = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0, "reg_tokens": 2}
    trunk = timm.create_model("vit_tiny_patch16_224", no_embed_class=no_embed_class, **sizes).eval()
    for parameter in trunk.parameters():
        parameter.data.normal_(0, 0.3)
    state = to_huggingface(trunk.state_dict(), "dinov2_with_registers", (4, 6))
    config = transformers.Dinov2WithRegistersConfig(**SMALL | {"image_size": [32, 48], "num_register_tokens": 2})
    model, x = transformers.Dinov2WithRegistersModel(config).eval(), torch.randn(2, 3, 32, 48)
    config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    model, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    model.embeddings.interpolate_pos_encoding = lambda *_: model.embeddings.position_embeddings  # theirs takes square tables only
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x).last_hidden_state, trunk.forward_features(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("more, says", [({"reg_tokens": 2}, "no register tokens"), ({"class_token": False, "global_pool": "avg"}, "class token"), ({"init_values": 1.0}, "ls1")])
def test_what_a_kind_cannot_compute_is_refused(more, says):
    trunk = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=0, **more)
    with pytest.raises(Refused, match=says):
        to_huggingface(trunk.state_dict(), "vit", (4, 4))


@pytest.mark.parametrize("names", ["memory", "file", "4.x"])
def test_mae_with_its_decoder(names, tmp_path):
    sizes = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 128}
    torch.manual_seed(3)
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**PLAIN, **sizes)).eval()
    model.decoder.initialize_weights(16)  # transformers 5.23 leaves zeros in a fresh network's table
    model.save_pretrained(tmp_path)
    state = model.state_dict() if names == "memory" else load_file(tmp_path / "model.safetensors")
    if names == "4.x":
        state = {key.replace("decoder_encoder.layer", "decoder_layers"): value for key, value in state.items()}
    ours, left = from_huggingface(state, "vit_mae")
    assert not left and {"decoder_blocks.1.attn.qkv.weight", "mask_token", "decoder_pos_embed", "blocks.0.mlp.fc2.bias", "decoder_pred.weight"} <= ours.keys()
    table = ours.pop("decoder_pos_embed")
    written = to_huggingface(ours, "vit_mae", (4, 4), prefix="vit.")
    torch.testing.assert_close(written["decoder.decoder_pos_embed"], table)
    save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
    opened, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in opened.state_dict().items() if key != "decoder.decoder_pos_embed")


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_the_published_names_of_vit_mae_are_those_of_mae(size):
    """facebook/vit-mae-*: the sizes of its config, names of 4.x, against MAE's own key list."""
    width, depth, heads, patch = {"base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}[size]
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": 4 * width, "patch_size": patch}
    with torch.device("meta"):
        state = transformers.ViTMAEForPreTraining._from_config(transformers.ViTMAEConfig(**sizes)).state_dict()
    shapes = {key: torch.empty(shape, device="meta") for key, shape in keys(f"mae_full_vit_{size}").items()}
    for names in (state, to_huggingface(shapes, "vit_mae", (224 // patch, 224 // patch), prefix="vit.")):  # of memory, and of 4.x files
        found, left = from_huggingface(names, "vit_mae")
        assert not left and {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in shapes.items()}
