"""Files of BEiT's, EVA's, Swin's and data2vec 2.0's kind: every name is used or explained, and the features are the official code's own numbers."""

from __future__ import annotations

import pytest
import timm
import torch
from golden_files import keys, lists, mask_of, names, published
from torch.testing import assert_close

from unmask.encoders.build import adapted
from unmask.errors import Refused
from unmask.interchange.encoder import load_encoder
from unmask.interchange.published import take
from unmask.mask import Mask

CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def under(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def opened(state, tmp_path, said=None, name="weights.pth", **more):
    torch.save({"model": state}, tmp_path / name)
    lines = [] if said is None else said
    return load_encoder(tmp_path / name, say=lines.append, **more)


@torch.no_grad()
def masked(encoder, token, x, mask):
    """The features of pictures in which the file's own token stands for what is masked: (B, P + N, D)."""
    adapter = adapted(encoder.model, "token")
    adapter.mask_token.data.copy_(token)
    found = adapter(x, mask)
    return torch.cat([found.prefix, found.patches], dim=1)


# ------------------------------------------------------------------------------------------- the official code's own numbers


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit", "output.features"))
def test_beit_and_beit_v2_give_the_official_features(golden, name, tmp_path):
    tensors, metadata = golden(name)
    state, config = under(tensors, "weights."), metadata["config"]
    said = []
    encoder = opened(state, tmp_path, said)
    assert encoder.img_size == tuple(config["img_size"]), "the index of relative places tells a grid that is not square"
    mask = mask_of(tensors["input.mask"].view(-1, *encoder.model.patch_embed.grid_size))
    wanted = tensors["output.features" if "output.features" in tensors else "output.features_main"]
    assert_close(masked(encoder, state["mask_token"], tensors["input.x"], mask), wanted, **CLOSE)
    assert any("lm_head.*" in line and "predicts" in line for line in said) and any("computed anew" in line for line in said)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("simmim", "output.encoder_map"))
def test_simmim_gives_the_official_features(golden, name, tmp_path):
    tensors, metadata = golden(name)
    state = under(tensors, "weights.")
    encoder = opened(state, tmp_path)
    fine = tensors["input.mask"]
    step = fine.shape[1] // tensors["output.encoder_map"].shape[2]  # tokens of the first stage a feature, each way
    found = masked(encoder, state["encoder.mask_token"], tensors["input.x"], mask_of(fine[:, ::step, ::step]))
    found = found[:, encoder.model.num_prefix_tokens :] if metadata["config"]["type"] == "vit" else found
    assert_close(found.transpose(1, 2), tensors["output.encoder_map"].flatten(2), **CLOSE)
    assert encoder.report.left["the token that stood for masked patches in training"] == ["encoder.mask_token"]


@pytest.mark.golden
@pytest.mark.parametrize("name", names("data2vec", "output.teacher_layer0", "facebookresearch/data2vec_vision@"))
def test_data2vec_gives_the_official_layers(golden, name, tmp_path):
    tensors, _ = golden(name)
    state = under(tensors, "weights.student.") | under(tensors, "weights.teacher.")
    encoder = opened(state, tmp_path, name="checkpoint-799.pth")
    layers = encoder.model.forward_intermediates(tensors["input.image"], output_fmt="NLC", intermediates_only=True)
    for i, layer in enumerate(layers):
        assert_close(layer, tensors[f"output.teacher_layer{i}"], **CLOSE)
    assert encoder.mean == (0.485, 0.456, 0.406)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("eva", "output.features"))
def test_eva_gives_the_official_features(golden, name, tmp_path):
    tensors, metadata = golden(name)
    state, config = under(tensors, "weights."), metadata["config"]
    said = []
    encoder = opened(state, tmp_path, said, heads=config["num_heads"], model={"eva01": "eva_giant_patch14_224"}.get(config["family"]))
    assert type(encoder.model).__name__ == "Eva" and not any("assumed, as all published" in line for line in said)
    found = masked(encoder, state["mask_token"], tensors["input.image"], mask_of(tensors["input.mask"]))
    assert_close(found, tensors["output.features"], rtol=1e-5, atol=4e-6)
    assert encoder.mean[0] == pytest.approx(0.48145466), "CLIP's numbers"


