"""A teacher that moves: a running average of the encoder, which sees the whole picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.encoders.adapter import Adapter
from unmask.encoders.features import Features
from unmask.targets.target import Target, best_constant


@dataclass(frozen=True)
class Momentum:
    """How much of itself a teacher keeps in a step: `first` at the start of the run, moving evenly to `last` at the share `until` of it.

    Where one is None the teacher averages over a share of the run, whatever its length: over this share of all steps (of `windows` the first
    at the start, the last at the end), but no fewer than `LEAST`.
    """

    first: float | None
    last: float | None = None
    until: float = 1.0
    windows: tuple[float, float] = (0.01, 0.01)

    LEAST = 100

    def __post_init__(self):
        for value in (self.first, self.last):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"momentum must lie between 0 and 1, got {value:g}")

    def at(self, progress: float, steps: Tensor) -> float | Tensor:
        """The value after a step: at `progress` in (0, 1] of a run of `steps`."""
        ends = [1 - 1 / (share * steps).clamp(min=self.LEAST) if end is None else end for end, share in zip((self.first, self.last), self.windows)]
        return ends[0] + (ends[1] - ends[0]) * min(progress / self.until, 1)


@dataclass(frozen=True)
class Rising:
    """How much of itself a teacher keeps in a step: rising evenly to .9999 over an eighth of the run and to .99999 over the next three (BootMAE).

    `first`: at the start. Where it is None the teacher averages over shares of the run, those that the paper's three numbers are of its 500,625
    steps, but over no fewer than `Momentum.LEAST` steps. The official code steps once an epoch.
    """

    first: float | None = None

    SHARES = (0.002, 0.02, 0.2)
    KNEES = (100 / 800, 400 / 800)

    def at(self, progress: float, steps: Tensor) -> float | Tensor:
        """The value after a step: at `progress` in (0, 1] of a run of `steps`."""
        ends: list[Any] = [1 - 1 / (share * steps).clamp(min=Momentum.LEAST) for share in self.SHARES]
        ends = ends if self.first is None else [self.first, 0.9999, 0.99999]
        early, late = min(progress / self.KNEES[0], 1), min(max((progress - self.KNEES[0]) / (self.KNEES[1] - self.KNEES[0]), 0), 1)
        return ends[0] + (ends[1] - ends[0]) * early + (ends[2] - ends[1]) * late


@dataclass(frozen=True)
class Rounding:
    """How much of itself a teacher keeps in a step: `first` at the start of the run, rising by half a cosine to `last` (DINO, iBOT, DINOv2, MoCo v3).

    Where `first` is None it is what averages over `window` of all steps, but over no fewer than `Momentum.LEAST`. `progress` is that of the run *before* the step.
    """

    first: float | None
    last: float = 1.0
    window: float = 0.002

    def at(self, progress: float, steps: Tensor) -> float | Tensor:
        first = 1 - 1 / (self.window * steps).clamp(min=Momentum.LEAST) if self.first is None else self.first
        return self.last + (first - self.last) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def average(mine: Iterable[Tensor], theirs: Iterable[Tensor], keep: float | Tensor) -> None:
    """Move `mine` towards `theirs`: `keep` of the old and the rest of the new, all tensors at once."""
    mine, theirs = list(mine), list(theirs)
    if len(mine) != len(theirs):
        raise ValueError(f"{len(mine)} tensors cannot follow {len(theirs)}")
    if isinstance(keep, Tensor):
        torch._foreach_mul_(mine, keep)
        torch._foreach_add_(mine, torch._foreach_mul(theirs, 1 - keep))
    else:
        torch._foreach_lerp_(mine, theirs, 1 - keep)


class Teacher(Target):
    """What an average of the encoder over the last steps makes of each patch, having seen all of them.

    `copy`: an encoder of its own, with the encoder's weights at the start; `say` turns its features into the truth (B, N, D). It is
    never trained and never in training mode (no dropout, no drop path). Integer tables do not move: averaging them, as some official
    code does, damages them.
    """

    note = (
        "the target is a teacher that follows the encoder: its loss may rise while the features get better, and a low one may mean that "
        "both say the same of every picture; kNN and the features' rank tell"
    )

    def __init__(self, copy: Adapter, say: Callable[[Features], Tensor], momentum: Momentum | Rising):
        super().__init__()
        self.copy, self.say, self.momentum = copy.requires_grad_(False).eval(), say, momentum
        self.register_buffer("steps", torch.zeros(()))  # of the run, known after the first

    def train(self, mode: bool = True) -> Teacher:
        """Training is for others: only the flag of the target itself changes."""
        super().train(mode)
        self.copy.eval()
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.say(self.copy(x)).float()  # (B, N, D)

    @torch.no_grad()
    def begin(self, encoder: nn.Module) -> None:
        for mine, theirs in zip(self.copy.trunk.parameters(), encoder.trunk.parameters(), strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def follow(self, encoder: nn.Module, progress: float) -> None:
        self.steps.copy_(torch.where(self.steps == 0, 1 / progress, self.steps))  # on the device: nothing waits
        keep = self.momentum.at(progress, self.steps)
        average(self.copy.trunk.parameters(), encoder.trunk.parameters(), keep)

    def baseline(self, truth, loss):
        """Searched for: the losses here have no formula for it."""
        return best_constant(truth, loss)


def mean_of_layers(features: Features) -> Tensor:
    """The mean of the kept layers, each normalised by token, and that normalised once more (data2vec, section 3.3 and its vision code)."""
    layers = [F.layer_norm(layer.float(), layer.shape[-1:]) for layer in features.layers]  # (B, N, D) each
    mean = torch.stack(layers).mean(0)
    return F.layer_norm(mean, mean.shape[-1:])


def mean_of_branches(features: Features) -> Tensor:
    """The mean of the kept layers, each normalised channel by channel over the picture's tokens, and that normalised by token (data2vec 2.0)."""
    layers = [F.instance_norm(layer.float().transpose(1, 2)).transpose(1, 2) for layer in features.layers]  # (B, N, D) each
    mean = torch.stack(layers).mean(0)
    return F.layer_norm(mean, mean.shape[-1:])


def last_layer(features: Features) -> Tensor:
    """The patches after the final norm, each normalised once more, without scale and shift (I-JEPA, train.py)."""
    return F.layer_norm(features.patches.float(), features.patches.shape[-1:])
