"""DINOv2 against the official code's numbers: both forms of its losses, Sinkhorn, KoLeo, gradients, clipping by module, teacher, groups, masks."""

import pytest
import torch
from distilled import filled, mean_a_view, ours, part, trunk_of
from golden_files import check_gradients, names
from torch.testing import assert_close

from unmask import losses, seeds
from unmask.masking import Block, HalfOfViews
from unmask.methods.dinov2 import DINOv2
from unmask.optim.groups import parameter_groups
from unmask.self_distillation import Centre
from unmask.settings import Train
from unmask.targets.teacher import Rounding
from unmask.testing import SMALL, check_masking

OFFICIAL = "facebookresearch/dinov2@"
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
FILES = names("dinov2", "output.student_patch_logits", OFFICIAL)


def learner_of(tensors, config):
    sizes = {"prototypes": config["dino_k"], "patch_prototypes": config["ibot_k"], "bottleneck": config["dino_bn"], "patch_bottleneck": config["ibot_bn"]}
    weights = {"views_weight": config["dino_w"], "patches_weight": config["ibot_w"], "koleo": config["koleo_w"]}
    centring = "sinkhorn" if "sinkhorn" in config["centering"] else "mean"
    moves = {"momentum": config["ema"], "momentum_end": config["ema"], "drop_path": 0, "layer_decay": 0.9}
    method = DINOv2(**sizes, **weights, **moves, hidden=config["hidden"], shared_head=not config["separate"], registers=config["registers"], centring=centring)
    learner = filled(method.build(trunk_of(config)), tensors)
    for name in ("temperature", "patch_temperature"):
        learner.get_buffer(name).copy_(tensors["input.teacher_temp"])
    if centring == "mean":
        learner.centre.mean.copy_(tensors["input.center_cls"].flatten())
        learner.patch_centre.mean.copy_(tensors["input.center_patch"].flatten())
    return learner


