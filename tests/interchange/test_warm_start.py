"""Beginnings for SAM, ViTDet and DiT: their official numbers by the networks that check, published names and shapes, every weight where it belongs."""

import re

import pytest
import timm
import torch
from golden_files import keys, names
from torch.nn import functional as F
from torch.testing import assert_close

from unmask.encoders.build import create_trunk
from unmask.errors import Refused
from unmask.interchange.foreign import encoder_of
from unmask.interchange.warm_start import blocks_of, dit_block, dit_state, export_dit, export_sam, export_vitdet, sam_network, sam_state
from unmask.interchange.witness import Witness

CLOSE = {"rtol": 1e-5, "atol": 5e-5}


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def made(name="vit_tiny_patch16_224", img_size=(48, 48), **sizes):
    torch.manual_seed(0)
    trunk = create_trunk(name, img_size, 3, **{"patch_size": 8, "width": 48, "depth": 4, "heads": 3} | sizes)
    with torch.no_grad():
        for value in trunk.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return encoder_of(trunk, "given", {"mean": (0.5,) * 3, "std": (0.5,) * 3})


@torch.no_grad()
@pytest.mark.golden
@pytest.mark.parametrize("name", names("sam_encoder", "output.embedding"))
def test_the_network_that_checks_sam_is_the_official_one(golden, name):
    tensors, metadata = golden(name)
    c = metadata["config"]
    network = timm.create_model(
        "samvit_base_patch16", img_size=c["img_size"], patch_size=c["patch_size"], embed_dim=c["dim"], depth=c["depth"], num_heads=c["heads"], mlp_ratio=c["mlp_ratio"],
        norm_layer=lambda width, **more: torch.nn.LayerNorm(width, eps=1e-6, **more), window_size=c["window_size"], global_attn_indexes=tuple(c["global_blocks"]),
        use_rel_pos=True, neck_chans=c["out_channels"], num_classes=0,
    ).eval()  # fmt: skip
    network.load_state_dict({key.replace(".mlp.lin", ".mlp.fc"): value for key, value in part(tensors, "weights.").items()})
    assert_close(network.forward_features(tensors["input.image"]), tensors["output.embedding"], **CLOSE)


@torch.no_grad()
@pytest.mark.golden
@pytest.mark.parametrize("name", names("vitdet", "output.last_feat"))
def test_the_same_network_computes_vitdets_blocks(golden, name):
    tensors, metadata = golden(name)
    c, x = metadata["config"], tensors["input.image"]
    network = timm.create_model(
        "samvit_base_patch16", img_size=c["img_size"], patch_size=c["patch_size"], embed_dim=c["dim"], depth=c["depth"], num_heads=c["heads"], mlp_ratio=c["mlp_ratio"],
        norm_layer=lambda width, **more: torch.nn.LayerNorm(width, eps=1e-6, **more), window_size=c["window_size"],
        global_attn_indexes=tuple(i for i in range(c["depth"]) if i not in c["window_blocks"]), use_rel_pos=True, neck_chans=8, num_classes=0,
    ).eval()  # fmt: skip
    state = {key.removeprefix("net."): value for key, value in part(tensors, "weights.").items() if key.startswith("net.")}
    places = state.pop("pos_embed")
    network.load_state_dict({key: value for key, value in state.items() if network.state_dict()[key].shape == value.shape}, strict=False)
    side, grid = c["pretrain_img_size"] // c["patch_size"], tuple(s // c["patch_size"] for s in x.shape[2:])
    places = F.interpolate(places[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2), size=grid, mode="bicubic", align_corners=False)
    found = network.blocks(network.patch_embed(x) + places.permute(0, 2, 3, 1))
    assert_close(found.permute(0, 3, 1, 2), tensors["output.last_feat"], **CLOSE)


