"""SimMIM against the official code's numbers: over the BEiT-style ViT and over Swin."""

import json
import math

import pytest
import timm
import torch
from golden_files import check_gradients, check_law, mask_of, names
from timm.models.swin_transformer import SwinTransformer
from torch.testing import assert_close

from unmask.encoders.swin import Swin
from unmask.errors import Refused
from unmask.methods.mae import MAE
from unmask.methods.simmim import SimMIM
from unmask.optim.groups import parameter_groups
from unmask.testing import SMALL, case_of, check_graph, check_leak, check_method, pictures

OFFICIAL = "microsoft/SimMIM@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def learner_at(config, width=None):
    """Ours at the size of a golden file's config."""
    own, patch, size = width or config["embed_dim"], config["patch_size"], config["img_size"]
    if config["type"] == "vit":
        sizes = {"width": own, "depth": config["depth"], "heads": config["num_heads"]}
        return SimMIM(init_std=0.02, cell=patch, drop_path=0).build("beit_base_patch16_224", (size, size), 3, patch, **sizes)
    words = ("patch_size", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias")
    trunk = SwinTransformer(size, embed_dim=own, num_classes=0, drop_path_rate=0.0, **{word: config[word] for word in words})
    return SimMIM(init_std=0.02, drop_path=0).build(trunk)


def ours(official: dict) -> dict:
    """The official names and values as ours; integer tables and shift masks, which timm computes, are left out."""
    found = {}
    for key, value in official.items():
        if key.endswith(("relative_position_index", "attn_mask")):
            continue
        key = key.replace("decoder.0.", "objectives.pixels.decoder.predict.").replace("encoder.", "encoder.trunk.")
        key = key.replace("encoder.trunk.mask_token", "encoder.mask_token")
        parts = key.split(".")
        if "downsample" in parts:  # timm merges at the beginning of the next stage
            parts[3] = str(int(parts[3]) + 1)
        found[".".join(parts)] = value.flatten(1) if key.endswith("predict.weight") else value
    return found


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.golden
@pytest.mark.parametrize("name", names("simmim", "output.reconstruction", OFFICIAL))
def test_features_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    learner = learner_at(metadata["config"])
    learner.load_state_dict(ours(part(tensors, "weights.")))  # strict
    x, fine = tensors["input.x"], tensors["input.mask"]
    step = fine.shape[1] // learner.encoder.grid(x)[0]  # tokens of the first stage a feature, each way
    mask = mask_of(fine[:, ::step, ::step])
    found = learner.predict(x, mask)
    assert_close(found["features"].patches.transpose(1, 2).unflatten(2, mask.grid), tensors["output.encoder_map"], **CLOSE)
    side = learner.encoder.patch[0]
    whole = torch.nn.functional.pixel_unshuffle(tensors["output.reconstruction"], side).flatten(2).transpose(1, 2)  # (B, N, C·p·p)
    assert_close(found["prediction"], mask.masked(whole), **CLOSE)
    loss = learner(x, mask=mask)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    check_gradients(learner, ours(part(tensors, "grad.")))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("simmim", "law.size", OFFICIAL))
