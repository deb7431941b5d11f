"""Train an encoder further on labels: whole runs, and several small ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from unmask.api.asked import check_data, check_labels
from unmask.errors import Refused
from unmask.interchange.naming import identify
from unmask.options import load
from unmask.recipe import Recipe, settle
from unmask.settings import Lessons, within


@dataclass(frozen=True)
class Lowshot:
    """How few labels teach, and what is trained on them."""

    shots: int | None = None  # learn from this many pictures of each class
    share: float | None = None  # learn from this share of each class: .01, or 1%
    seeds: int = 5  # subsets, each drawn anew; the figure is their mean
    pooling: Literal["auto", "cls", "avg", "cls+avg"] = "auto"  # what a picture's features are; auto: the class token where there is one
    l2: float = 0.0025  # penalty of the logistic regression, divided by the number of pictures (MSN)
    finetune: bool = False  # train the encoder further on each subset instead, each in a run of its own under --out
    out: str | None = None  # with --finetune: the folder of the runs; started again with the same one it goes on
    config: str | None = None  # with --finetune: a YAML file of its settings
    epochs: float | None = None  # with --finetune: passes over each subset; not given: chosen for its size

    def __post_init__(self):
        within(self, "shots seeds", 1)
        within(self, "share", 0, 1, above=True)
        within(self, "l2 epochs", 0, above=True)
        if (self.shots is None) == (self.share is None):
            raise ValueError("shots or share must say how many pictures teach: --shots 5, or --share 1%")

    def refuse(self, given: Iterable[str]) -> None:
        """Refused: what was `given` and belongs to the other of the two that may be trained."""
        wrong = next((name for name in (("l2",) if self.finetune else ("out", "config", "epochs")) if name in given), None)
        if wrong is not None:
            raise Refused(f"--{wrong} " + ("is of the regression on frozen features: leave it out, or --finetune" if self.finetune else "belongs to --finetune: say that too, or leave it out"))


@dataclass(frozen=True)
class Fresh:
    """What every protocol of evaluate takes."""

    random: bool = False  # the same as --scratch: with the encoder's weights drawn anew


def teach(
    protocol: str, encoder: Any = None, data: Any = None, out: str | Path | None = None, config: str | Path | None = None, random: bool = False, **settings: Any
) -> dict[str, Any]:
    """Train an encoder further by `finetune`, or a head on it by `attentive`: a run like any other, in `out`; the row of its evaluation.

    `out` not given: a folder beside, named after the encoder and the protocol. `random`: the same as `scratch`.
    """
    recipe, folder = asked(protocol, encoder, data, out, config, settings | ({"scratch": True} if random else {}))
    from unmask.evaluation.metrics import shown
    from unmask.run.folder import refuse_taken

    refuse_taken(folder)
    from unmask.training.start import begin

    begin(recipe, folder)
    row = figures_of(folder)
    print(f"{protocol} of {recipe.trunk.encoder}{' from scratch' if recipe.trunk.scratch else ''}: {shown(row)}")
    return row


def asked(protocol: str, encoder: Any, data: Any, out: str | Path | None, config: str | Path | None, settings: dict[str, Any]) -> tuple[Recipe, Path]:
    """The recipe and the folder of a run, refused without torch where they can be."""
    said = settings | ({} if encoder is None else {"encoder": str(encoder)})
    recipe = settle(protocol, data, config, said)
    name = recipe.trunk.encoder
    if name is None:
        raise Refused(f"ENCODER is missing: unmask evaluate {protocol} ENCODER DATA --out RUN")
    identify(name)
    for words in (recipe.data, recipe.input.val):
        check_data(words)
    check_labels(recipe.input.labels)
    return recipe, Path(out) if out is not None else Path(named(name, protocol, recipe.trunk.scratch))


def figures_of(folder: Path) -> dict[str, Any]:
    """The row that a run measured of itself at its end: the first of its evaluations."""
    return json.loads((folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()[0])


def named(encoder: str, protocol: str, scratch: bool) -> str:
    """The folder of a run that nobody named: beside the encoder's run, or here."""
    end = f"-{protocol}" + ("-scratch" if scratch else "")
    if encoder.startswith(("timm:", "random:")) and not Path(encoder).exists():
        return encoder.replace(":", "-").replace("/", "-") + end
    path = Path(encoder)
    return str(path.with_name(path.stem + end) if path.is_file() else path.parent / (path.resolve().name + end))


def several(encoder: str | Path, data: Any, few: Lowshot, **settings: Any) -> dict[str, Any]:
    """Low-shot fine-tuning: a run for each subset under `out`, gone on with where there is one; one row of all of them."""
    if few.out is None:
        raise Refused("--out is missing: the folder in which --finetune makes a run for each subset")
    scratch, seed, rows, begun = settings.pop("random", False), settings.get("seed", 0), [], 0.0
    for number in range(few.seeds):
        folder = Path(few.out) / f"subset-{number}"
        said = {name: value for name in ("shots", "share", "epochs", "pooling") if (value := vars(few)[name]) not in (None, "auto")}
        recipe, _ = asked("finetune", encoder, data, folder, few.config, settings | said | {"subset": number, "scratch": scratch})
        rows.append(one(recipe, folder))
        begun += rows[-1]["seconds"]
    from unmask.transfer.lowshot import together

    row = {"encoder": str(encoder), "random": rows[0]["random"], "protocol": "lowshot", "kind": rows[0]["kind"], **together(rows), "classifier": "fine-tuned"}
    same = ("pooling", "img_size", "n_train", "n_val", "val", "epochs", "batch_size", "lr", "shots", "share")
    return row | {name: rows[0][name] for name in same} | {"seed": seed, "run": str(few.out), "seconds": round(begun, 2)}


def one(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The row of a run that may be there already: made, gone on with, or read. Refused where `folder` holds a run of other settings."""
    from unmask.training import start

    if not (folder / "config.yaml").is_file():
        start.begin(recipe, folder)
    else:
        refuse_other(recipe, folder)
        if not (folder / "evaluations.jsonl").is_file():
            start.again(folder, False, {})
    row, epochs = figures_of(folder), recipe.train.epochs
    if epochs is not None and abs(row["epochs"] - epochs) > row["batch_size"] / row["n_train"] + 0.01:  # a run has whole steps
        raise Refused(f"{folder} is a run of another length ({row['epochs']:g} epochs, now {epochs:g}): give another --out")
    return row


def refuse_other(recipe: Recipe, folder: Path) -> None:
    """Refused where a person asked for something else than what the run in `folder` was made from."""
    from unmask.training.start import FREE

    kept, now = load(folder / "config.yaml"), recipe.lines()
    words = {"data", "encoder", "scratch", "seed", *(field.name for field in fields(Lessons))} | recipe.given
    for name in sorted(words - FREE - {"epochs"}):  # a run keeps its steps instead
        value = list(now[name]) if isinstance(now[name], tuple) else now[name]
        if kept.get(name) != value and value != "auto" and (value is not None or name not in ("tile", "window")):  # those are chosen for the run
            raise Refused(f"{folder} is a run of another {name} ({kept.get(name)}, now {value}): give another --out")