def inputs(tensors, config):
    side = config["img_size"] // config["patch"]
    return {"global": tensors["input.global_crops"], "local": tensors["input.local_crops"]}, mean_a_view(tensors["input.masks"].unflatten(1, (side, side)))


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_losses_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    x, mask = inputs(tensors, config)
    learner = learner_of(tensors, config)
    features = learner.encoder(x["global"], mask)
    assert_close(features.prefix[:, 0], tensors["output.student_backbone_cls"], **CLOSE)
    assert_close(features.patches[:1], tensors["output.student_backbone_patch0"], **CLOSE)
    if config["registers"]:
        assert_close(features.prefix[:, 1:], tensors["output.student_backbone_reg"], **CLOSE)
    assert_close(learner.head(features.prefix[:, 0]), tensors["output.student_global_logits"], **CLOSE)
    assert_close(learner.head(learner.encoder(x["local"]).prefix[:, 0]), tensors["output.student_local_logits"], **CLOSE)
    with torch.no_grad():
        truth = learner.eval().truth(learner.teacher["encoder"](x["global"]).prefix[:, 0])
    assert_close(truth.flip(0), tensors["output.teacher_cls_target"], **CLOSE)
    found = learner.train()(x, mask=mask)
    said = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.startswith("output.reported.")}
    assert_close(found["views"], config["dino_w"] * (said["dino_local_crops_loss"] + said["dino_global_crops_loss"]), rtol=1e-6, atol=1e-6)
    assert_close(found["koleo"], 2 * said["koleo_loss"], rtol=1e-5, atol=1e-6)
    assert_close(found["patches"], 2 * config["ibot_w"] * said["ibot_loss"], rtol=1e-6, atol=1e-6)
    assert_close(found["loss"], tensors["output.loss_total"], rtol=1e-6, atol=1e-6)
    found["loss"].backward()
    gradients = ours({key: value for key, value in part(tensors, "grad.").items() if not (config["registers"] and key.endswith("pos_embed"))})
    check_gradients(learner, gradients, 2e-5)
    if not config["registers"]:  # there the class token and its place are one parameter for timm, with a gradient of its own
        norms = [torch.nn.utils.clip_grad_norm_(module.parameters(), config["clip"]) for module in learner.children() if list(module.parameters())]
        assert_close(torch.stack([norm for norm in norms if norm > 0]), tensors["output.clip.total_norm_per_module"], **CLOSE)
        check_gradients(learner, ours(part(tensors, "output.clip.grad.")), 2e-5)


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_centres_and_teacher_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    x, mask = inputs(tensors, config)
    learner = learner_of(tensors, config)
    learner(x, mask=mask)
    learner.after_step(0.5)
    if config["centering"] == "centering":
        assert_close(learner.centre.mean, tensors["output.center_cls_new"].flatten(), **CLOSE)
        assert_close(learner.patch_centre.mean, tensors["output.center_patch_new"].flatten(), **CLOSE)
    after, expected = learner.state_dict(), ours(part(tensors, "output.ema."), teacher=True)
    assert expected
    for key, value in expected.items():
        if not (config["registers"] and key.endswith("cls_token")):  # its place is part of it
            assert_close(after[key], value, msg=lambda said, key=key: f"{key}: {said}", **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_rates_and_decay_of_each_parameter_are_the_official_ones(golden, name):
    tensors, metadata = golden(name)
    learner = learner_of(tensors, metadata["config"])
    groups, factors = parameter_groups(learner, Train(weight_decay=1.0))
    names = {id(value): name for name, value in learner.named_parameters()}
    found = {names[id(value)]: (factor(1.0), group["weight_decay"], factor(0.0) == 0) for group, factor in zip(groups, factors) for value in group["params"]}
    official = metadata["config"]["param_groups_decay_p9_patch_mult_p2"]
    truth = {next(iter(ours({name: torch.zeros(1)}))): numbers for name, numbers in official.items()}
    assert found.keys() == truth.keys()
    for name, (rate, decay, last) in truth.items():
        assert found[name] == (pytest.approx(rate), decay, bool(last)), name


@pytest.mark.golden
@pytest.mark.parametrize("name", names("dinov2_losses", "output.koleo", OFFICIAL))
def test_losses_alone_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config, temperatures = metadata["config"], tensors["input.teacher_temp"]
    first, second = tensors["input.teacher_step1"], tensors["input.teacher_step2"]
    centre = Centre(config["K"])
    centre.mean.copy_(tensors["input.center"].flatten())
    assert_close(((first - centre.mean) / temperatures[0]).softmax(-1), tensors["output.softmax_step1"], **CLOSE)
    centre.collect(first)
    centre.follow(config["center_momentum"])
    assert_close(centre.mean, tensors["output.center_after_apply"].flatten(), **CLOSE)
    assert_close(((second - centre.mean) / temperatures[1]).softmax(-1), tensors["output.softmax_step2"], **CLOSE)
    scale = tensors["input.sinkhorn_scale"]
    temperature, kept = temperatures[1], tensors["input.mask"].bool()
    for kind, iterations in (("cls", config["sinkhorn_iterations"]), ("cls_1iter", 1)):
        assert_close(losses.sinkhorn(first * scale, temperature, iterations=iterations), tensors[f"output.sinkhorn_{kind}"], **CLOSE)
    rows = tensors["input.teacher_patch"].flatten(0, 1) * scale
    shares = losses.sinkhorn(rows, temperature, kept.flatten(), iterations=config["sinkhorn_iterations"])
    assert_close(shares[kept.flatten()], tensors["output.sinkhorn_patch"], **CLOSE)
    x = tensors["input.koleo_features"].clone().requires_grad_()
    assert_close(losses.koleo(x), tensors["output.koleo"], **CLOSE)


def test_sinkhorn_uses_every_prototype_alike_and_leaves_padding_out():
    logits = seeds.uniform((24, 6), 0, "logits")
    counted = (torch.arange(24) < 18).float()
    shares = losses.sinkhorn(logits, 0.1, counted, iterations=50)
    assert_close(shares[:18].sum(1), torch.ones(18))
    assert_close(shares.sum(0), torch.full((6,), 3.0), rtol=1e-3, atol=1e-3)
    assert_close(shares[:18], losses.sinkhorn(logits[:18], 0.1, iterations=50))
    assert not shares[18:].any()


@pytest.mark.golden
@pytest.mark.parametrize("name", names("dinov2_schedules", "output.momentum", OFFICIAL))
def test_the_momentum_equals_the_official_code(golden, name):
    tensors, metadata = golden(name)
    steps, teacher = len(tensors["output.momentum"]), metadata["config"]["teacher"]
    momentum = Rounding(teacher["momentum_teacher"], teacher["final_momentum_teacher"])
    assert_close(torch.tensor([momentum.at(step / steps, torch.zeros(())) for step in range(steps)]), tensors["output.momentum"], rtol=0, atol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("dinov2_mask_law", "law.", OFFICIAL))
def test_masks_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    config, draws = metadata["config"], 8_000
    side = config["image"] // config["patch"]
    for count in (int(key.rpartition(".n")[2]) for key in tensors if key.startswith("law.marginal.")):
        block = Block(count=count, smallest=config["min_num_patches"], largest=int(config["max_num_patches"]))
        maps = block((side, side), seeds.uniform((draws, block.draws((side, side))), 0, "law")).map
        histogram = torch.bincount(maps.sum(1), minlength=count + 1) / draws
        assert (histogram.cumsum(0) - tensors[f"law.count_hist.n{count}"].cumsum(0)).abs().max() < 0.02
        assert (maps.float().mean(0).unflatten(0, (side, side)) - tensors[f"law.marginal.n{count}"]).abs().max() < 0.02
    rows, many = 2 * config["images_per_batch"], 500
    masking = HalfOfViews(*[None], *config["mask_ratio"], config["mask_probability"])
    drawn = [masking((side, side), seeds.uniform((rows, masking.draws((side, side))), step, "law")).map.sum(1).sort().values for step in range(many)]
    counts = torch.stack(drawn).float()  # (steps, rows)
    mean, std = (tensors[f"law.collate.sorted_count_{what}"] for what in ("mean", "std"))
    assert ((counts.mean(0) - mean).abs() <= 5 * std * (2 / many) ** 0.5 + 0.1).all()
    total, spread = tensors["law.collate.total_masked_mean_std"]
    assert abs(counts.sum(1).mean() - total) < 5 * spread * (1 / many) ** 0.5
    assert (counts > 0).float().mean() == tensors["law.collate.fraction_masked_crops"]


def test_masks_keep_the_contract():
    check_masking(HalfOfViews(), alone=False)


def test_the_papers_numbers():
    with torch.device("meta"):
        learner = DINOv2().build(model="vit_small_patch14_reg4_dinov2")
    assert learner.head.last_layer.weight_v.shape == (65536, 256) and learner.head.last_layer.weight_g.requires_grad and learner.patch_head is None
    small = DINOv2(registers=4, prototypes=16, hidden=16).build(**SMALL, img_size=(32, 32))
    assert small.encoder.trunk.num_prefix_tokens == 5 and [block.drop_path1.drop_prob for block in small.encoder.trunk.blocks] == [0.3, 0.3]
