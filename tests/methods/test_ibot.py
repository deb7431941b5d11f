"""iBOT against the official code's numbers: views behind masks, both losses, gradients, centres, a step, the law of masks."""

import pytest
import torch
from distilled import filled, mean_a_view, ours, part, trunk_of
from golden_files import check_gradients, names
from torch.testing import assert_close

from unmask import seeds
from unmask.masking import SomeViews
from unmask.methods.ibot import IBOT
from unmask.optim.groups import parameter_groups
from unmask.self_distillation import Warm
from unmask.testing import SMALL, check_masking, pictures

OFFICIAL = "bytedance/ibot@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
FILES = names("ibot", "output.student_patch", OFFICIAL)


def learner_of(tensors, config):
    sizes = {"prototypes": config["out_dim"], "patch_prototypes": config["patch_out_dim"], "hidden": config["hidden"], "bottleneck": config["bottleneck"]}
    weights = {"views_weight": config["lambda1"], "patches_weight": config["lambda2"], "momentum": float(tensors["output.step.momentum"])}
    method = IBOT(**sizes, **weights, shared_head=config["shared_head"], norm_last_layer=config["norm_last_layer"], drop_path=0)
    learner = filled(method.build(trunk_of(config)), tensors, config["shared_head"])
    learner.temperature.copy_(tensors["input.teacher_temp"])
    learner.patch_temperature.copy_(tensors["input.teacher_patch_temp"])
    learner.centre.mean.copy_(tensors["input.center"].flatten())
    learner.patch_centre.mean.copy_(tensors["input.center2"].flatten())
    return learner


def inputs(tensors):
    views = {kind: [tensors[key] for key in sorted(key for key in tensors if key.startswith(f"input.{kind}."))] for kind in ("global", "local", "mask")}
    x = {kind: torch.cat(views[kind]) for kind in ("global", "local") if views[kind]}
    return x, mean_a_view(torch.cat(views["mask"]))


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_losses_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config, (x, mask) = metadata["config"], inputs(tensors)
    learner = learner_of(tensors, config)
    features = learner.encoder(x["global"], mask)
    b = config["batch"]
    assert_close(torch.cat([features.prefix, features.patches], 1)[:b], tensors["output.backbone.student_masked_global0"], **CLOSE)
    assert_close(learner.head(features.prefix[:, 0]), tensors["output.student_cls"], **CLOSE)
    assert_close(learner.head.patches(features.patches), tensors["output.student_patch"], **CLOSE)
    taught = learner.teacher["encoder"](x["global"])
    assert_close(learner.teacher["head"].patches(taught.patches), tensors["output.teacher_patch"], **CLOSE)
    found = learner(x, mask=mask)
    assert_close(found["views"], tensors["output.loss_cls"], rtol=1e-6, atol=1e-6)
    assert_close(found["patches"], tensors["output.loss_patch"], rtol=1e-6, atol=1e-6)
    assert_close(found["loss"], tensors["output.loss"], rtol=1e-6, atol=1e-6)
    found["loss"].backward()
    check_gradients(learner, ours(part(tensors, "grad."), shared=config["shared_head"]))


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_a_step_equals_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config, (x, mask) = metadata["config"], inputs(tensors)
    learner = learner_of(tensors, config)
    groups, factors = parameter_groups(learner, IBOT.paper)
    rate, decay = (float(tensors[f"output.step.{what}"]) for what in ("lr", "wd"))
    for group, factor in zip(groups, factors):
        group |= {"lr": rate * factor(0.5), "weight_decay": decay if group["weight_decay"] else 0.0}
    optimizer = torch.optim.AdamW(groups, betas=IBOT.paper.betas, eps=IBOT.paper.eps)
    learner(x, mask=mask)["loss"].backward()
    for value in learner.parameters():
        if value.requires_grad:
            torch.nn.utils.clip_grad_norm_(value, config["clip"])
    optimizer.step()
    learner.after_step(0.5)
    assert_close(learner.centre.mean, tensors["output.center_new"].flatten(), **CLOSE)
    assert_close(learner.patch_centre.mean, tensors["output.center2_new"].flatten(), **CLOSE)
    expected = ours(part(tensors, "output.step.student."), shared=config["shared_head"])
    expected |= ours(part(tensors, "output.step.teacher."), teacher=True, shared=config["shared_head"])
    assert expected
    after = learner.state_dict()
    for key, value in expected.items():
        assert_close(after[key], value, rtol=1e-5, atol=3e-6, msg=lambda said, key=key: f"{key}: {said}")


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_the_temperature_for_patches_waits(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    epochs, last = config["nepochs"], config["warmup_teacher_temp_epochs"] - 1
    warm = Warm(config["warmup_teacher_patch_temp"], config["teacher_patch_temp"], last / epochs, config["mim_start_epoch"] / epochs)
    assert_close(torch.tensor([warm.at(epoch / epochs) for epoch in range(epochs)]), tensors["output.teacher_patch_temp_schedule"], rtol=1e-5, atol=1e-7)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("ibot_mask", "law.", OFFICIAL))
