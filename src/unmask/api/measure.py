"""Measure a frozen encoder, and write its features down."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from unmask.api.asked import Look, check_data, check_labels, settings_of, sight_of
from unmask.api.transfer import Lowshot, several, teach
from unmask.errors import Refused
from unmask.interchange.naming import identify
from unmask.methods import TRANSFERS
from unmask.settings import Labelled, within


@dataclass(frozen=True)
class Measure(Labelled):
    """On which labelled pictures an encoder is measured."""

    val: Any | None = None  # labelled pictures to judge by; not given: those of the split column, of val/ folders, or a fifth of DATA, kept apart


@dataclass(frozen=True)
class Neighbours:
    """The nearest-neighbour protocol."""

    k: int = 20  # neighbours that vote
    temperature: float = 0.07  # a vote weighs exp(cosine / temperature)
    pooling: Literal["auto", "cls", "avg", "cls+avg"] = "auto"  # what a picture's features are; auto: the class token where there is one

    def __post_init__(self):
        within(self, "k", 1)
        within(self, "temperature", 0, above=True)


@dataclass(frozen=True)
class Linear:
    """The linear probe."""

    paper: bool = False  # MAE's own protocol (LARS, BatchNorm without affine, 90 epochs) instead of the sweep of rates and poolings
    epochs: int | None = None  # passes over the features; not given: 100, with --paper 90
    pooling: Literal["auto", "cls", "avg", "cls+avg"] = "auto"  # what a picture's features are; auto: the best one on a held-out part

    def __post_init__(self):
        within(self, "epochs", 1)


@dataclass(frozen=True)
class Layers:
    """A probe of every block's output."""

    by: Literal["knn", "linear", "both"] = "linear"  # nearest neighbours, a linear probe (slower), or one after the other
    pooling: Literal["auto", "cls", "avg"] = "auto"  # what a picture's features are; auto: class token and patch mean are both tried
    k: int = 20  # neighbours that vote
    temperature: float = 0.07  # a vote weighs exp(cosine / temperature)
    epochs: int = 100  # passes of the linear probe over the features

    def __post_init__(self):
        within(self, "k epochs", 1)
        within(self, "temperature", 0, above=True)


@dataclass(frozen=True)
class Retrieval:
    """Captions found by pictures, and pictures by captions."""

    captions: str | None = None  # JSON lines, CSV, TSV or parquet with paths and captions, maybe split; not given: captions.jsonl in DATA, or a .txt beside each picture


@dataclass(frozen=True)
class ZeroShot:
    """Classes by their names alone."""

    names: str | None = None  # a text file with a class, a tab and what it is called in every line; not given: the classes' own names
    templates: tuple[str, ...] = ("a photo of a {}", "a picture of a {}", "there is a {}")  # sentences with {} where the name goes; their mean is a class

    def __post_init__(self):
        wrong = [one for one in self.templates if one.count("{}") != 1]
        if wrong or not self.templates:
            raise ValueError(f"templates are sentences with one {{}} where the name goes, got '{wrong[0] if wrong else ''}'")


@dataclass(frozen=True)
class Embed(Labelled):
    """Where features go."""

    out: str = "features.npz"  # .npz (NumPy) or .parquet: features, paths, and labels where known
    pooling: Literal["auto", "cls", "avg", "cls+avg"] = "auto"  # what a picture's features are; auto: the class token where there is one


PROTOCOLS = {  # the settings of each, and the file whose `measure(protocol, encoder, pictures, val, …)` gives the row of figures
    "knn": (Neighbours, "unmask.evaluation.measure"),
    "linear": (Linear, "unmask.evaluation.measure"),
    "layers": (Layers, "unmask.evaluation.layers"),
    "lowshot": (Lowshot, "unmask.transfer.lowshot"),
    "retrieval": (Retrieval, "unmask.evaluation.retrieval"),
    "zeroshot": (ZeroShot, "unmask.evaluation.retrieval"),
}


def evaluate(protocol: str, encoder: str | Path, data: Any, **settings: Any) -> dict[str, Any]:
    """Measure an encoder on labelled pictures by `knn`, `linear`, `layers`, `lowshot` or, training it further, `finetune` or `attentive`; a run that reads captions
    also by `retrieval` and `zeroshot`. A run keeps the figures.
    """
    if protocol in TRANSFERS:
        return teach(protocol, encoder, data, **settings)
    if protocol not in PROTOCOLS:
        raise Refused(f"evaluate wants one of {', '.join([*PROTOCOLS, *TRANSFERS])}, got '{protocol}'")
    own, place = PROTOCOLS[protocol]
    look, asked, how = settings_of((Look, Measure, own), settings)
    if isinstance(how, Lowshot):
        how.refuse(settings)
    if isinstance(how, Retrieval | ZeroShot) and not (Path(encoder) / "config.yaml").is_file():
        raise Refused(f"{protocol} wants a run that read captions, and {encoder} is none: unmask pretrain modern_mae DATA --method.text own --out RUN makes one")
    identify(encoder)
    for words in (data, asked.val):
        check_data(words)
    check_labels(asked.labels)
    from importlib import import_module

    from unmask.evaluation.metrics import shown

    if isinstance(how, Lowshot) and how.finetune:
        own_words = {field.name for field in fields(Lowshot)}
        row = several(encoder, data, how, **{name: value for name, value in settings.items() if name not in own_words})
    else:
        measure = import_module(place).measure
        opened, pictures, sight = sight_of(encoder, data, look, asked)
        val = sight_of(encoder, asked.val, look, asked, opened)[1] if asked.val is not None else None
        whole = {"run": str(encoder), "random": look.random} if isinstance(how, Retrieval | ZeroShot) else {}  # what is measured is more than its encoder
        row = measure(protocol, opened, pictures, val, name=str(data), seed=look.seed, **sight, **vars(how), **whole)
    row = {"encoder": str(encoder), "random": look.random, **row}
    if (Path(encoder) / "config.yaml").is_file():
        from unmask.run.folder import RunFolder

        RunFolder.open(Path(encoder)).evaluation(row)
    who = "the random encoder" if look.random else str(encoder)
    beside = {"classes": "largest class {majority:.1f} %", "tags": "mAP {map}", "numbers": "mean error {mae:.4g}, {mae_of_median:.4g} for always the median", "pairs": "by chance {chance:.1f} %"}
    print(f"{row['protocol']} of {who}: {shown(row)}, {beside[row['kind']].format(**row)}")
    return row


def embed(encoder: str | Path, images: Any, **settings: Any) -> Path:
    """Write the features of pictures with their paths, and labels where known, to .npz or .parquet; the file's path."""
    look, asked = settings_of((Look, Embed), settings)
    out = Path(asked.out)
    if out.suffix not in (".npz", ".parquet"):
        raise Refused(f"--out {out} must end in .npz or .parquet")
    identify(encoder)
    check_data(images)
    check_labels(asked.labels)
    from unmask.evaluation import files
    from unmask.evaluation.features import extract

    opened, pictures, sight = sight_of(encoder, images, look, asked)
    table = extract(opened, pictures, **sight)
    pooling = table.poolings[0] if asked.pooling == "auto" else asked.pooling
    files.write(table, pooling, pictures.labels.names if pictures.labels is not None else None, out)
    skipped = f", {table.skipped} unreadable left out" if table.skipped else ""
    print(f"{out}: {len(table)} rows of {table.of(pooling).shape[1]} features ({pooling}){skipped}")
    return out