@pytest.mark.golden
@pytest.mark.parametrize("name", names("data2vec2", "output.encoder_out"))
def test_data2vec_2_gives_the_official_features(golden, name, tmp_path):
    tensors, metadata = golden(name)
    config, hidden = metadata["config"], tensors["input.mask"].bool()
    state = under(tensors, "weights.student.") | {"_ema": under(tensors, "weights.teacher.")}
    encoder = opened(state, tmp_path, name="base_imagenet.pt", heads=config["num_heads"])
    assert len(encoder.model.blocks) == config["prenet_depth"] + config["depth"]
    order = hidden.int().argsort(dim=1, stable=True)  # visible first, in raster order
    seen = int((~hidden[0]).sum())
    with torch.no_grad():
        found = adapted(encoder.model)(tensors["input.image"], Mask(order[:, :seen], order[:, seen:], encoder.model.patch_embed.grid_size))
    assert_close(torch.cat([found.prefix, found.patches], dim=1), tensors["output.encoder_out"], rtol=1e-5, atol=4e-6)
    assert any("teacher" in what for what in encoder.report.left) and all(key.startswith("_ema.") for key in encoder.report.left["the teacher, an average of the encoder"])


def halves(hidden):
    """The mask of a boolean map (B, N) that hides as many in each picture, in raster order; its grid is square."""
    order, seen = hidden.int().argsort(dim=1, stable=True), int((~hidden[0]).sum())
    return Mask(order[:, :seen], order[:, seen:], (round(hidden.shape[1] ** 0.5),) * 2)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("cae", "output.latent_target"))
def test_cae_gives_the_official_features(golden, name, tmp_path):
    """Its second encoder sees the masked patches alone: ours drops the others."""
    tensors, metadata = golden(name)
    state = {key.replace("teacher.", "encoder."): value for key, value in under(tensors, "weights.").items() if not key.startswith("encoder.")}
    encoder = opened(state, tmp_path, heads=metadata["config"]["num_heads"])
    with torch.no_grad():
        found = adapted(encoder.model)(tensors["input.image"], halves(~tensors["input.mask"].bool().flatten(1)))
    assert_close(found.patches, tensors["output.latent_target"], **CLOSE)
    assert any("CAE" in what for what in encoder.report.left)
    with_both = opened(under(tensors, "weights."), tmp_path, heads=metadata["config"]["num_heads"])
    assert torch.equal(with_both.model.norm.weight, encoder.model.norm.weight) and any("another part" in what for what in with_both.report.left)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("maskfeat", "output.prediction_all"))
def test_maskfeat_gives_the_official_predictions(golden, name, tmp_path):
    tensors, metadata = golden(name)
    state = under(tensors, "weights.")
    encoder = opened(state, tmp_path, heads=metadata["config"]["num_heads"])
    found = masked(encoder, state["mask_token"], tensors["input.x"], mask_of(tensors["input.mask"]))[:, 1:]
    head = [state[f"pred_head.projections.0.{name}"] for name in ("weight", "bias")]
    assert_close(torch.nn.functional.linear(found, *head), tensors["output.prediction_all"], **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("trunks_beit", "input.visible_ids"))
def test_timms_own_files_of_beit_need_no_name(golden, name, tmp_path):
    tensors, metadata = golden(name)
    said = []
    encoder = opened(under(tensors, "weights."), tmp_path, said, img_size=tuple(metadata["config"]["img_size"]))
    with torch.no_grad():
        assert_close(encoder.model.forward_features(tensors["input.image"]), tensors["output.full"], rtol=1e-5, atol=2e-5)
    assert any("relative places in each block" in line for line in said) and any("mean pooling" in line for line in said)
    with pytest.raises(Refused, match="--img_size HEIGHT WIDTH"):
        opened(under(tensors, "weights."), tmp_path)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("trunks_eva02", "input.visible_ids"))
def test_timms_own_files_of_eva_02_are_asked_for_their_name(golden, name, tmp_path):
    """They have no table of rotary places: what those are, nothing in the file tells."""
    tensors, metadata = golden(name)
    with pytest.raises(Refused, match="FILE:model=NAME"):
        opened(under(tensors, "weights."), tmp_path, img_size=tuple(metadata["config"]["img_size"]))


# ----------------------------------------------------------------------------------------------------- published key lists

