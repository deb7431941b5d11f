"""What a person did not say is chosen here, for the data and the machine, each choice with its reason.

Precedence (design): dataclass < paper < these choices < config file < words. The chosen values are written to config.yaml,
so a run's file says everything and runs again as it is.
"""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import replace
from typing import Any

import torch

from unmask.data.recolour import local_size
from unmask.data.sampler import share
from unmask.data.statistics import Format
from unmask.encoders import names
from unmask.encoders.vit import ViT
from unmask.errors import Refused
from unmask.methods import find
from unmask.model import Learner
from unmask.recipe import Recipe
from unmask.settings import Crops, seconds
from unmask.training.pace import Pace, cores, fits, whole
from unmask.training.pace import pace as pace
from unmask.training.progress import duration

CPU_SAMPLES = 200_000  # pictures seen in a run on a CPU: where kNN of a small MAE on CIFAR-10 is clearly above the random encoder's
CPU_TIME = 3600.0  # seconds that a run on a CPU takes at most, where nobody said how long
GPU_SAMPLES = 4_000_000  # pictures seen in a run on a GPU: 400 epochs of ten thousand
MERGED = 8  # patches a side that a network of stages (Swin, Hiera, ConvNeXt) merges into one feature
CPU_DEPTH = 6  # blocks of the network on a CPU: half of ViT-Tiny's, which sees twice the pictures in the same time
CPU_WIDTH = 192  # its width, where a method's own network has another
SHORT = 20_000  # optimiser steps below which the paper's rate, made for hundreds of thousands, hardly moves the weights
SHORT_RATE = 2e-3  # learning rate per 256 pictures for such runs: what MAE learned well with on CIFAR-10; no rates have been compared, and of no other method
INIT_RATE = 0.1  # of the encoder's rate with --init (benchmarks/continued.py)
SAVE = 300.0  # seconds between checkpoints
ROOM = 0.8  # of the GPU's free memory


def choose(recipe: Recipe, count: int, format: Format, encoder: bool = True) -> tuple[Recipe, list[str]]:
    """The recipe with nothing left open but the decoder's size, and a line for each choice; `count`: pictures in DATA; `encoder`: there is one."""
    said: list[str] = []
    device, line = accelerator(recipe.train.accelerator)
    said.append(line)
    trunk, lines = network(recipe, format, device, encoder)
    said += lines
    train, lines = length(recipe.train, recipe, count, device)
    said += lines
    reading, lines = readers(recipe.input, device)
    return replace(recipe, trunk=trunk, train=train, input=reading), said + lines


