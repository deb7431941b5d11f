"""Several encoders under one protocol."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from unmask.api import transfer
from unmask.api.asked import Look, check_data, check_labels, settings_of, sight_of
from unmask.errors import Refused
from unmask.interchange.naming import identify
from unmask.settings import Labelled, within

WITHOUT = "without labels, unmask neighbours ENCODER DATA and unmask show features ENCODER DATA let one look at what an encoder finds alike"


@dataclass(frozen=True)
class Compare(Labelled):
    """On which labelled pictures encoders are compared, and where the page goes."""

    val: Any | None = None  # labelled pictures to judge by; not given: those of the split column, of val/ folders, or a fifth of DATA, kept apart
    pooling: Literal["auto", "cls", "avg", "cls+avg"] = "auto"  # features of a picture, for all encoders; auto: the class token where there is one, for the probe the best on a held-out part
    finetune: bool = False  # also train every encoder further on the labels, and its network from scratch; that decides then
    finetune_epochs: float | None = None  # passes over the teaching pictures of each fine-tuning; not given: chosen for pictures and machine
    out: str = "."  # the folder of compare.html and compare.json, and of the runs of --finetune

    def __post_init__(self):
        within(self, "finetune_epochs", 0, above=True)


def compare(data: Any, encoders: str | Path | Sequence[str | Path], **settings: Any) -> dict[str, Any]:
    """Measure encoders on the same labelled pictures by kNN and linear probe, beside random weights and pixel statistics.

    The result holds the `verdict` in a sentence, the `table`, the `pixel_statistics` row and all `differences` with their intervals;
    compare.html shows it, compare.json has every answer too.
    """
    look, asked = settings_of((Look, Compare), settings)
    words = [str(word) for word in ([encoders] if isinstance(encoders, str | Path) else encoders)]
    _check(words, look, asked, data)
    from unmask.compare import compare as measure
    from unmask.data.sources import open_source
    from unmask.data.splits import LABEL_HELP, parts
    from unmask.visualize.comparison import write

    source = open_source(data, asked)
    for line in source.said:
        print(line)
    if source.labels is None or not source.labels.known.any():
        raise Refused(f"{data} has no labels: {LABEL_HELP}; {WITHOUT}")
    val = open_source(asked.val, asked) if asked.val is not None else None
    contenders, sight = _contenders(words, source, val, look)
    first = contenders[0]
    split = parts(first.teaching, first.judging if val is not None else None, str(data), look.seed)
    assert split.teaching.labels is not None
    taught = split.teaching.labels.rows(split.teach)
    print("\n".join(taught.said()))
    print(f"{len(split.teach):,} pictures teach, {len(split.judge):,} judge ({split.said}); {first.encoder.img_size[0]} x {first.encoder.img_size[1]} pixels")
    for one in contenders:
        one.teaching.labels, one.judging.labels = split.teaching.labels, split.judging.labels
    if asked.finetune:
        contenders = [one if one.entrant.kind == "pixels" else _tuned(one, data, look, asked) for one in contenders]
    found = measure(contenders, split.teach, split.judge, split.said, seed=look.seed, pooling=asked.pooling, **sight)
    told = {**found.told(), "data": str(data), "labels": None if asked.labels is None else str(asked.labels), **taught.balance()}
    return _write(found, told, write, first.judging, Path(asked.out))


def _write(found: Any, told: dict[str, Any], write: Any, judging: Any, out: Path) -> dict[str, Any]:
    """compare.html and compare.json, and the table on the way."""
    from unmask.run.folder import write_whole

    out.mkdir(parents=True, exist_ok=True)
    files = [str(out / "compare.html"), str(out / "compare.json")]
    told |= {"files": files}
    write(found, told, judging, out / "compare.html")
    whole = json.dumps({**told, "pictures": found.pictures()}, ensure_ascii=False, indent=1)
    write_whole(out / "compare.json", whole.encode("utf-8", "backslashreplace").decode() + "\n")
    print("\n".join(["", *lines(told), "", *(f"note: {note}" for note in told["notes"]), told["verdict"], "", *files]))
    return told


def lines(told: dict[str, Any]) -> list[str]:
    """The table as text: a figure and its 95 % interval for every protocol."""
    protocols = list(dict.fromkeys(gap["protocol"] for gap in told["differences"]))
    metric, digits = told["metric"], 1 if told["metric"] == "top1" else 3
    rows = [["", *({"knn": "kNN", "linear": "linear probe", "finetune": "fine-tuned"}.get(protocol, protocol) for protocol in protocols)]]
    for row in told["table"]:
        cells = [row["name"]]
        for protocol in protocols:
            if protocol not in row:
                cells.append("")
                continue
            value, bounds = row[protocol][metric], row[protocol]["interval"]
            known = value is not None and bounds
            cells.append(f"{value:.{digits}f}  ({bounds[0]:.{digits}f} to {bounds[1]:.{digits}f})" if known else "not defined")
        rows.append(cells)
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    said = {"top1": "Right answers in percent", "auroc": "Area under the ROC curve", "r2": "R²"}[metric]
    return [f"{said} on {told['n_val']:,} pictures (95 % interval)", "", *("  ".join(cell.ljust(w) for cell, w in zip(row, wide)).rstrip() for row in rows)]


def _check(words: Sequence[str], look: Look, asked: Compare, data: Any) -> None:
    """Refuse what can be refused from the words alone."""
    if not words:
        raise Refused("ENCODER is missing: unmask compare DATA ENCODER ENCODER …")
    twice = next((word for i, word in enumerate(words) if word in words[:i]), None)
    if twice is not None:
        raise Refused(f"ENCODER {twice} is named twice")
    if look.random:
        raise Refused("--random: compare measures random weights beside every encoder anyway; random:NAME is an encoder of its own")
    for word in words:
        identify(word)
    for place in (data, asked.val):
        check_data(place)
    check_labels(asked.labels)
    if Path(asked.out).is_file():
        raise Refused(f"--out {asked.out} is a file: give a folder for compare.html and compare.json")


def _contenders(words: Sequence[str], source: Any, val: Any, look: Look) -> tuple[list[Any], dict[str, Any]]:
    """Every encoder opened, all at one size, before anything is computed; then their random twins and the pixels."""
    from unmask.compare import Contender
    from unmask.evaluation.comparison import Entrant

    found, twins, sight = list[Any](), dict[Any, tuple[str, list[str]]](), dict[str, Any]()
    size = look.img_size
    short = dict(zip(words, names(words)))
    for word in words:
        drawn = word.startswith("random:")
        mine = replace(look, img_size=size, patch_size=look.patch_size if drawn else None, in_chans=look.in_chans if drawn else None)
        opened, teaching, sight = _opened(word, source, mine, look)
        size = opened.img_size
        judging = sight_of(word, val, mine, None, opened)[1] if val is not None else teaching
        found.append(Contender(Entrant(short[word], "encoder", opened.name), word, opened, teaching, judging))
        twins.setdefault(_architecture(opened), (word, []))[1].append(short[word])
    given = {_architecture(one.encoder) for one, word in zip(found, words) if word.startswith("random:")}
    rows = [(word, names) for architecture, (word, names) in twins.items() if architecture not in given]
    for word, whose in rows:
        opened, teaching, _ = sight_of(word, source, replace(look, img_size=size, patch_size=None, in_chans=None, random=True), None)
        judging = sight_of(word, val, look, None, opened)[1] if val is not None else teaching
        name = "random encoder" if len(rows) == 1 and len(whose) == len(words) else f"random encoder ({' and '.join(whose)})"
        found.append(Contender(Entrant(name, "random", opened.name, tuple(whose)), word, opened, teaching, judging))
    first = found[0]
    found.append(Contender(Entrant("pixel statistics", "pixels", "", tuple(short.values())), first.word, first.encoder, first.teaching, first.judging))
    return found, sight


def _tuned(one: Any, data: Any, look: Look, asked: Compare) -> Any:
    """The contender with a finished run that trained it on the labels: made now, gone on with, or found finished from an earlier call."""
    scratch = one.entrant.kind == "random"
    folder = Path(asked.out) / "finetune" / re.sub(r"[^\w.-]+", "-", one.entrant.name).strip("-.")
    labelled = {name: getattr(asked, name) for name in ("val", *(field.name for field in fields(Labelled)))}
    labelled = {name: str(value) if isinstance(value, Path) else value for name, value in labelled.items()}
    drawn = {"patch_size": look.patch_size, "in_chans": look.in_chans} if one.word.startswith("random:") else {}
    more = {"scratch": scratch, "img_size": one.encoder.img_size, "seed": look.seed, "epochs": asked.finetune_epochs, "workers": look.workers, "tile": look.tile}
    more |= {"accelerator": look.accelerator, "max_bad_share": look.max_bad_share, "window": look.window, **drawn, **labelled}
    recipe, _ = transfer.asked("finetune", one.word, data, folder, None, {name: value for name, value in more.items() if value is not None})
    transfer.one(recipe, folder)
    return replace(one, tuned=folder)


def _opened(word: str, source: Any, mine: Look, look: Look) -> tuple[Any, Any, dict[str, Any]]:
    """An encoder at the size of the first one; Refused where its patches do not fit into it."""
    try:
        found = sight_of(word, source, mine, None)
        patch, (height, width) = found[0].patch_size, found[0].img_size
        if patch and (height % patch[0] or width % patch[1]):
            raise Refused(f"--img_size {height} {width} is no multiple of the encoder's patch {patch[0]}")
        return found
    except Refused as error:
        if look.img_size is None and mine.img_size is not None and "--img_size" in str(error):
            height, width = mine.img_size
            raise Refused(f"{word} cannot look at {height} x {width} pixels, the first ENCODER's size ({error}): give --img_size") from None
        raise


def _architecture(opened: Any) -> tuple[str, str]:
    """What makes two random networks the same, their size in pixels aside."""
    return opened.name.split(".")[0], repr(sorted((key, value) for key, value in opened.kwargs.items() if key != "img_size" and value not in (None, False)))


def names(words: Sequence[str]) -> list[str]:
    """What a table calls encoders: the word itself, of a path as much of its end as tells it from the others."""
    found = []
    for word in words:
        parts = Path(word).parts
        others = [Path(other).parts for other in words if other != word]
        if not os.path.exists(word) or len(parts) <= 2:
            found.append(word)
            continue
        found.append(next("/".join(parts[-n:]) for n in range(2, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others)))
    return found
