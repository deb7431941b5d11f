"""I-JEPA against the official code's numbers: features, predictions, target, loss, gradients, teacher, mask law."""

import pytest
import timm
import torch
from golden_files import check_gradients, names
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import MultiBlock
from unmask.methods.ijepa import IJEPA
from unmask.optim.groups import parameter_groups
from unmask.optim.schedule import cosine
from unmask.testing import SMALL, case_of, check_leak, pictures

OFFICIAL = "facebookresearch/ijepa@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
PREDICTOR = "objectives.features.decoder.predictor."
TABLE = {  # official: ours
    "encoder.": "encoder.trunk.",
    "target_encoder.": "objectives.features.target.copy.trunk.",
    "predictor.mask_token": PREDICTOR + "mask_token",
    "predictor.predictor_embed.": PREDICTOR + "embed.",
    "predictor.predictor_blocks.": PREDICTOR + "blocks.",
    "predictor.predictor_norm.": PREDICTOR + "norm.",
    "predictor.predictor_proj.": PREDICTOR + "predict.",
}


def ours(official: dict) -> dict:
    found = {}
    for key, value in official.items():
        if key != "predictor.predictor_pos_embed":  # which we compute
            row = next(theirs for theirs in TABLE if key.startswith(theirs))
            found[TABLE[row] + key[len(row) :]] = value
    return found


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_of(tensors, config):
    words = {"img_size": config["img_size"], "patch_size": config["patch_size"], "embed_dim": config["embed_dim"], "depth": config["depth"]}
    words |= {"num_heads": config["num_heads"], "mlp_ratio": config["mlp_ratio"], "fc_norm": False, "dynamic_img_size": True, "num_classes": 0}
    method = IJEPA(targets=config["npred"], decoder_width=config["pred_embed_dim"], decoder_depth=config["pred_depth"], momentum=config["ema"][0])
    learner = method.build(timm.create_model("vit_huge_patch14_gap_224", **words), mlp_ratio=config["mlp_ratio"])
    weights = part(tensors, "weights.")
    learner.load_state_dict(ours(weights) | {"objectives.features.target.steps": torch.tensor(0.0)})  # strict
    decoder = learner.objectives["features"].decoder.predictor
    assert_close(decoder.places, weights["predictor.predictor_pos_embed"], rtol=0, atol=1e-7)
    return learner


def mask_in(tensors, config):
    side = config["img_size"] // config["patch_size"]
    targets = [tensors[f"input.mask_pred{i}"] for i in range(config["npred"])]
    return Mask(tensors["input.mask_enc0"], torch.cat(targets, dim=1), (side, side))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("ijepa", "output.context_out", OFFICIAL))
def test_prediction_target_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner, x, mask = learner_of(tensors, config), tensors["input.image"], mask_in(tensors, config)
    found = learner.predict(x, mask, "features")
    assert_close(found["features"].patches, tensors["output.context_out"], **CLOSE)
    for key in ("prediction", "truth"):  # theirs: target after target, all pictures each
        theirs = tensors["output." + {"prediction": "pred", "truth": "target"}[key]]
        assert_close(torch.cat(found[key].chunk(config["npred"], dim=1)), theirs, **CLOSE)
    assert_close(learner.objectives["features"].target.copy(x).patches, tensors["output.target_encoder_out"], **CLOSE)
    loss = learner(x, mask=mask)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    check_gradients(learner, ours(part(tensors, "grad.")))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("ijepa", "output.context_out", OFFICIAL))
def test_teacher_schedules_and_groups_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner, steps = learner_of(tensors, config), config["ipe"] * config["epochs"]
    target, at = learner.objectives["features"].target, config["ema_at"]
    for step, value in enumerate(tensors["output.momentum_schedule"][: steps + 1].tolist()):
        assert target.momentum.at(step / steps, target.steps) == pytest.approx(value, abs=1e-7)
    learner.after_step(at / steps)
    for key, value in part(tensors, "output.target_after_ema.").items():
        assert_close(target.copy.trunk.state_dict()[key], value, **CLOSE)
    decay = [cosine(step + 1, steps, config["wd"], config["final_wd"]) for step in range(steps)]
    assert_close(torch.tensor(decay), tensors["output.wd_schedule"], rtol=1e-5, atol=1e-6)
    groups, _ = parameter_groups(learner, IJEPA.paper)
    decayed = {id(value) for group in groups if group["weight_decay"] for value in group["params"]}
    theirs = ours(dict.fromkeys(name for name in config["optimizer_groups"]["decayed"] if "pos_embed" not in name))  # of fixed tables nothing decays
    assert {name for name, value in learner.named_parameters() if id(value) in decayed} == set(theirs)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("ijepa_masklaw", "law.", OFFICIAL))