def reading(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Who reads the captions that are given, where nobody said."""
    if recipe.input.captions is None or vars(recipe.method).get("text", "") is not None:
        return recipe, []
    return replace(recipe, method=replace(recipe.method, text="own")), ["method.text own: captions are given, and a small transformer over their words reads them"]


def readers(reading: Any, device: str) -> tuple[Any, list[str]]:
    """The processes that read pictures."""
    if reading.workers is not None:
        return reading, []
    workers = min(8, max(1, cores() // 2)) if device == "cpu" else min(16, cores())
    return replace(reading, workers=workers), [f"workers {workers}: {cores()} cores" + (", which compute as well" if device == "cpu" else "")]


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
    if device == "cpu" and torch.cpu._is_avx512_bf16_supported():  # one core, forward and backward: ViT-S .64 of the time, ViT-Ti .73, 4 blocks of width 96 1.0
        return "32-true", "precision 32-true: no AMX here; --precision bf16-mixed is faster on networks from ViT-Ti on, and less exact"
    return "32-true", f"precision 32-true: bf16 is slower on this {'CPU' if device == 'cpu' else 'device'}"


def network(recipe: Recipe, format: Format, device: str, encoder: bool = True) -> tuple[Any, list[str]]:
    """Model, patch and input size for what the pictures are."""
    trunk: Any = recipe.trunk
    said: list[str] = []
    if trunk.in_chans is None:
        trunk = replace(trunk, in_chans=format.in_chans)
    short, most = min(format.size) if format.size else 224, 64 if device == "cpu" else 224
    most = most if trunk.model is None else 224
    own = re.search(r"_patch(\d+)", trunk.model or "")
    if trunk.model is None and encoder and (network := vars(type(recipe.method)).get("network")) and "patches" in vars(type(recipe.method)):
        least, *larger = vars(type(recipe.method))["patches"]
        patch = trunk.patch_size or max([least, *(size for size in larger if 4 * MERGED * size <= min(trunk.img_size or (short, most)))])
        trunk = replace(trunk, model=network, patch_size=patch)
        if device == "cpu" and trunk.width is None:  # it doubles with each of the three mergings
            trunk = replace(trunk, width=CPU_WIDTH // MERGED)
        narrow = f"; {trunk.width} wide at first, {MERGED * trunk.width} at last, for a CPU" if device == "cpu" else ""
        said.append(f"model {network} with patches of {patch}: {recipe.name} is made for it, and hides squares of {MERGED * patch} pixels{narrow}")
    if trunk.img_size is None:
        staged = names.staged(trunk.model or "")
        patch = trunk.patch_size or (int(own[1]) if own else 4 if staged else None) or patch_for(min(short, most))
        patch *= MERGED if staged else 1
        side = max(patch * 4 if patch <= 16 else patch * 2, min(short, most) // patch * patch)
        trunk = replace(trunk, img_size=(side, side))
        said.append(f"img_size {side}: the pictures are about {short} px" + (", and less is fast enough for a CPU" if side < short and device == "cpu" else ""))
    if trunk.model is None and encoder:
        if trunk.patch_size is None:
            trunk = replace(trunk, patch_size=patch_for(min(trunk.img_size)))
            said.append(f"patch_size {trunk.patch_size}: {math.prod(side // trunk.patch_size for side in trunk.img_size)} patches a picture")
        if network := vars(type(recipe.method)).get("network"):
            small = {"width": trunk.width or CPU_WIDTH, "depth": trunk.depth or CPU_DEPTH, "heads": trunk.heads or CPU_WIDTH // 64} if device == "cpu" else {}
            trunk = replace(trunk, model=network, **small)
            said.append(f"model {network}: {recipe.name} is made for it" + (f"; {trunk.width} wide with {trunk.depth} blocks, for a CPU" if small else ""))
        elif device == "cpu":
            depth = trunk.depth or CPU_DEPTH
            trunk = replace(trunk, model="vit_tiny_patch16_224", depth=depth)
            said.append(f"model vit_tiny_patch16_224 with {depth} blocks: small, for a CPU")
        else:
            trunk = replace(trunk, model="vit_small_patch16_224" if short < 160 else "vit_base_patch16_224")
            said.append(f"model {trunk.model}: the usual one for pictures of this size")
    return trunk, said


def patch_for(side: int) -> int:
    """Patches small enough that a picture of this side has at least 64 of them, up to the usual 16 pixels."""
    return 4 if side < 64 else 8 if side < 128 else 16


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
    if train.time is None:
        train = fixed(train, count)
    together(recipe.method, recipe.name, train)
    if recipe.trunk.init is not None and train.encoder_rate is None:
        train = replace(train, encoder_rate=INIT_RATE)
        said.append(f"encoder_rate {INIT_RATE:g}: what --init brings learns at a tenth of the rate, so that it survives the first steps")
    chosen, line = precision(train, device)
    said.append(line)
    return replace(train, accelerator=device, precision=chosen), said


def together(method: Any, name: str, train: Any) -> None:
    """Refuse a batch that cannot be split, or that leaves a method that `compares` pictures alone with one."""
    parts = train.accumulate * train.devices * train.nodes
    if share(train.batch_size, train.accumulate, train.devices * train.nodes) < least(method):
        apart = f", two for each of {parts} (processes times --accumulate)" if parts > 1 else ""
        raise Refused(f"{name} compares pictures: --batch_size {2 * parts} or more{apart}")


def least(method: Any) -> int:
    """How many pictures a process must see at once."""
    return 2 if getattr(method, "compares", False) else 1


def fixed(train: Any, count: int) -> Any:
    """The length as steps, whichever of steps and epochs said it."""
    steps = train.steps or max(1, round((train.epochs or 1) * count / train.batch_size))
    return replace(train, steps=steps, epochs=None, time=None)


def sized(recipe: Recipe, learner: Learner) -> tuple[Recipe, list[str]]:
    """The decoder's size, where the method has one and nobody gave it, as it was built."""
    names = ("decoder_width", "decoder_depth", "decoder_heads")
    method = find(recipe.name)(**vars(recipe.method))  # the recipe's own was made without importing its file
    if "decoder_size" not in vars(type(method)):
        return recipe, []
    wanted = dict(zip(names, method.decoder_size(learner.encoder)))
    if all(getattr(recipe.method, name) == value for name, value in wanted.items()):
        return recipe, []
    line = "decoder {decoder_width} wide, {decoder_depth} blocks, {decoder_heads} heads: for an encoder {width} wide".format(**wanted, width=learner.encoder.width)
    return replace(recipe, method=replace(recipe.method, **wanted)), [line]


def viewed(recipe: Recipe, learner: Learner) -> tuple[Recipe, list[str]]:
    """The size of local crops, where the method has some: whole patches."""
    views = recipe.views
    if not isinstance(views, Crops) or not views.local_crops:
        return recipe, []
    if not isinstance(learner.encoder, ViT):
        raise Refused(f"--model {recipe.trunk.model} takes pictures of one size only: say --views.local_crops 0, or choose a plain vision transformer")
    views, said = in_patches(views, learner.encoder.img_size, learner.encoder.patch)
    return replace(recipe, views=views), said


def in_patches(views: Crops, img_size: tuple[int, int], patch: tuple[int, int]) -> tuple[Crops, list[str]]:
    """The views with local crops of whole patches, and what was chosen."""
    size, near = views.local_size, local_size(img_size, patch)
    if size is None:
        return replace(views, local_size=near), [f"local crops {near[0]} x {near[1]}: 3/7 of the input, in whole patches"]
    if any(side % cell for side, cell in zip(size, patch)):
        raise Refused(f"--views.local_size {size[0]} {size[1]}: no whole patches of {patch[0]} x {patch[1]} pixels; {near[0]} {near[1]} would do")
    return views, []


def paced(recipe: Recipe, pace: Pace) -> tuple[Recipe, list[str]]:
    """What depends on the pace: the steps that `--time` allows, or an hour on a CPU; the parts of a batch that fit a GPU; checkpoints."""
    train: Any = recipe.train
    said: list[str] = []
    told = bool(recipe.given & {"epochs", "steps", "time"})
    if train.time is not None:
        limit = seconds(train.time)
        train = fits(train, pace, limit)
        said.append(f"steps {train.steps:,}: what fits into {duration(limit)} at {pace.step:.2g} s a step, with what is measured along the way")
    elif not told and train.accelerator == "cpu" and pace.step * train.steps > CPU_TIME:
        train = fits(train, pace, CPU_TIME)
        said.append(f"steps {train.steps:,}: an hour on this CPU; say --epochs, --steps or --time for another length")
    if pace.memory:
        train, more = fitting(train, pace.memory, torch.cuda.mem_get_info()[0], bool(recipe.given & {"accumulate"}), least(recipe.method))
        said += more
    if train.checkpoint_every is None and train.devices * train.nodes > 1:  # several processes must agree: by steps, not by the clock
        train = replace(train, checkpoint_every=max(1, round(SAVE / pace.step)))
    return replace(recipe, train=train), said


def quickened(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """A higher rate for a pre-training that is shorter than the paper's."""
    train = recipe.train
    rate = vars(type(recipe.method)).get("short_rate", SHORT_RATE)
    if recipe.given & {"lr", "base_lr"} or (train.steps or 1) >= SHORT or (train.base_lr or 0) >= rate:
        return recipe, []
    line = f"base_lr {rate:g}: {train.steps:,} steps are few for the paper's {recipe.method.paper.base_lr:g}"
    return replace(recipe, train=replace(train, base_lr=rate)), [line]


def announced(recipe: Recipe, pace: Pace, count: int) -> str:
    """The line before the first step: how long the run is, and when it will end."""
    steps, batch = recipe.train.steps or 1, recipe.train.batch_size or 1
    spent = whole(recipe.train, pace)
    end = datetime.datetime.now() + datetime.timedelta(seconds=spent)
    return f"{steps:,} steps of {batch} pictures, {steps * batch / count:,.1f} epochs: about {duration(spent)}, until {end:%d %b %H:%M} (estimated from {pace.pictures} pictures computed here)"


def fitting(train: Any, each: float, free: float, told: bool, least: int = 1) -> tuple[Any, list[str]]:
    """The fewest parts of a step's batch, of `least` pictures or more, that fit into GPU memory at `each` bytes a picture; what a person said is left alone."""
    processes = train.devices * train.nodes
    rows = train.batch_size // processes
    ways = [n for n in range(train.accumulate, rows // least + 1) if rows % n == 0]
    parts = next((n for n in ways if each * rows / n <= ROOM * free), max(ways, default=train.accumulate))
    if told or parts == train.accumulate:
        return train, []
    return replace(train, accumulate=parts), [f"accumulate {parts}: {rows} pictures at once would need about {each * rows / 2**30:.0f} GiB of GPU memory"]
