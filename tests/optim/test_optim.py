"""Schedule, groups and LARS against the official code's numbers, and their edges."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from unmask.methods.dinov2 import DINOv2
from unmask.methods.mae import MAE
from unmask.model import Learner
from unmask.optim import groups, schedule
from unmask.optim.lars import Lars
from unmask.settings import Train


class Tiny(Learner):
    """One matrix, one bias, one frozen table."""

    def __init__(self, own=None):
        super().__init__()
        self.map = nn.Linear(4, 3)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.table = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.own = own

    def forward(self, x, noise=None, mask=None, rows=None):
        return {"loss": self.map(x).mean()}

    def parameter_groups(self, train):
        return self.own(self) if self.own else None


@pytest.mark.golden
def test_the_schedule_is_the_official_one(golden):
    tensors, metadata = golden("mae_optim")
    said = metadata["config"]["schedule"]
    each = said["iters_per_epoch"]
    steps, warmup = said["epochs"] * each, said["warmup_epochs"] * each
    ours = torch.tensor([schedule.warmup_cosine(step, steps, warmup, said["lr"], said["min_lr"]) for step in range(steps)])
    assert ours[0] == 0
    torch.testing.assert_close(ours, tensors["output.lr_per_iteration"].float(), rtol=1e-6, atol=1e-12)


def test_a_short_run_warms_up_for_a_tenth_at_most():
    assert schedule.warmup_steps(40, 100, 1_000_000) == 4000
    assert schedule.warmup_steps(40, 100, 1000) == 100
    assert schedule.warmup_steps(40, 2.5, 30) == 3.0
    assert schedule.warmup_cosine(0, 1, 0.1, 1.0) == 0 and schedule.warmup_cosine(5, 10, 0, 1.0) == pytest.approx(0.5)


def test_the_weight_decay_moves_as_a_cosine():
    assert schedule.cosine(0, 10, 0.04, 0.4) == pytest.approx(0.04)
    assert schedule.cosine(5, 10, 0.04, 0.4) == pytest.approx(0.22)
    assert schedule.cosine(10, 10, 0.04, 0.4) == pytest.approx(0.4)


def test_the_rate_is_linear_in_the_batch():
    assert schedule.scaled_rate(None, 1.5e-4, 4096) == pytest.approx(2.4e-3)
    assert schedule.scaled_rate(1e-3, 1.5e-4, 4096) == 1e-3


def test_the_rate_by_the_root_of_the_batch_is_dinov2s():
    paper = DINOv2.paper
    rates = {batch: schedule.scaled_rate(None, paper.base_lr, batch, paper.lr_by) for batch in (256, 1024, 2048)}
    assert rates == pytest.approx({256: 2e-3, 1024: 4e-3, 2048: 5.66e-3}, rel=1e-3)
    assert schedule.scaled_rate(1e-3, paper.base_lr, 64, "root") == 1e-3 and Train().lr_by == "linear"


def test_a_run_may_have_two_stages():
    assert schedule.stage(7, 10, 0.0) == (7, 10) == schedule.stage(7, 10, 1.0)
    assert [schedule.stage(step, 10, 0.4) for step in (0, 3, 4, 9)] == [(0, 4), (3, 4), (0, 6), (5, 6)]


def named(names: list[str]) -> list[tuple[str, nn.Parameter]]:
    """Parameters with these names, and the number of dimensions that a ViT gives them."""
    plain = [name for name in names if name.endswith(".bias") or ("norm" in name and name.endswith(".weight"))]
    return [(name, nn.Parameter(torch.zeros(2) if name in plain else torch.zeros(1, 1, 2))) for name in names]


@pytest.mark.golden
def test_the_groups_of_pretraining_are_the_official_ones(golden):
    tensors, metadata = golden("mae_optim")
    parameters = named(json.loads(metadata["pretrain_names"]))
    made = groups.by_decay(parameters, metadata["config"]["weight_decay"])
    found = {id(p): group["weight_decay"] for group in made for p in group["params"]}
    assert [found[id(p)] for _, p in parameters] == pytest.approx(tensors["output.pretrain_weight_decay"].tolist())


@pytest.mark.golden
def test_the_layers_of_finetuning_are_the_official_ones(golden):
    tensors, metadata = golden("mae_optim")
    said, parameters = metadata["config"], named(json.loads(metadata["finetune_names"]))
    made = groups.by_layer(parameters, said["depth"], said["layer_decay"], said["weight_decay"])
    place = {id(p): i for i, group in enumerate(made) for p in group["params"]}
    assert [place[id(p)] for _, p in parameters] == tensors["output.finetune_group"].tolist()
    scales = torch.tensor([made[place[id(p)]]["lr"] for _, p in parameters])
    torch.testing.assert_close(scales, tensors["output.finetune_lr_scale"], rtol=1e-6, atol=0)
    decay = [made[place[id(p)]]["weight_decay"] for _, p in parameters]
    assert decay == pytest.approx(tensors["output.finetune_weight_decay"].tolist())


@pytest.mark.golden
def test_lars_is_the_official_one(golden):
    tensors, metadata = golden("mae_optim")
    said = metadata["config"]["lars"]
    names = [key.removeprefix("input.lars_param.") for key in tensors if key.startswith("input.lars_param.")]
    parameters = {name: nn.Parameter(tensors[f"input.lars_param.{name}"].clone()) for name in names}
    optimizer = Lars(parameters.values(), weight_decay=said["weight_decay"], momentum=said["momentum"], trust=said["trust_coefficient"])
    for step, lr in enumerate(tensors["input.lars_lr"].tolist()):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, p in parameters.items():
            p.grad = tensors[f"input.lars_grad{step}.{name}"].clone()
        optimizer.step()
        for name, p in parameters.items():
            torch.testing.assert_close(p.detach(), tensors[f"output.lars_param{step}.{name}"], rtol=0, atol=0)


def test_frozen_tensors_are_in_no_group_and_tokens_decay():
    learner = Tiny()
    made, factors = groups.parameter_groups(learner, Train(weight_decay=0.3))
    assert factors == [None, None]
    assert [group["weight_decay"] for group in made] == [0.3, 0.0]
    assert {id(p) for p in made[0]["params"]} == {id(learner.map.weight), id(learner.cls_token)}
    assert {id(p) for p in made[1]["params"]} == {id(learner.map.bias)}


def test_a_group_carries_its_own_factor():
    learner = Tiny(lambda it: [{"params": [it.map.weight, it.map.bias], "lr": lambda progress: progress}, {"params": [it.cls_token], "lr": 0.5}])
    made, factors = groups.parameter_groups(learner, Train())
    assert factors[0](0.25) == 0.25 and factors[1](0.9) == 0.5
    assert all("lr" not in group for group in made)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (lambda it: [{"params": [it.map.weight]}], "in no group: cls_token, map.bias"),
        (lambda it: [{"params": [*it.map.parameters(), it.cls_token]}, {"params": [it.map.bias]}], "in two groups: map.bias"),
        (lambda it: [{"params": [*it.map.parameters(), it.cls_token, it.table]}], "1 tensors in the groups are frozen"),
    ],
)
def test_a_parameter_in_no_group_or_in_two_is_named(own, said):
    with pytest.raises(ValueError, match=said):
        groups.parameter_groups(Tiny(own), Train())


def test_the_encoder_learns_at_a_rate_of_its_own():
    """Every group is divided into the encoder's and the rest; a factor that was there is kept."""
    learner = MAE(decoder_width=16, decoder_depth=1).build("vit_tiny_patch16_224", (32, 32), patch_size=16, width=24, depth=1, heads=2)
    made, factors = groups.parameter_groups(learner, Train(encoder_rate=0.1))
    inside = {id(parameter) for parameter in learner.encoder.parameters()}
    assert len(made) == 4
    for group, factor in zip(made, factors):
        sides = {id(parameter) in inside for parameter in group["params"]}
        assert len(sides) == 1 and (factor is None) != sides.pop() and (factor is None or factor(0.3) == 0.1)
    plain, _ = groups.parameter_groups(learner, Train())
    assert {id(p): group["weight_decay"] for group in plain for p in group["params"]} == {id(p): group["weight_decay"] for group in made for p in group["params"]}
    _, scaled = groups.apart(plain[:1], [lambda progress: progress], learner, 0.1)
    assert scaled[0](0.5) == pytest.approx(0.05) and scaled[1](0.5) == 0.5


def test_a_peak_below_the_smallest_rate_is_kept():
    """BootMAE's least rate, 1e-4, is above the peak of a batch of 64: the rate must not rise after the warm-up."""
    rates = [schedule.warmup_cosine(step, 100, 10, lr=4e-5, min_lr=1e-4) for step in range(100)]
    assert max(rates) == rates[10] == rates[-1] == 4e-5 and rates[5] == pytest.approx(2e-5)
