"""What a person did not say is chosen here, for the data and the machine, each choice with its reason.

Precedence (design): dataclass < paper < these choices < config file < words. The chosen values are written to config.yaml,
so a run's file says everything and runs again as it is.
"""

from __future__ import annotations

import copy
import math
import os
import time
from dataclasses import fields, replace
from typing import Any

import torch

from unmask import seeds
from unmask.data.loader import Pictures
from unmask.data.statistics import Format
from unmask.decoders import default_size
from unmask.errors import Refused
from unmask.model import Learner
from unmask.recipe import Recipe
from unmask.settings import seconds
from unmask.training.progress import duration

CPU_SAMPLES = 200_000  # pictures seen in a run on a CPU: where kNN of a small MAE on CIFAR-10 is clearly above the random encoder's
GPU_SAMPLES = 4_000_000  # pictures seen in a run on a GPU: 400 epochs of ten thousand
SHORT = 20_000  # optimiser steps below which the paper's rate, made for hundreds of thousands, hardly moves the weights
SHORT_RATE = 2e-3  # learning rate per 256 pictures for such runs (benchmarks/quality.py)


def choose(recipe: Recipe, count: int, format: Format) -> tuple[Recipe, list[str]]:
    """The recipe with nothing left open but the decoder's size, and a line for each choice; `count`: pictures in DATA."""
    said: list[str] = []
    device, line = accelerator(recipe.train.accelerator)
    said.append(line)
    trunk, lines = network(recipe, format, device)
    said += lines
    train, lines = length(replace(recipe.train, accelerator=device), recipe, count, device)
    said += lines
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    reading = recipe.input
    if reading.workers is None:
        workers = min(8, max(1, cores // 2)) if device == "cpu" else min(16, cores)
        reading = replace(reading, workers=workers)
        said.append(f"workers {workers}: {cores} cores" + (", which compute as well" if device == "cpu" else ""))
    return replace(recipe, trunk=trunk, train=train, input=reading), said


def accelerator(asked: str) -> tuple[str, str]:
    """The device, and why."""
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if asked == "auto":
        name = torch.cuda.get_device_name() if found == "cuda" else {"mps": "Apple GPU", "cpu": "no GPU found"}[found]
        return found, f"accelerator {found}: {name}"
    if asked not in ("cpu", found):
        raise Refused(f"--accelerator {asked}: this machine has none (found: {found})")
    return asked, f"accelerator {asked}: as asked"


def precision(train: Any, device: str) -> tuple[str, str]:
    """The arithmetic, and why: bf16 only where the hardware is fast at it."""
    if train.precision != "auto":
        return train.precision, f"precision {train.precision}: as asked"
    if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed", "precision bf16-mixed: this GPU is fast at it"
    if device == "cpu" and torch.cpu._is_amx_tile_supported():
        return "bf16-mixed", "precision bf16-mixed: this CPU has AMX"
    return "32-true", f"precision 32-true: bf16 is slower on {'a CPU without AMX' if device == 'cpu' else 'this device'}"


def network(recipe: Recipe, format: Format, device: str) -> tuple[Any, list[str]]:
    """Model, patch and input size for what the pictures are."""
    trunk, said = recipe.trunk, []
    if trunk.in_chans is None:
        trunk = replace(trunk, in_chans=format.in_chans)
    short = min(format.size) if format.size else 224
    if trunk.img_size is None:
        most = 224 if device != "cpu" else 96
        patch = trunk.patch_size or (4 if short < 48 else 8 if device == "cpu" or short < 160 else 16)
        side = max(patch * 4, min(short, most) // patch * patch)
        trunk = replace(trunk, img_size=(side, side), patch_size=trunk.patch_size or patch)
        said.append(f"img_size {side}, patch_size {patch}: pictures of about {short} px" + (", small enough for a CPU" if side < short else ""))
    if trunk.model is None:
        model = "vit_tiny_patch16_224" if device == "cpu" else "vit_small_patch16_224" if short < 160 else "vit_base_patch16_224"
        trunk = replace(trunk, model=model)
        said.append(f"model {model}: {'the smallest usual one, for a CPU' if device == 'cpu' else 'the usual one for pictures of this size'}")
    return trunk, said


def length(train: Any, recipe: Recipe, count: int, device: str) -> tuple[Any, list[str]]:
    """Batch, number of steps, learning rate and arithmetic."""
    said = []
    if "batch_size" not in recipe.given:
        fits = 2 ** int(math.log2(max(8, count // 4)))
        batch = max(8, min(fits, 128 if device == "cpu" else 256))
        parts = train.accumulate * train.devices * train.nodes
        train = replace(train, batch_size=-(-batch // parts) * parts)
        said.append(f"batch_size {train.batch_size}: for {count:,} pictures on this device (the paper: {recipe.method.paper.batch_size})")
    if not recipe.given & {"epochs", "steps", "time"}:
        samples = CPU_SAMPLES if device == "cpu" else GPU_SAMPLES
        epochs = max(1, min(round(samples / count), 2000)) if device == "cpu" else max(100, min(round(samples / count), 800))
        train = replace(train, epochs=float(epochs))
        said.append(f"epochs {epochs}: {epochs * count:,} pictures seen, about the least that shows what a small network learns" if device == "cpu"
                    else f"epochs {epochs}: {epochs * count:,} pictures seen (the paper: {recipe.method.paper.epochs:g} epochs of ImageNet)")
    if "time" not in recipe.given:
        train = fixed(train, recipe, count)
        if not recipe.given & {"lr", "base_lr"} and train.steps < SHORT:
            train = replace(train, base_lr=SHORT_RATE)
            said.append(f"base_lr {SHORT_RATE:g}: {train.steps:,} steps are few for the paper's {recipe.method.paper.base_lr:g}")
    chosen, line = precision(train, device)
    said.append(line)
    return replace(train, precision=chosen), said


def fixed(train: Any, recipe: Recipe, count: int) -> Any:
    """The length as steps, whichever way it was said."""
    if "steps" in recipe.given and train.steps is not None:
        return replace(train, epochs=None, time=None)
    return replace(train, steps=max(1, round((train.epochs or 1) * count / train.batch_size)), epochs=None, time=None)


def sized(recipe: Recipe, learner: Learner) -> tuple[Recipe, list[str]]:
    """The decoder's size, where the method has one and nobody gave it, as it was built."""
    names = ("decoder_width", "decoder_depth", "decoder_heads")
    if not set(names) <= {field.name for field in fields(recipe.method)}:
        return recipe, []
    own = dict(zip(names, default_size(learner.encoder.width)))
    width = recipe.method.decoder_width or own["decoder_width"]
    heads = width // 32 if width % 32 == 0 else 1
    wanted = {"decoder_width": width, "decoder_depth": recipe.method.decoder_depth or own["decoder_depth"], "decoder_heads": recipe.method.decoder_heads or heads}
    if all(getattr(recipe.method, name) == value for name, value in wanted.items()):
        return recipe, []
    line = "decoder {decoder_width} wide, {decoder_depth} blocks, {decoder_heads} heads: for an encoder {width} wide".format(**wanted, width=learner.encoder.width)
    return replace(recipe, method=replace(recipe.method, **wanted)), [line]


def pace(learner: Learner, pictures: Pictures, train: Any, workers: int, device: str) -> float:
    """Seconds an optimiser step will take, from a few pictures read and one part of a batch computed twice, on a copy."""
    parts = train.accumulate * train.devices * train.nodes
    few = min(train.batch_size // parts, 32)
    begin = time.perf_counter()
    batch = next(pictures.batches(few, 0, 1))
    read = (time.perf_counter() - begin) / few
    trial = copy.deepcopy(learner).to(device).train()
    x = pictures.finish(batch, device)
    noise = seeds.uniform((few, learner.draws(x)), train.seed, "pace").to(device)
    half = torch.autocast(device, torch.bfloat16, enabled=train.precision == "bf16-mixed")
    for _ in range(2):  # the second is timed
        begin = time.perf_counter()
        with half:
            loss = trial(x, noise)["loss"]
        loss.backward()
        loss.item()
    compute = (time.perf_counter() - begin) / few
    each = max(compute, read / workers) if workers else compute + read
    return each * train.batch_size / (train.devices * train.nodes)


def timed(train: Any, recipe: Recipe, step: float) -> tuple[Any, list[str]]:
    """The number of steps that `--time` allows at this pace; a twentieth is left for the monitor and the end."""
    limit = seconds(train.time)
    steps = max(1, int(limit * 0.95 / step))
    said = [f"steps {steps:,}: what fits into {duration(limit)} at {step:.2g} s a step"]
    train = replace(train, steps=steps, epochs=None, time=None)
    if not recipe.given & {"lr", "base_lr"} and steps < SHORT:
        train = replace(train, base_lr=SHORT_RATE)
    return train, said