def test_blocks_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    grid, batch, calls = tuple(config["grid"]), config["batch"], 1500
    masking = MultiBlock(least=config["min_keep"])
    numbers = torch.rand(calls, generator=torch.Generator().manual_seed(0)).tolist()
    sizes, maps, seen, lengths, counts = set(), [], [], [], []
    for call, u in enumerate(numbers):
        masking.prepare(0.0, u)
        sizes.add(sum(masking.sizes(grid), ()))
        mask = masking(grid, torch.rand(batch, masking.draws(grid), generator=torch.Generator().manual_seed(call)))
        maps.append(mask.map)
        seen.append(torch.zeros_like(mask.map).scatter(1, mask.visible_ids, True))
        counts.append(mask.masked_ids.shape[1] // config["npred"])
        lengths.append(mask.visible_ids.shape[1])
        assert not (seen[-1] & mask.map).any() or len(mask.visible_ids[0]) > config["min_keep"]
    official = {tuple(int(side) for side in row) for row in tensors["law.block_sizes_step0_63"]}
    assert {size[:2] for size in official} <= {size[:2] for size in sizes} and {size[2:] for size in official} <= {size[2:] for size in sizes}
    assert len({size[:2] for size in sizes}) <= len({size[:2] for size in official}) + 2  # 64 steps may miss a rare one
    for ours_, key in ((maps, "law.pred_union_marginal"), (seen, "law.context_marginal")):
        share = tensors[key].flatten()
        assert (torch.cat(ours_).float().mean(0) - share).abs().max() < 0.04  # sizes are shared in a batch: fewer draws than pictures
        assert not torch.cat(ours_).unflatten(1, grid)[:, -1].any() and not torch.cat(ours_).unflatten(1, grid)[:, :, -1].any()
    for ours_, key in ((counts, "law.pred_count_histogram"), (lengths, "law.context_count_histogram")):
        official = tensors[key] / tensors[key].sum()
        histogram = torch.bincount(torch.tensor(ours_), minlength=len(official)) / len(ours_)
        assert (histogram.cumsum(0) - official.cumsum(0)).abs().max() < 0.05


# ------------------------------------------------------------------------------------------------------ its own corners


def test_the_papers_sizes():
    with torch.device("meta"):
        learner = IJEPA().build()
    predictor = learner.objectives["features"].decoder.predictor
    assert learner.encoder.trunk.cls_token is None and learner.encoder.width == 1280
    assert (predictor.embed.out_features, len(predictor.blocks), predictor.blocks[0].attn.num_heads) == (384, 12, 16)
    assert not learner.encoder.trunk.pos_embed.requires_grad


def test_targets_do_not_see_each_other():
    """The answer about a target is the same whatever else is asked."""
    learner = IJEPA().build(**SMALL | {"patch_size": 4}, img_size=(32, 32)).eval()
    x = pictures(2)
    mask = learner.draw_mask(x)
    first = Mask(mask.visible_ids, mask.masked_ids.chunk(4, dim=1)[0].repeat(1, 4), mask.grid)
    both = [learner.predict(x, asked, "features")["prediction"].chunk(4, dim=1)[0] for asked in (mask, first)]
    assert_close(*both)


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (4, 4), (8, 8), (14, 14)])
def test_any_grid_has_a_context(grid):
    strategy = MultiBlock()
    for u in (0.0, 0.3, 0.999):
        strategy.prepare(0, u)
        mask = strategy(grid, torch.rand(50, strategy.draws(grid)))
        assert mask.visible_ids.shape[1] >= 1 and mask.masked_ids.shape[1] % 4 == 0


def test_over_networks_without_and_with_a_class_token_and_over_a_beit():
    for model in ("vit_medium_patch16_gap_256", "beit_base_patch16_224", "vit_small_patch16_rope_224"):
        check_leak(case_of(IJEPA(), model=model, patch_size=4))


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match="encoder's 3 heads"):
        IJEPA(decoder_width=32).build(**SMALL, img_size=(32, 32))
    with pytest.raises(ValueError, match="momentum"):
        IJEPA(momentum=1.5)
    with pytest.raises(ValueError, match="no mask_ratio"):
        MultiBlock(0.5)


def test_narrow_networks_begin_with_wider_weights():
    """The paper's .02 from ViT-B on; below it each layer passes on as large a share as there."""
    wide = {width: float(IJEPA().build("vit_tiny_patch16_224", (32, 32), patch_size=8, width=width, depth=1, heads=3).encoder.trunk.blocks[0].mlp.fc1.weight.std()) for width in (96, 768)}
    assert wide[768] == pytest.approx(0.02, rel=0.03) and wide[96] == pytest.approx(0.02 * 8**0.5, rel=0.03)
    asked = IJEPA(init_std=0.02).build("vit_tiny_patch16_224", (32, 32), patch_size=8, width=96, depth=1, heads=3)
    assert float(asked.encoder.trunk.blocks[0].mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.03)