def test_masks_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    config, draws = metadata["config"], 12_000
    (_, ratio), (_, spread) = config["pred_ratio"], config["pred_ratio_var"]
    masking = SomeViews(low=ratio - spread, high=ratio + spread, blocks=config["shape"] == "block")
    grid = tuple(config["grid"])
    maps = masking(grid, seeds.uniform((draws, masking.draws(grid)), 0, "law")).map
    count = maps.sum(1)
    histogram = torch.bincount(count, minlength=maps.shape[1] + 1) / draws
    assert (histogram.cumsum(0) - tensors["law.count_hist"].cumsum(0)).abs().max() < 0.02
    assert (maps.float().mean(0).unflatten(0, grid) - tensors["law.marginal"]).abs().max() < 0.02
    assert abs((count == 0).float().mean() - tensors["law.fraction_empty"]) < 0.02
    mean, std = tensors["law.count_mean_std_nonempty"]
    some = count[count > 0].float()
    assert abs(some.mean() - mean) < 5 * std * (2 / len(some)) ** 0.5


@pytest.mark.parametrize("blocks", [True, False])
def test_masks_keep_the_contract(blocks):
    check_masking(SomeViews(blocks=blocks))
    mask = SomeViews(blocks=blocks)((8, 8), seeds.uniform((64, SomeViews(blocks=blocks).draws((8, 8))), 0, "masks"))
    sums = mask.weight.sum(1)
    assert ((sums - 1).abs() < 1e-5).logical_or(sums == 0).all() and (sums == 0).any()


def test_nothing_is_masked_before_the_start():
    """The official loader's ratio is 0 before `pred_start_epoch`, from which the temperature for patches waits too."""
    learner = IBOT(prototypes=16, hidden=16, bottleneck=8, patches_start=0.25, drop_path=0).build(**SMALL, img_size=(32, 32))
    x = pictures(8)
    noise = seeds.uniform((4, learner.draws(x)), 0, "start")
    hidden = {}
    for progress in (0.2, 0.25):
        learner.before_step(progress, 0.5)
        mask = learner.draw_mask(x, noise)
        hidden[progress] = int(mask.map.sum()), float(learner(x, mask=mask)["patches"].detach())
    assert hidden[0.2] == (0, 0.0) and min(hidden[0.25]) > 0


def test_the_papers_numbers():
    with torch.device("meta"):
        learner = IBOT().build()
    assert learner.head.last_layer.weight_v.shape == (8192, 256) and learner.head.last_layer2 is None
    separate = IBOT(shared_head=False, prototypes=20, patch_prototypes=12, hidden=16).build(**SMALL, img_size=(32, 32))
    assert len(separate.centre.mean) == 20 and len(separate.patch_centre.mean) == 12
    with pytest.raises(ValueError, match="mask_low"):
        IBOT(mask_low=0.6)