@torch.no_grad()
@pytest.mark.golden
@pytest.mark.parametrize("name", names("dit_diffusion", "output.output"))
def test_the_block_that_checks_dit_is_the_official_one(golden, name):
    tensors, metadata = golden(name)
    c, w = metadata["config"], part(tensors, "weights.")
    line = lambda name, x: F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    p, grid = c["patch_size"], c["input_size"] // c["patch_size"]
    x = F.conv2d(tensors["input.x"], w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=p).flatten(2).transpose(1, 2) + w["pos_embed"]
    angle = tensors["input.t"][:, None].float() * torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    time = line("t_embedder.mlp.2", F.silu(line("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], 1))))
    given = F.silu(time + w["y_embedder.embedding_table.weight"][tensors["input.y"]])
    for i in range(c["depth"]):
        x = dit_block(w, i, x, line(f"blocks.{i}.adaLN_modulation.1", given).unflatten(1, (6, -1)), c["heads"])
    shift, scale = line("final_layer.adaLN_modulation.1", given).unflatten(1, (2, 1, -1)).unbind(1)
    x = line("final_layer.linear", F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
    x = x.unflatten(-1, (p, p, -1)).unflatten(1, (grid, grid)).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    assert_close(x, tensors["output.output"], rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("size, words", [("b", {"name": "vit_base_patch16_224"}), ("l", {"name": "vit_large_patch16_224"})])
def test_names_and_shapes_are_sams(size, words):
    with torch.device("meta"):
        trunk = timm.create_model(words["name"], num_classes=0)
        trunk.unmask_kwargs = {"model": words["name"], "img_size": (224, 224), "in_chans": 3, "num_classes": 0}
        encoder = encoder_of(trunk, "given", {"mean": None, "std": None})
        state = sam_state(encoder, sam_network(encoder, 64), 64)
    named = {name.replace(".mlp.fc", ".mlp.lin"): tuple(value.shape) for name, value in state.items()}
    wanted = f"sam_vit_{size}_image_encoder"
    try:
        assert named == keys(wanted)
    except KeyError:
        pytest.skip(f"no {wanted}.tsv")


def test_sams_file_opens_in_timm_and_begins_where_the_encoder_is(tmp_path):
    encoder = made()
    done = export_sam(encoder, tmp_path / "sam", Witness.of(encoder), grid=20)
    assert done.difference < 1e-4 and done.out == tmp_path / "sam" / "image_encoder.pth" and "relative places begin at zero" in done.said[0]
    state = torch.load(done.out, weights_only=True)
    assert state["image_encoder.pos_embed"].shape == (1, 20, 20, 48) and not any(value.any() for name, value in state.items() if "rel_pos" in name)
    from timm.models.vision_transformer_sam import checkpoint_filter_fn

    network = sam_network(encoder, 20)
    network.load_state_dict(checkpoint_filter_fn(state, network))  # strict, by timm's own filter
    assert network.forward_features(torch.zeros(1, 3, 160, 160)).shape == (1, 256, 20, 20)
    assert [i for i, block in enumerate(network.blocks) if block.window_size == 0] == [0, 1, 2, 3]


def test_vitdets_file_has_detectron2s_names(tmp_path):
    encoder = made(depth=8)
    done = export_vitdet(encoder, tmp_path / "d.pth", Witness.of(encoder), grid=16)
    state = torch.load(done.out, weights_only=True)["model"]
    published = {re.sub(r"\.\d+\.", ".0.", key) for key in keys("vitdet_vit_base_backbone") if key.startswith("net.")}
    assert {re.sub(r"\.\d+\.", ".0.", key.removeprefix("backbone.")) for key in state} == published
    assert state["backbone.net.pos_embed"].shape == (1, 37, 48) and not state["backbone.net.pos_embed"][:, 0].any()
    assert {len(value) for key, value in state.items() if key.endswith("rel_pos_h")} == {27, 31} and done.difference < 1e-4
    with pytest.raises(Refused, match="square picture"):
        export_vitdet(made(img_size=(32, 48)), tmp_path / "e.pth", Witness.of(encoder))


def test_dits_blocks_take_the_norms_along(tmp_path):
    encoder = made("deit3_small_patch16_224")  # with layer scales
    done = export_dit(encoder, tmp_path, Witness.of(encoder))
    state = torch.load(done.out, weights_only=True)
    published = {key: None for key in keys("dit_b4_class_only") if re.search(r"^blocks\.[0-3]\.(attn|mlp)", key)}
    assert state.keys() == published.keys() and done.difference < 1e-3
    assert (state["blocks.0.attn.qkv.weight"] - encoder.model.blocks[0].attn.qkv.weight).abs().max() > 1e-2
    assert not any("ls" in name for name in blocks_of(encoder)) and dit_state(encoder).keys() == state.keys()


def test_what_has_other_blocks_is_refused(tmp_path):
    for name, sizes in (("eva02_tiny_patch14_224", {}), ("convnextv2_atto", {"depth": None, "heads": None, "patch_size": 4, "img_size": (64, 64), "width": 8})):
        encoder = made(name, **sizes)
        for export in (export_sam, export_vitdet, export_dit):
            with pytest.raises(Refused, match="choose a plain vit"):
                export(encoder, tmp_path, Witness.of(encoder))
    assert not list(tmp_path.iterdir())
