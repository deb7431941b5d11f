"""DINO against the official code's numbers: views, logits, loss, gradients, clipping, a step of student, teacher and centre, schedules; and the collapse alarm."""

import math

import pytest
import torch
from distilled import filled, ours, part, trunk_of
from golden_files import check_gradients, names
from torch.testing import assert_close

from unmask import losses
from unmask.methods.dino import DINO
from unmask.optim.groups import parameter_groups
from unmask.optim.schedule import cosine
from unmask.self_distillation import Warm
from unmask.targets.teacher import Rounding
from unmask.testing import SMALL

OFFICIAL = "facebookresearch/dino@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def learner_of(tensors, config, **more):
    sizes = {"prototypes": config["out_dim"], "hidden": config["hidden"], "bottleneck": config["bottleneck"]}
    method = DINO(**sizes, norm_last_layer=config["norm_last_layer"], momentum=float(tensors["output.step.momentum"]), momentum_end=1.0, drop_path=0, **more)
    learner = filled(method.build(trunk_of(config)), tensors)
    learner.temperature.copy_(tensors["input.teacher_temp"])
    learner.centre.mean.copy_(tensors["input.center"][0])
    return learner


def views_of(tensors):
    views = [tensors[key] for key in sorted(key for key in tensors if key.startswith("input.view."))]
    return {"global": torch.cat(views[:2]), "local": torch.cat(views[2:])}


@pytest.mark.golden
@pytest.mark.parametrize("name", names("dino", "output.student_logits", OFFICIAL))
def test_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config, x = metadata["config"], views_of(tensors)
    learner = learner_of(tensors, config)
    cls = [learner.encoder(x[name]).prefix[:, 0] for name in x]
    b = config["batch"]
    assert_close(cls[0][:b], tensors["output.backbone.student_cls_global0"], **CLOSE)
    assert_close(cls[1][:b], tensors["output.backbone.student_cls_local0"], **CLOSE)  # places of a smaller grid
    assert_close(torch.cat(cls), tensors["output.head_in"], **CLOSE)
    odd = tensors["input.odd_picture"]
    assert_close(learner.encoder.placed(learner.encoder.trunk.patch_embed(odd)), tensors["output.backbone.odd_tokens"], **CLOSE)
    assert_close(learner.encoder(odd).prefix[:, 0], tensors["output.backbone.odd_cls"], **CLOSE)
    assert_close(learner.head(torch.cat(cls)), tensors["output.student_logits"], **CLOSE)
    assert_close(learner.teacher["head"](learner.teacher["encoder"](x["global"]).prefix[:, 0]), tensors["output.teacher_logits"], **CLOSE)
    loss = learner(x)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    check_gradients(learner, ours(part(tensors, "grad.")))
    learner.after_step(0.5)
    assert_close(learner.centre.mean, tensors["output.center_new"][0], **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("dino", "output.student_logits", OFFICIAL))
@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_of_student_and_teacher_equals_the_official_code(golden, name, frozen):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner = learner_of(tensors, config, freeze_last_layer=0.5 if frozen else 0.0)
    rate, decay = (float(tensors[f"output.step.{what}"]) for what in ("lr", "wd"))
    groups, factors = parameter_groups(learner, DINO.paper)
    for group, factor in zip(groups, factors):
        group |= {"lr": rate * factor(0.25), "weight_decay": decay if group["weight_decay"] else 0.0}
    optimizer = torch.optim.AdamW(groups, betas=DINO.paper.betas, eps=DINO.paper.eps)
    learner(views_of(tensors))["loss"].backward()
    norms = {name: torch.nn.utils.clip_grad_norm_(value, config["clip"]) for name, value in learner.named_parameters() if value.requires_grad}
    order = [next(iter(ours({key: torch.zeros(1)}))) for key in config["grad_norm_names"]]
    assert_close(torch.stack([norms[key] for key in order]), tensors["output.clip.norms"], rtol=1e-5, atol=1e-6)
    check_gradients(learner, ours(part(tensors, "output.clip.grad.")))
    optimizer.step()
    learner.after_step(0.25)
    kind = "step_frozen" if frozen else "step"
    after = learner.state_dict()
    expected = ours(part(tensors, f"output.{kind}.student.")) | ours(part(tensors, f"output.{kind}.teacher."), teacher=True)
    assert expected
    for key, value in expected.items():
        assert_close(after[key], value, rtol=1e-5, atol=3e-6, msg=lambda said, key=key: f"{key}: {said}")


@pytest.mark.golden
@pytest.mark.parametrize("name", names("dino_schedules", "output.lr", OFFICIAL))
def test_schedules_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    steps = config["epochs"] * config["iters_per_epoch"]
    momentum = Rounding(*config["momentum"])
    ours = torch.tensor([momentum.at(step / steps, torch.tensor(float(steps))) for step in range(steps)])
    assert_close(ours, tensors["output.momentum"], rtol=0, atol=1e-6)
    assert_close(torch.tensor([cosine(step, steps, *config["wd"]) for step in range(steps)]), tensors["output.wd"], rtol=1e-5, atol=1e-6)
    # theirs moves once an epoch and reaches its end with the last epoch of the warm-up: a step a step for us
    last = config["warmup_teacher_temp_epochs"] - 1
    warm = Warm(config["warmup_teacher_temp"], config["teacher_temp"], last / config["epochs"])
    ours = torch.tensor([warm.at(epoch / config["epochs"]) for epoch in range(config["epochs"])])
    assert_close(ours, tensors["output.teacher_temp_per_epoch"], rtol=1e-5, atol=1e-7)


def test_the_papers_numbers():
    with torch.device("meta"):
        learner = DINO().build()
    assert learner.head.last_layer.weight_v.shape == (65536, 256) and not learner.head.last_layer.weight_g.requires_grad
    small = DINO().build(**SMALL, img_size=(32, 32))
    assert len(small.centre.mean) == 4096 and small.encoder.trunk.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert not small.train().teacher.training and all(not value.requires_grad for value in small.teacher.parameters())


def test_a_teacher_that_says_one_thing_or_nothing_is_named():
    learner = DINO(prototypes=32, hidden=16, bottleneck=8).build(**SMALL, img_size=(32, 32)).train()
    apart, alike = torch.randn(16, learner.encoder.width), torch.randn(1, learner.encoder.width).expand(16, -1)
    with torch.no_grad():
        for layer in learner.teacher["head"].mlp[::2]:
            layer.weight.normal_()
        learner.temperature.fill_(0.02)
        learner.truth(alike)
        assert "one thing" in learner.collapsed()[0] and "--method.centring" in learner.collapsed()[1]
        learner.temperature.fill_(1e4)  # it tells nothing
        learner.truth(apart)
        assert "tell nothing" in learner.collapsed()[0] and "--method.teacher_temp" in learner.collapsed()[1]
        learner.temperature.fill_(0.02)
        learner.truth(apart)
    assert learner.collapsed() is None and learner.signs()["teacher_information"] > 0.5 and 0 < learner.signs()["teacher_entropy"] < 0.999


def test_pairs_of_views_leave_out_their_own():
    said, truth = torch.randn(5, 3, 7), torch.randn(2, 3, 7).softmax(-1)
    each = [losses.self_distillation(said[v], truth[a]).mean() for a in range(2) for v in range(5) if a != v]
    assert_close(losses.between_views(said, truth), torch.stack(each).mean())
    assert math.isclose(len(each), 8)