def test_squares_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    for size, unit, patch, ratio in metadata["config"]["cfgs"]:
        prefix = f"law.size{size}_unit{unit}_patch{patch}_ratio{ratio}."
        grid, cells = (size // patch,) * 2, size // unit
        masking = SimMIM(mask_ratio=ratio).build("vit_tiny_patch16_224", (size, size), patch_size=patch, width=16, depth=1, heads=1).masking
        noise = torch.rand(4000, masking.draws(grid), generator=torch.Generator().manual_seed(0))
        maps = masking(grid, noise).map.unflatten(1, grid).float()  # (4000, rows, columns)
        units = torch.nn.functional.max_pool2d(maps.unsqueeze(1), unit // patch)[:, 0]
        assert torch.equal(units.repeat_interleave(unit // patch, 1).repeat_interleave(unit // patch, 2), maps)
        count = tensors[prefix + "unit_count"].item()
        assert (units.sum((1, 2)) == count).all() and (maps.sum((1, 2)) == tensors[prefix + "token_count"].item()).all()
        share, N = count / cells**2, cells**2
        assert (units.mean(0) - tensors[prefix + "unit_frequency"]).abs().max() < 4.5 * (share * (1 - share) * (1 / 4000 + 1 / 20000)) ** 0.5
        both = torch.stack([(units[:, 1:] * units[:, :-1]).mean(), (units[:, :, 1:] * units[:, :, :-1]).mean()])
        assert_close(both, tensors[prefix + "neighbour_both_masked"], rtol=0, atol=0.01)
        assert abs(both[0].item() - count * (count - 1) / (N * (N - 1))) < 0.01


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("name", names("simmim", "law.vit_pretrain", OFFICIAL))
def test_initial_values_follow_the_official_law(golden, name, kind):
    tensors, metadata = golden(name)
    config = golden(f"simmim_{kind}")[1]["config"]
    widths = dict(zip(("vit", "swin"), (int(word) for word in metadata["config"]["model"].split("width ")[1].split(" / "))))
    order, law = json.loads(metadata[f"{kind}_pretrain_names"]), tensors[f"law.{kind}_pretrain_mean_std_absmax_count"]
    if kind == "swin":  # its heads are others than those of simmim_swin: read off the tables
        tables = {key.split(".")[2]: int(count) // 20 // (2 * config["window_size"] - 1) ** 2 for key, count in zip(order, law[:, 3]) if key.endswith("bias_table")}
        config = config | {"num_heads": list(tables.values())}
    torch.manual_seed(0)

    def draw():
        state = learner_at(config, widths[kind]).state_dict()
        renamed = ours({key: torch.empty(1, 1) for key in order})  # our names, in their order
        return {theirs: state[mine] for theirs, mine in zip(order, renamed)}

    check_law(law, order, draw)


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("name", names("simmim", "output.vit_pretrain_decayed", OFFICIAL))
def test_what_decays_is_what_decays_there(golden, name, kind):
    tensors, metadata = golden(name)
    learner = learner_at(metadata["config"][kind])
    groups, _ = parameter_groups(learner, SimMIM.paper)
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    order = json.loads(metadata[f"{kind}_pretrain_names"])
    found = [float(id(learner.get_parameter(mine)) in decayed) for mine in ours({key: torch.empty(1, 1) for key in order})]
    assert found == tensors[f"output.{kind}_pretrain_decayed"].tolist()


# ------------------------------------------------------------------------------------------------------ its own corners


@pytest.mark.parametrize("model", ["beit_base_patch16_224", "beitv2_base_patch16_224"])
def test_over_a_beit(model):
    check_method(SimMIM(drop_path=0, cell=8), processes=False, model=model)


def test_over_a_swin():
    words = {"model": "swin_tiny_patch4_window7_224", "patch_size": 2, "width": 24, "depth": None, "heads": None, "img_size": (32, 48)}
    check_method(SimMIM(mask_ratio=0.5), processes=False, x=pictures(4, 3, (32, 48)), **words)


def test_the_papers_networks_and_numbers():
    with torch.device("meta"):
        base, swin = SimMIM().build(), SimMIM().build("swin_base_patch4_window12_384", (192, 192))
    assert base.masking.cell == (2, 2) and base.masking.keep(49) == 19 and not math.isclose(base.encoder.trunk.blocks[-1].drop_path1.drop_prob, 0)
    assert base.encoder.trunk.rel_pos_bias is not None and base.encoder.trunk.blocks[0].attn.relative_position_bias_table is None
    assert isinstance(swin.encoder, Swin) and swin.masking.cell == (1, 1) and swin.masking.keep(36) == 14
    assert swin.objectives["pixels"].decoder.predict.out_features == 3072


@pytest.mark.parametrize(("img_size", "patch", "cell"), [(224, 16, 2), (192, 16, 2), (32, 4, 1), (64, 4, 2), (96, 8, 2), (32, 8, 1), (224, 14, 2)])
def test_squares_on_small_pictures(img_size, patch, cell):
    assert SimMIM().cells((patch, patch), (img_size, img_size)) == (cell, cell)


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match="cell 12"):
        SimMIM(cell=12).build(**SMALL, img_size=(32, 32))
    with pytest.raises(ValueError, match="drop_path"):
        SimMIM(drop_path=1.0)
    with pytest.raises(Refused, match="stages"):
        SimMIM().build("swin_tiny_patch4_window7_224", depth=3)
    with pytest.raises(Refused, match="choose another --model"):
        SimMIM().build("swin_tiny_patch4_window7_224", (48, 48))
    with pytest.raises(ValueError, match="not of 16x16"):
        SimMIM().build(**SMALL | {"model": "beit_base_patch16_224"}, img_size=(32, 32))(torch.zeros(2, 3, 16, 16))


def test_dropping_over_beit_and_swin():
    """MAE over them: what is hidden is dropped, with its rows and columns of the bias, or closed in every window."""
    check_leak(case_of(MAE(), model="beit_base_patch16_224", img_size=(32, 48)))
    check_graph(case_of(MAE(), model="beitv2_base_patch16_224"))
    swin = case_of(MAE(mask_ratio=0.5), model="swin_tiny_patch4_window7_224", patch_size=2, width=24, depth=None, heads=None, img_size=(32, 48))
    check_leak(swin)


def test_drop_path_rises_and_stays_out_of_the_file():
    learner = SimMIM(drop_path=0.3).build(**SMALL | {"depth": 4}, img_size=(32, 32))
    chances = [getattr(block.drop_path2, "drop_prob", 0.0) for block in learner.encoder.trunk.blocks]
    assert chances == pytest.approx([0, 0.1, 0.2, 0.3])
    words = dict(learner.encoder.trunk.unmask_kwargs)
    assert "drop_path_rate" not in words
    timm.create_model(words.pop("model"), **words).load_state_dict(learner.encoder.trunk.state_dict())


def test_patches_can_be_normalised():
    said = SimMIM(norm_pix=True).build(**SMALL, img_size=(32, 32)).objectives["pixels"].target(pictures(2))  # (B, N, values)
    assert_close(said.mean(-1), torch.zeros(2, 16), rtol=0, atol=1e-5)
    assert_close(said.std(-1), torch.ones(2, 16), rtol=0, atol=1e-3)
