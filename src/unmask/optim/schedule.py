"""Learning rate and weight decay as pure functions of the step: nothing to save, and a resumed run cannot drift."""

from __future__ import annotations

import math

LARGEST_WARMUP = 0.1  # of the run: MAE's 40 of 800 epochs are 5 %, and a short run must not spend itself on warming up

LONGEST = 0.2  # of a stage, where a run has two: MAE-CT's 4 of 20 epochs, which are a tenth of its run


def warmup_cosine(step: float, steps: int, warmup: float, lr: float, min_lr: float = 0.0) -> float:
    """The rate of one step (counted from 0): linear from exactly 0 over `warmup` steps, then half a cosine down to `min_lr`.

    Source: MAE, util/lr_sched.py, where the same is written in fractional epochs. `min_lr` would be reached at step `steps`; where a small batch leaves
    `lr` below it, the rate stays at `lr`.
    """
    min_lr = min(min_lr, lr)
    if step < warmup:
        return lr * step / warmup
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1e-9)))


def warmup_steps(warmup_epochs: float, steps_per_epoch: float, steps: int) -> float:
    """The steps of the warm-up, never more than a tenth of the run; a fraction of a step is a fraction."""
    return min(warmup_epochs * steps_per_epoch, LARGEST_WARMUP * steps)


def cosine(step: float, steps: int, first: float, last: float) -> float:
    """Half a cosine from `first` to `last` over the run: the weight decay of DINO and its kin (utils.py, cosine_scheduler)."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))


def stage(step: int, steps: int, again: float) -> tuple[int, int]:
    """The step within its stage, and the steps of that: at the share `again` of the run a second stage begins (0: there is one)."""
    first = math.ceil(again * steps)
    if not 0 < first < steps:
        return step, steps
    return (step, first) if step < first else (step - first, steps - first)


def scaled_rate(lr: float | None, base_lr: float, batch_size: int, by: str = "linear") -> float:
    """The peak rate at the effective batch: `lr` where it is given, else `base_lr` at 256, linear in the batch (Goyal et al. 2017) or by its root (DINOv2)."""
    times = batch_size / 256
    return lr if lr is not None else base_lr * (math.sqrt(times) if by == "root" else times)
