"""Learning rate and weight decay as pure functions of the step: nothing to save, and a resumed run cannot drift."""

from __future__ import annotations

import math

LARGEST_WARMUP = 0.1  # of the run: MAE's 40 of 800 epochs are 5 %, and a short run must not spend itself on warming up


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


def scaled_rate(lr: float | None, base_lr: float, batch_size: int) -> float:
    """The peak rate at the effective batch: `lr` where it is given, else linear in the batch, `base_lr` per 256 (Goyal et al. 2017)."""
    return lr if lr is not None else base_lr * batch_size / 256