HALF, IMAGENET, CLIP = 0.5, 0.485, 0.48145466
OPENED = {  # key list: timm's network, heads, side of the picture, mean of red
    "beit_base_patch16_224_ft1k": ("beit_base_patch16_224", 12, 224, HALF),
    "beit_base_patch16_224_ft22k": ("beit_base_patch16_224", 12, 224, HALF),
    "beit_base_patch16_224_pt1k_800ep": ("beit_base_patch16_224", 12, 224, IMAGENET),
    "beit_base_patch16_224_pt22k": ("beit_base_patch16_224", 12, 224, HALF),
    "beit_base_patch16_384_ft22kto1k": ("beit_base_patch16_224", 12, 384, HALF),
    "beit_large_patch16_224_ft1k": ("beit_large_patch16_224", 16, 224, HALF),
    "beit_large_patch16_224_ft22k": ("beit_large_patch16_224", 16, 224, HALF),
    "beit_large_patch16_224_pt22k": ("beit_large_patch16_224", 16, 224, HALF),
    "beit_large_patch16_384_ft22kto1k": ("beit_large_patch16_224", 16, 384, HALF),
    "beit_large_patch16_512_ft22kto1k": ("beit_large_patch16_224", 16, 512, HALF),
    "beitv2_base_patch16_224_ft1k": ("beit_base_patch16_224", 12, 224, IMAGENET),
    "beitv2_base_patch16_224_ft21k": ("beit_base_patch16_224", 12, 224, IMAGENET),
    "beitv2_base_patch16_224_pt1k": ("beit_base_patch16_224", 12, 224, IMAGENET),
    "beitv2_large_patch16_224_ft1k": ("beit_large_patch16_224", 16, 224, IMAGENET),
    "beitv2_large_patch16_224_ft21k": ("beit_large_patch16_224", 16, 224, IMAGENET),
    "beitv2_large_patch16_224_pt1k": ("beit_large_patch16_224", 16, 224, IMAGENET),
    "cae_base": ("beit_base_patch16_224", 12, 224, IMAGENET),
    "cae_large": ("beit_large_patch16_224", 16, 224, IMAGENET),
    "data2vec_vision_base": ("beit_base_patch16_224", 12, 224, IMAGENET),
    "data2vec_vision_base_finetuned": ("beit_base_patch16_224", 12, 224, IMAGENET),
    "data2vec_vision_large": ("beit_large_patch16_224", 16, 224, IMAGENET),
    "data2vec_vision_large_finetuned": ("beit_large_patch16_224", 16, 224, IMAGENET),
    "data2vec2_base_imagenet": ("data2vec2_base_patch16_224", 12, 224, IMAGENET),
    "data2vec2_large_imagenet": ("data2vec2_large_patch16_224", 16, 224, IMAGENET),
    "data2vec2_huge14_imagenet": ("data2vec2_huge_patch14_224", 16, 224, IMAGENET),
    "eva01_g_psz14_mim": ("eva_giant_patch14_224", 16, 224, CLIP),
    "eva02_Ti_pt_p14": ("eva02_tiny_patch14_224", 3, 224, CLIP),
    "eva02_S_pt_p14": ("eva02_small_patch14_224", 6, 224, CLIP),
    "eva02_B_pt_p14": ("eva02_base_patch14_224", 12, 224, CLIP),
    "eva02_L_pt_p14": ("eva02_large_patch14_224", 16, 224, CLIP),
    "maskfeat_in1k_VIT_B_MaskFeat_PT": ("vit_base_patch16_224", 12, 224, IMAGENET),
    "maskfeat_in1k_VIT_L_MaskFeat_PT": ("vit_large_patch16_224", 16, 224, IMAGENET),
    "simmim_finetune_swin_base_img192_window6": ("swin_base_patch4_window7_224", (4, 8, 16, 32), 192, IMAGENET),
    "simmim_finetune_swin_base_img224_window7": ("swin_base_patch4_window7_224", (4, 8, 16, 32), 224, IMAGENET),
    "simmim_finetune_swin_large_img224_window14": ("swin_large_patch4_window7_224", (6, 12, 24, 48), 224, IMAGENET),
    "simmim_pretrain_swin_base_img192_window6": ("swin_base_patch4_window7_224", (4, 8, 16, 32), 192, IMAGENET),
    "simmim_pretrain_swin_large_img192_window12": ("swin_large_patch4_window7_224", (6, 12, 24, 48), 192, IMAGENET),
    "simmim_finetune_vit_base_img224_800ep": ("beit_base_patch16_224", 12, 224, IMAGENET),
    "simmim_pretrain_vit_base_img224_800ep": ("beit_base_patch16_224", 12, 224, IMAGENET),
}


