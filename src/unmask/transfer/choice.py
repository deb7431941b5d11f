"""What nobody said of a fine-tuning is chosen here, for the network, the number of pictures and the length, each choice with its reason."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from unmask.data.sampler import share
from unmask.errors import Refused
from unmask.recipe import Recipe
from unmask.training import plan
from unmask.transfer.classifier import maskable

PAPER = {  # up to this width: what MAE's fine-tuning sets by the network (FINETUNE.md; appendix A.1, Table 9)
    768: {"epochs": 100.0, "base_lr": 5e-4, "layer_decay": 0.65, "drop_path": 0.1},
    1024: {"epochs": 50.0, "base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.2},
    math.inf: {"epochs": 50.0, "base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.3},
}
SEEN = {"cpu": 100_000, "gpu": 4_000_000}  # pictures seen in a run, between five and a hundred epochs
WIDE = 768  # the narrowest network that the paper fine-tunes
LONG = 50  # epochs from which mixing and heavy distortion pay
SHORT = 10  # epochs below which a network learns most without any of it


def published(recipe: Recipe, width: int) -> dict[str, Any]:
    """What the paper sets for a network of this width; of a frozen one the same for all."""
    if recipe.name != "finetune":
        return {"epochs": recipe.method.paper.epochs}
    return next(numbers for limit, numbers in PAPER.items() if width <= limit)


def fitting(recipe: Recipe, model: str) -> tuple[Recipe, list[str]]:
    """Refused before anything is computed: what a network without a row of equal blocks cannot do. Branches of it are never left out."""
    method = vars(recipe.method)
    if maskable(model):
        return recipe, []
    wrong = next((name for name in ("drop_path", "last_blocks") if method.get(name)), None)
    if wrong is not None:
        raise Refused(f"--{wrong}: {model} has no row of blocks that are all alike" + (" (--last_blocks 0 trains the head alone)" if wrong == "last_blocks" else ""))
    said = [f"{model} is trained as timm builds it: its own pooling" + (", drop_path 0" if "drop_path" in method else "")]
    return (replace(recipe, method=replace(recipe.method, drop_path=0.0)) if "drop_path" in method else recipe), said


def choose(recipe: Recipe, count: int, width: int) -> tuple[Recipe, list[str]]:
    """Machine, batch and length; `count`: pictures that teach."""
    device, line = plan.accelerator(recipe.train.accelerator)
    said = [line]
    train: Any = recipe.train
    paper, method, given = published(recipe, width), recipe.method, recipe.given
    own = {name: paper[name] for name in ("layer_decay", "drop_path") if vars(method).get(name, 0) is None}
    if "batch_size" not in given and not recipe.trunk.paper:
        fits = 2 ** int(math.log2(max(16, count // 16)))
        train = replace(train, batch_size=batch_for(fits, train, device))
        said.append(f"batch_size {train.batch_size}: for {count:,} pictures (the paper: {recipe.method.paper.batch_size})")
    if not given & {"epochs", "steps", "time"}:
        epochs = paper["epochs"] if recipe.trunk.paper else float(max(5, min(100, round(SEEN["cpu" if device == "cpu" else "gpu"] / count))))
        train, given = replace(train, epochs=epochs), given | ({"epochs"} if recipe.trunk.paper else set())
        said.append(f"epochs {epochs:g}: " + ("the paper's for this width" if recipe.trunk.paper else f"{epochs * count:,.0f} pictures seen"))
    if train.time is None:
        train = plan.fixed(train, count)
    share(train.batch_size or 1, train.accumulate, train.devices * train.nodes)
    if "base_lr" in paper and not given & {"lr", "base_lr"}:
        train = replace(train, base_lr=paper["base_lr"])
        if not recipe.trunk.paper and (train.batch_size != recipe.method.paper.batch_size or width < WIDE):
            train = replace(train, lr=rate(train, recipe.method.paper.batch_size, width))
            said.append(f"lr {train.lr:.2g}: for batches of {train.batch_size} and a network {width} wide (by the paper's rule per 256 pictures it would be {paper['base_lr'] * train.batch_size / 256:.2g})")
    chosen, line = plan.precision(train, device)
    said.append(line)
    reading, lines = plan.readers(recipe.input, device)
    said += lines
    train = replace(train, accelerator=device, precision=chosen)
    return replace(recipe, train=train, method=replace(method, **own), input=reading, given=given), said


def rate(train: Any, batch_size: int, width: int) -> float:
    """The peak rate of a smaller batch or a narrower network than the paper's: its rate by the root of the batch, and inversely by the width.

    Measured on 960 pictures of Imagenette (64 px, 6 blocks of width 128, batches of 32, 10 epochs), top-1 on 1,000 others: 31.0 % with 6e-5, the
    linear rule's; 49.7 with 1e-3; 52.7 with 3e-3. The root is AdamW's rule (Malladi et al. 2022, arXiv:2205.10287), the width that of muP.
    """
    whole = train.base_lr * batch_size / 256
    return float(f"{whole * math.sqrt(train.batch_size / batch_size) * WIDE / min(width, WIDE):.3g}")


def batch_for(fits: int, train: Any, device: str) -> int:
    """A batch of about this many pictures that divides among parts and processes."""
    parts = train.accumulate * train.devices * train.nodes
    return -(-max(16, min(fits, 64 if device == "cpu" else 1024)) // parts) * parts


def strength(recipe: Recipe, count: int, kind: str, undistorted: str = "") -> tuple[Recipe, list[str]]:
    """How much the pictures are changed: by the length of the run, and by what is asked of them.

    `undistorted`: why pictures such as these cannot be distorted, where they cannot.
    """
    method, said = recipe.method, list[str]()
    epochs = (recipe.train.steps or 1) * (recipe.train.batch_size or 1) / count
    off: dict[str, str] = {}  # setting -> why it is 0
    if not recipe.trunk.paper and epochs < LONG:
        off |= dict.fromkeys(("mixup", "cutmix"), f"{epochs:.3g} epochs are too few to learn from mixed pictures (--paper keeps them)")
    if not recipe.trunk.paper and epochs < SHORT:
        off |= dict.fromkeys(("drop_path", "randaugment", "erasing"), f"{epochs:.3g} epochs are too few to learn from pictures so changed (--paper keeps them)")
    if kind == "numbers":
        off |= dict.fromkeys(("mixup", "cutmix"), "a mixture of two pictures does not have the mean of their numbers")
    if kind != "classes":
        off |= {"smoothing": f"it is made for classes, and these are {kind}"}
    off = {name: why for name, why in off.items() if name not in recipe.given}
    off |= dict.fromkeys(("randaugment", "colour"), undistorted) if undistorted else {}
    off = {name: why for name, why in off.items() if vars(method).get(name)}
    for why in dict.fromkeys(off.values()):
        said.append(f"{', '.join(f'{name} 0' for name in off if off[name] == why)}: {why}")
    return replace(recipe, method=replace(method, **dict.fromkeys(off, 0.0))), said
