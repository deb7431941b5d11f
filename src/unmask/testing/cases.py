"""What the laws look at: a method at a small size, pictures, and a few steps of its training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unmask import seeds
from unmask.model import Learner, Signal, first

SMALL = {"model": "vit_tiny_patch16_224", "patch_size": 8, "width": 48, "depth": 2, "heads": 3}  # what laws build


class Case(NamedTuple):
    """A method at a small size: what builds its learner, a batch, and how many samples the batch holds."""

    build: Callable[[], Learner]
    x: Signal
    samples: int

    def learner(self, seed: int = 0) -> Learner:
        """A fresh learner with initial values of this seed; the generators of the caller stay where they are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def noise(self, learner: Learner, place: int = 0) -> Tensor | None:
        """The uniform numbers of one step, as the training loop draws them."""
        draws = learner.draws(self.x)
        return seeds.uniform((self.samples, draws), 0, "testing", place) if draws else None


def pictures(count: int = 4, in_chans: int = 3, img_size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    """Smooth random pictures (B, C, H, W), about normalised: something can be learned about their hidden parts."""
    coarse = seeds.uniform((count, in_chans, 4, 4), seed, "pictures") * 4 - 2
    return nn.functional.interpolate(coarse, size=img_size, mode="bicubic", align_corners=False)


def case_of(method: Any, x: Signal | None = None, samples: int | None = None, **build: Any) -> Case:
    """The case of a method, an object with `build(model=, img_size=, in_chans=, …)`; `build`: what differs from `SMALL`.

    Without `x` it looks at four pictures. Where `x` holds several views of a sample, `samples` says how many samples.
    """
    build = {**SMALL, "img_size": (32, 32), "in_chans": 3, **build}
    x = pictures(4, build["in_chans"], build["img_size"]) if x is None else x
    return Case(functools.partial(method.build, **build), x, samples or len(first(x)))


def steps_of(
    learner: nn.Module, case: Case, steps: range, optimizer: type = torch.optim.AdamW, x: Signal | None = None, rows: Tensor | None = None
) -> Tensor:
    """The losses (steps,) of a few steps of training; `learner` may be wrapped for processes, and `x` the part of this one."""
    inner, losses = learner.module if isinstance(learner, DistributedDataParallel) else learner, []
    rate = 1e-3 if optimizer is torch.optim.AdamW else 0.05  # no decay: weights that get no gradient stay
    descent = optimizer([value for value in learner.train().parameters() if value.requires_grad], lr=rate, weight_decay=0)
    with torch.random.fork_rng(devices=[]):
        for step in steps:
            seeds.reseed(0, "testing dropout", step)
            inner.before_step(step / 100, seeds.dice(0, "testing step", step).random())
            loss = learner(case.x if x is None else x, noise=case.noise(inner, step), rows=rows)["loss"]
            descent.zero_grad()
            loss.backward()
            descent.step()
            inner.after_step((step + 1) / 100)
            losses.append(loss.detach())
    return torch.stack(losses)


def write(learner: nn.Module, file: Path, **more: Tensor) -> None:
    save_file({name: value.contiguous().clone() for name, value in learner.state_dict().items()} | more, file)