@pytest.mark.parametrize("name", sorted(OPENED.keys() & lists()))
def test_published_names_and_shapes_fill_a_network_without_rest(name):
    weights, (model, heads, side, red) = published(name), OPENED[name]
    taken = take(weights)
    assert taken is not None and taken.network.name == model and taken.network.published
    assert (taken.network.kwargs["num_heads"], taken.network.kwargs["img_size"], taken.statistics["mean"][0]) == (heads, (side, side), red)
    with torch.device("meta"):
        trunk = timm.create_model(taken.network.name, **taken.network.kwargs)
    trunk.load_state_dict({key: torch.empty_like(value, device="meta") for key, value in taken.trunk.items()})  # strict
    left = {key for names in taken.left.values() for key in names}
    assert len(left) + len(taken.trunk) == len(weights.state), "every name is used or explained"
    assert left <= weights.state.keys()
    assert all(taken.left), "each with a reason"


def test_names_that_no_table_knows_are_refused(tmp_path):
    state = {key: torch.zeros(shape) for key, shape in keys("beit_base_patch16_224_pt22k").items() if ".blocks.1" not in key}
    small = {key: value for key, value in state.items() if not key.startswith(tuple(f"blocks.{i}." for i in range(1, 12)))}
    with pytest.raises(Refused, match=r"blocks\.0\.attn\.gate, which no network of BEiT's kind has") as refusal:
        opened(small | {"blocks.0.attn.gate": torch.zeros(12)}, tmp_path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(Refused, match=r"blocks .* some are missing"):
        opened({key: value for key, value in state.items() if not key.startswith("blocks.3.")}, tmp_path)
    without = {key: value for key, value in small.items() if not key.startswith("rel_pos_bias")}
    with pytest.raises(Refused, match="neither relative nor absolute places"):
        opened(without, tmp_path)
    with pytest.raises(Refused, match="missing are norm"):
        opened({key: value for key, value in small.items() if not key.startswith("norm.")}, tmp_path)


@pytest.mark.golden
def test_rotary_places_are_those_of_the_file(golden, tmp_path):
    """Their range is read off the file's own table; a table that EVA-02 does not compute is refused, and without one the published range is assumed aloud."""
    tensors, metadata = golden("eva02")
    state, heads = under(tensors, "weights."), metadata["config"]["num_heads"]
    side = metadata["config"]["img_size"] // metadata["config"]["patch_size"]
    assert opened(state, tmp_path, heads=heads).kwargs["ref_feat_shape"] == (side, side)
    said = []
    without = {key: value for key, value in state.items() if "rope." not in key}
    assert opened(without, tmp_path, said, heads=heads).kwargs["ref_feat_shape"] == (16, 16)
    assert any("16x16 grid assumed" in line for line in said)
    with pytest.raises(Refused, match="not EVA-02's"):
        opened(state | {"rope.freqs_cos": state["rope.freqs_sin"]}, tmp_path, heads=heads)
    with pytest.raises(Refused, match="FILE:heads=N"):
        opened(state, tmp_path, heads=heads * 2)


# ------------------------------------------------------------------------------------------------------------ where they go


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "part", "heads", "size"),
    [("beit", "", 3, (64, 32)), ("simmim_swin", "", None, (64, 32)), ("eva02", "", 2, (84, 56)), ("data2vec2", "student.", 3, (48, 64)), ("maskfeat", "", 2, (32, 64))],
)
def test_what_was_opened_is_kept_and_takes_other_sizes(golden, name, part, heads, size, tmp_path):
    """An exported file is the same encoder; another size gives as many features as it has patches."""
    from unmask.interchange.timm_export import export_safetensors

    encoder = opened(under(golden(name)[0], f"weights.{part}"), tmp_path, heads=heads)
    assert export_safetensors(encoder, tmp_path / "out.safetensors").difference == 0
    again = load_encoder(tmp_path / "out.safetensors")
    x = torch.randn(2, 3, *encoder.img_size)
    with torch.no_grad():
        assert torch.equal(again.model.forward_features(x), encoder.model.forward_features(x))
        other = load_encoder(tmp_path / "out.safetensors", img_size=size)
        found = other.model.forward_features(torch.randn(1, 3, *size)).flatten(1, -2)
    rows, columns = adapted(other.model).grid(torch.empty(1, 3, *size))
    assert found.shape[1] == rows * columns + (name != "simmim_swin") and bool(found.isfinite().all())  # all but Swin have a class token


def small(name, blocks=2):
    """A file of that key list with fewer blocks and random weights, without the tables that are computed."""
    torch.manual_seed(7)
    state = {key: torch.randn(shape) * 0.1 for key, shape in keys(name).items() if not any(f"blocks.{i}." in key for i in range(blocks, 48))}
    return {key: value for key, value in state.items() if not key.endswith("relative_position_index") and "rope." not in key}


