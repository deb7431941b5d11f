"""What nobody said of a fine-tuning is chosen here, for the network, the number of pictures and the length, each choice with its reason."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from unmask.data.sampler import share
from unmask.recipe import Recipe
from unmask.training import plan

PAPER = {  # up to this width: what MAE's fine-tuning sets by the network (FINETUNE.md; appendix A.1, Table 9)
    768: {"epochs": 100.0, "base_lr": 5e-4, "layer_decay": 0.65, "drop_path": 0.1},
    1024: {"epochs": 50.0, "base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.2},
    math.inf: {"epochs": 50.0, "base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.3},
}
SEEN = {"cpu": 100_000, "gpu": 4_000_000}  # pictures seen in a run, between five and a hundred epochs
LONG = 50  # epochs from which mixing and heavy distortion pay
SHORT = 10  # epochs below which a network learns most without any of it


def by_width(width: int) -> dict[str, float]:
    """What the paper sets for a network of this width."""
    return next(numbers for limit, numbers in PAPER.items() if width <= limit)


def choose(recipe: Recipe, count: int, width: int) -> tuple[Recipe, list[str]]:
    """Machine, batch and length; `count`: pictures that teach."""
    device, line = plan.accelerator(recipe.train.accelerator)
    said = [line]
    train: Any = recipe.train
    paper, method = by_width(width), recipe.method
    own = {name: paper[name] for name in ("layer_decay", "drop_path") if getattr(method, name, 0) is None and name not in recipe.given}
    if "batch_size" not in recipe.given and not recipe.trunk.paper:
        fits = 2 ** int(math.log2(max(16, count // 16)))
        train = replace(train, batch_size=batch_for(fits, train, device))
        said.append(f"batch_size {train.batch_size}: for {count:,} pictures (the paper: {recipe.method.paper.batch_size})")
    if not recipe.given & {"epochs", "steps", "time"}:
        epochs = paper["epochs"] if recipe.trunk.paper else float(max(5, min(100, round(SEEN["cpu" if device == "cpu" else "gpu"] / count))))
        train = replace(train, epochs=epochs)
        said.append(f"epochs {epochs:g}: " + ("the paper's for this width" if recipe.trunk.paper else f"{epochs * count:,.0f} pictures seen"))
    if train.time is None:
        train = plan.fixed(train, count)
    share(train.batch_size or 1, train.accumulate, train.devices * train.nodes)
    if not recipe.given & {"lr", "base_lr"}:
        train = replace(train, base_lr=paper["base_lr"])
    chosen, line = plan.precision(train, device)
    said.append(line)
    reading = recipe.input
    if reading.workers is None:
        workers = min(8, max(1, plan.cores() // 2)) if device == "cpu" else min(16, plan.cores())
        reading = replace(reading, workers=workers)
        said.append(f"workers {workers}: {plan.cores()} cores")
    train = replace(train, accelerator=device, precision=chosen)
    return replace(recipe, train=train, method=replace(method, **own), input=reading), said


def batch_for(fits: int, train: Any, device: str) -> int:
    """A batch of about this many pictures that divides among parts and processes."""
    parts = train.accumulate * train.devices * train.nodes
    return -(-max(16, min(fits, 64 if device == "cpu" else 1024)) // parts) * parts


def strength(recipe: Recipe, count: int, undistorted: str = "") -> tuple[Recipe, list[str]]:
    """How much the pictures are changed: by the length of the run. `undistorted`: why the pictures cannot be distorted, where they cannot."""
    method, said = recipe.method, []
    epochs = (recipe.train.steps or 1) * (recipe.train.batch_size or 1) / count
    wanted: dict[str, Any] = {}
    if undistorted:
        wanted |= {"randaugment": 0.0, "colour": 0.0}
        said.append(f"randaugment 0: {undistorted}")
    if not recipe.trunk.paper and epochs < LONG:
        gentle = {"mixup": 0.0, "cutmix": 0.0} | ({"drop_path": 0.0, "randaugment": 0.0, "erasing": 0.0} if epochs < SHORT else {})
        gentle = {name: value for name, value in gentle.items() if name not in recipe.given and getattr(method, name) != value}
        if gentle:
            wanted = gentle | wanted
            why = f"{epochs:.3g} epochs are too few to learn from pictures that are {'changed so much' if epochs < SHORT else 'mixed'}"
            said.append(f"{', '.join(f'{name} 0' for name in gentle)}: {why} (--paper keeps them)")
    return replace(recipe, method=replace(method, **wanted)), said
