"""Which parameters decay, and how fast each learns: every trainable parameter in exactly one group, or it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from unmask.encoders.depth import layer_of
from unmask.model import Learner
from unmask.settings import Train

Group = dict[str, Any]
Factor = Callable[[float], float]  # progress of the run in [0, 1] -> what the learning rate is multiplied by


def decays(name: str, parameter: nn.Parameter, undecayed: Iterable[str] = ()) -> bool:
    """MAE's rule (timm 0.3.2, add_weight_decay): vectors and biases do not decay; class and mask tokens do, unless `undecayed` names them."""
    return parameter.dim() > 1 and not name.endswith(".bias") and name.rpartition(".")[2] not in undecayed


def parameter_groups(learner: Learner, train: Train) -> tuple[list[Group], list[Factor | None]]:
    """The groups for torch's optimiser, and beside each its factor of the learning rate (None: 1).

    The learner's own groups where it has some: torch groups, in which `lr` may be a number or a function of progress that
    multiplies the rate. Frozen parameters are in none. Raises ValueError, with names, where a trainable parameter is in no
    group or in two.
    """
    own = learner.parameter_groups(train)
    if own is None:
        own = by_decay(learner.named_parameters(), train.weight_decay, learner.undecayed)
    groups = [{"weight_decay": train.weight_decay} | group | {"params": list(group["params"])} for group in own]
    check_cover(learner, groups)
    factors = [_factor(group.pop("lr", None)) for group in groups]
    return (groups, factors) if train.encoder_rate is None else apart(groups, factors, learner, train.encoder_rate)


def apart(groups: list[Group], factors: list[Factor | None], learner: Learner, rate: float) -> tuple[list[Group], list[Factor | None]]:
    """The same groups with the encoder's parameters in groups of their own, whose learning rate is multiplied by `rate`."""
    encoder = {id(parameter) for name, parameter in learner.named_parameters() if name.startswith("encoder.")}
    parted: list[tuple[Group, Factor | None]] = []
    for group, factor in zip(groups, factors):
        for inside in (True, False):
            params = [parameter for parameter in group["params"] if (id(parameter) in encoder) is inside]
            if params:
                parted.append((group | {"params": params}, _times(factor, rate) if inside else factor))
    return [group for group, _ in parted], [factor for _, factor in parted]


def _times(factor: Factor | None, rate: float) -> Factor:
    return lambda progress: rate * (1.0 if factor is None else factor(progress))


def _factor(given: float | Factor | None) -> Factor | None:
    if given is None or callable(given):
        return given
    scale = float(given)
    return lambda progress: scale


def by_decay(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, undecayed: Iterable[str] = ()) -> list[Group]:
    """Two groups: what decays, and what does not; an empty one is left out."""
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        if parameter.requires_grad:
            parts[decays(name, parameter, undecayed)].append(parameter)
    return [{"params": parts[kind], "weight_decay": weight_decay if kind else 0.0} for kind in (True, False) if parts[kind]]


def check_cover(module: nn.Module, groups: Iterable[Mapping[str, Any]]) -> None:
    """Every trainable parameter is in exactly one group, and nothing else is."""
    names = {id(parameter): name for name, parameter in module.named_parameters() if parameter.requires_grad}
    seen: set[int] = set()
    twice, foreign = [], 0
    for parameter in (parameter for group in groups for parameter in group["params"]):
        if id(parameter) in seen:
            twice.append(names.get(id(parameter), "a tensor that is no parameter"))
        foreign += id(parameter) not in names
        seen.add(id(parameter))
    missing = [name for number, name in names.items() if number not in seen]
    wrong = [f"{said} {', '.join(list_[:5])}" for said, list_ in (("in no group:", missing), ("in two groups:", twice)) if list_]
    if foreign:
        wrong.append(f"{foreign} tensors in the groups are frozen or not the learner's")
    if wrong:
        raise ValueError(f"the optimiser's groups do not fit {type(module).__name__}: {'; '.join(wrong)}")


def by_layer(
    named: Iterable[tuple[str, nn.Parameter]],
    depth: int,
    layer_decay: float,
    weight_decay: float,
    undecayed: Iterable[str] = ("cls_token", "pos_embed"),
    layer: Callable[[str, int], int] = layer_of,
) -> list[Group]:
    """A group for each layer and kind of decay, in the order of first appearance; `lr` holds its scale (MAE, util/lr_decay.py).

    Vectors decay as little as the names in `undecayed`. Unlike pre-training, a bias of more than one dimension decays. `layer`: how a
    name is counted among `depth` blocks.
    """
    groups: dict[tuple[int, bool], Group] = {}
    spared = set(undecayed)
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        place = layer(name, depth), parameter.dim() > 1 and name not in spared
        fresh = {"params": [], "weight_decay": weight_decay if place[1] else 0.0, "lr": layer_decay ** (depth + 1 - place[0])}
        groups.setdefault(place, fresh)["params"].append(parameter)
    return list(groups.values())