@pytest.mark.parametrize(
    ("name", "method"),
    [("beit_base_patch16_224_pt22k", "SimMIM"), ("simmim_pretrain_vit_base_img224_800ep", "Data2Vec"), ("eva02_S_pt_p14", "SimMIM")],
)
def test_pre_training_goes_on_from_them(name, method, tmp_path):
    """`--init`: the run's network begins with the file's features."""
    from unmask.interchange.initialise import fill
    from unmask.methods import data2vec, simmim

    torch.save({"model": small(name)}, tmp_path / f"{name}.pth")
    encoder = load_encoder(tmp_path / f"{name}.pth", say=lambda line: None)
    statistics = {"mean": encoder.mean, "std": encoder.std}
    build = {"SimMIM": simmim.SimMIM, "Data2Vec": data2vec.Data2Vec}[method]().build
    own = encoder.kwargs
    learner = build(encoder.name, encoder.img_size, 3, encoder.patch_size[0], width=own["embed_dim"], depth=own["depth"], heads=own["num_heads"])
    lines = fill(learner.encoder.trunk, str(tmp_path / f"{name}.pth"), statistics)
    x = torch.randn(1, 3, *encoder.img_size)
    with torch.no_grad():
        assert_close(learner.encoder.eval()(x).patches, encoder.model.forward_features(x)[:, 1:])
    assert any("left out" in line for line in lines)


def test_fine_tuned_tables_are_no_start_for_pre_training(tmp_path):
    from unmask.encoders.build import create_trunk
    from unmask.interchange.initialise import fill

    torch.save({"model": small("simmim_finetune_vit_base_img224_800ep")}, tmp_path / "simmim_finetune.pth")
    trunk = create_trunk("beit_base_patch16_224", (224, 224), 3, None, 768, 2, 12)
    with pytest.raises(Refused, match="one table of relative places for all blocks") as refusal:
        fill(trunk, str(tmp_path / "simmim_finetune.pth"))
    assert "\n" not in str(refusal.value)


def test_a_run_begins_with_swins_network(tmp_path):
    """`--init` alone builds the network of the file: its heads, one number a stage, are those of its name."""
    from dataclasses import dataclass, replace

    from unmask.encoders.build import create_trunk
    from unmask.interchange.encoder import save_encoder
    from unmask.settings import Trunk
    from unmask.training.pretraining import started

    @dataclass
    class Asked:
        trunk: Trunk
        method: Trunk  # any settings without a decoder's

    save_encoder(tmp_path / "encoder.safetensors", create_trunk("swin_tiny_patch4_window7_224", (224, 224), 3, None, 24))
    path = str(tmp_path / "encoder.safetensors")
    found = started(Asked(Trunk(init=path), Trunk())).trunk
    assert replace(found, init=None) == Trunk(model="swin_tiny_patch4_window7_224", width=24, img_size=(224, 224))
    state = {f"encoder.{key}": value for key, value in load_encoder(path).model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "simmim.pth")
    found = started(Asked(Trunk(init=str(tmp_path / "simmim.pth")), Trunk())).trunk
    assert (found.width, found.heads, found.depth, found.patch_size, found.img_size) == (24, None, None, 4, (224, 224))


def test_swins_windows_are_made_anew_for_another_size(tmp_path):
    """SimMIM pre-trains Swin-B on 192 pixels with windows of 6, and goes on at 224 with windows of 7."""
    from unmask.encoders.build import create_trunk
    from unmask.interchange.encoder import save_encoder
    from unmask.interchange.initialise import fill
    from unmask.interchange.timm import rebuild

    torch.manual_seed(2)
    source = rebuild("swin_tiny_patch4_window7_224", {"img_size": (192, 192), "in_chans": 3, "embed_dim": 24, "window_size": 6, "num_classes": 0, "drop_path_rate": 0.0})
    for stage in source.layers:
        for block in stage.blocks:
            torch.nn.init.constant_(block.attn.relative_position_bias_table, 0.5)
    save_encoder(tmp_path / "encoder.safetensors", source)
    trunk = create_trunk("swin_tiny_patch4_window7_224", (224, 224), 3, None, 24)
    lines = fill(trunk, str(tmp_path / "encoder.safetensors"))
    assert any("windows of 6x6, 6x6, 6x6, 6x6 patches made anew for windows of 7x7" in line for line in lines)
    table = trunk.layers[0].blocks[1].attn.relative_position_bias_table
    assert table.shape[0] == 13 * 13
    assert_close(table, torch.full_like(table, 0.5), msg="what is the same everywhere stays so")
    assert torch.equal(trunk.layers[2].blocks[0].mlp.fc1.weight, source.layers[2].blocks[0].mlp.fc1.weight)

