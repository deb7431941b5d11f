"""How long a run will take: a few steps are made here before it begins, and what is measured along the way is counted in."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from unmask import seeds
from unmask.evaluation.features import pool
from unmask.model import Learner, Signal, first
from unmask.optim.groups import parameter_groups
from unmask.training.task import Feed

TRIAL = 32  # pictures on which the pace is measured
STILLS = 1500  # pictures on which features are judged along the way, at most: two thirds answer in kNN, one third asks
FEWEST = 150  # and at least, where there are as many
SHARE = 0.02  # of the pictures that a run trains on: ten measurements then cost about a tenth of the run
DRAWING = 0.4  # seconds for the drawing of a measurement, on one CPU core


@dataclass(frozen=True)
class Pace:
    """What a run takes here, measured on `pictures`: seconds a step, bytes of GPU memory a picture (0 on a CPU), seconds to look at a picture."""

    step: float
    pictures: int
    memory: float = 0.0
    look: float = 0.0


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pace(learner: Learner, pictures: Feed, train: Any, workers: int) -> Pace:
    """How long an optimiser step will take: a few pictures are read, and a few steps made with them on a copy of the learner.

    Every part of a step that the loop makes is in it; moving the weights costs the same for any number of pictures, and is counted once.
    """
    parts, device = train.accumulate * train.devices * train.nodes, train.accelerator
    few = min(max(train.batch_size // parts, 1), TRIAL)
    reading = pictures.batches(few, 0, 2)
    next(reading)  # opens files and warms up: not counted
    begin = time.perf_counter()
    batch = next(reading)
    read = (time.perf_counter() - begin) / few
    trial = copy.deepcopy(learner).to(device).train()
    trial.before_step(0.0, 0.5)
    groups, _ = parameter_groups(trial, train)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=train.betas, eps=train.eps, fused=device in ("cpu", "cuda"))
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(train.precision)
    times, moves, memory = list[float](), list[float](), 0.0
    while len(times) < 2 or (len(times) < 4 and sum(times) < 10):  # the first, which is not counted, warms up
        begin = time.perf_counter()
        x = pictures.finish(batch, device)
        noise = seeds.uniform((few, trial.draws(x)), train.seed, "pace").to(device)
        mask = trial.draw_mask(x, noise)
        with torch.autocast(device, half, enabled=half is not None):
            loss = trial(x, noise, **({} if mask is None else {"mask": mask}))["loss"]
        loss.backward()
        loss.item()
        times.append(time.perf_counter() - begin)
        memory = memory or (torch.cuda.max_memory_allocated() / few if device == "cuda" else 0.0)  # before the optimiser has its state
        begin = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(trial.parameters(), math.inf).item()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        moves.append(time.perf_counter() - begin)
    compute = middle(times[1:]) / few
    if device == "cpu":  # workers take from the cores that compute
        each = compute + read / (cores() if workers else 1)
    else:
        each = max(compute, read / workers) if workers else compute + read
    return Pace(each * train.batch_size / (train.devices * train.nodes) + middle(moves[1:]), few, memory, looking(trial, x))


@torch.no_grad()
def looking(learner: Learner, x: Signal) -> float:
    """Seconds in which the encoder looks at one whole picture, as it does when it is measured along the way; 0 where there is none."""
    encoder = dict(learner.named_children()).get("encoder")
    if encoder is None:
        return 0.0
    learner.eval()
    for _ in range(2):  # the first warms up
        begin = time.perf_counter()
        next(iter(pool(encoder.trunk, first(x)).values())).sum().item()
        spent = time.perf_counter() - begin
    return spent / len(first(x))


def middle(values: Sequence[float]) -> float:
    """The median, the upper one of two."""
    return sorted(values)[len(values) // 2]


def stills(train: Any) -> int:
    """On how many pictures a run is judged along the way."""
    return max(FEWEST, min(STILLS, int(SHARE * (train.steps or 1) * (train.batch_size or 1))))


def every(train: Any) -> int:
    """Steps from one measurement along the way to the next."""
    steps = train.steps or 1
    return train.monitor_every or max(1, steps // (10 if steps >= 100 else 2))


def whole(train: Any, pace: Pace) -> float:
    """Seconds that a run takes: its steps, and what is measured along the way, at step 0 as well."""
    measures = 1 + train.steps // every(train) + bool(train.steps % every(train))
    return pace.step * train.steps + measures * (stills(train) * pace.look + DRAWING)


def fits(train: Any, pace: Pace, limit: float) -> Any:
    """The settings with as many steps as `limit` seconds allow."""
    low, high = 1, max(1, int(limit / pace.step))
    while low < high:
        half = (low + high + 1) // 2
        low, high = (half, high) if whole(replace(train, steps=half, epochs=None, time=None), pace) <= limit else (low, half - 1)
    return replace(train, steps=low, epochs=None, time=None)
