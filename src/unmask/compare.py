"""Several encoders under one protocol: the same pictures teach and the same judge, at one size, beside random weights and pixel statistics.

Each encoder's features are computed once, serve every protocol, and are dropped before the next encoder is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmask.data.loader import Pictures
from unmask.errors import Refused
from unmask.evaluation.comparison import Comparison, Entrant
from unmask.evaluation.features import FeatureTable, extract, pixel_statistics, poolings
from unmask.evaluation.measure import by_knn, by_linear
from unmask.evaluation.metrics import METRIC, worth
from unmask.evaluation.ranking import SAID, UNITS
from unmask.interchange.timm import Encoder
from unmask.load import load
from unmask.transfer.classifier import Classifier

PROTOCOLS = {"knn": by_knn, "linear": by_linear}


@dataclass(frozen=True)
class Contender:
    """An entrant with its network, and the pictures as that network wants them: those that teach and those that judge."""

    entrant: Entrant
    word: str  # the ENCODER that was named; of a random network the one whose architecture it has
    encoder: Encoder
    teaching: Pictures
    judging: Pictures
    tuned: Path | None = None  # the run that trained it further on the teaching pictures


@dataclass(frozen=True)
class Answers:
    """What one entrant answered: protocol -> (m, …), for the pictures `ids (m,)`, and how each came about."""

    ids: np.ndarray
    truth: np.ndarray
    groups: np.ndarray | None
    answers: dict[str, np.ndarray]
    settings: dict[str, dict[str, Any]]
    seen_twice: int = 0  # judging pictures that are, to the last bit, among the teaching ones (known of pixel statistics only)


def compare(
    contenders: Iterable[Contender], teach: Sequence[int], judge: Sequence[int], chosen: str, *, seed: int = 0, pooling: str = "auto", **sight: Any
) -> Comparison:
    """Measure all of them. `teach` and `judge` are numbers in each one's pictures, `chosen` says how they were chosen.

    `sight`: batch_size, workers, device. A judging picture that one of them cannot read counts for none.
    """
    start, everybody, found = time.perf_counter(), list(contenders), dict[Entrant, Answers]()
    for one in everybody:
        known = poolings(one.encoder.model)
        if one.entrant.kind != "pixels" and pooling not in ("auto", *known):
            raise Refused(f"--pooling {pooling}: {one.entrant.name} has only {', '.join(known)}")
    for one in everybody:
        found[one.entrant] = _answers(one, teach, judge, seed, pooling, sight)
        print(f"{one.entrant.name}: {_spoken(found[one.entrant], one.judging)}", flush=True)
    one = everybody[0]
    first, labels = found[one.entrant], one.judging.labels
    assert labels is not None
    common = set.intersection(*(set(each.ids.tolist()) for each in found.values()))
    shared = [i for i in first.ids.tolist() if i in common]
    rows = {entrant: [place[i] for i in shared] for entrant, each in found.items() for place in [{int(i): row for row, i in enumerate(each.ids)}]}
    mine, protocols = rows[one.entrant], list(first.answers)
    return Comparison(
        labels.kind,
        labels.names,
        [one.judging.source.name(i) for i in shared],
        first.truth[mine],
        None if first.groups is None else first.groups[mine],
        list(found),
        {protocol: {entrant.name: each.answers[protocol][rows[entrant]] for entrant, each in found.items() if protocol in each.answers} for protocol in protocols},
        {protocol: {entrant.name: each.settings[protocol] for entrant, each in found.items() if protocol in each.answers} for protocol in protocols},
        shared,
        {
            "n_train": len(teach),
            "val": chosen,
            "img_size": list(one.encoder.img_size),
            "pooling": pooling,
            "seed": seed,
            "seconds": round(time.perf_counter() - start, 2),
        },
        _notes(found, len(judge) - len(shared)),
    )


def _answers(one: Contender, teach: Sequence[int], judge: Sequence[int], seed: int, pooling: str, sight: dict[str, Any]) -> Answers:
    """Its features of both sides, then one protocol after the other."""
    if one.entrant.kind == "pixels":
        size = {"batch_size": sight["batch_size"], "workers": sight["workers"]}
        train, test = (pixel_statistics(pictures, rows, **size) for pictures, rows in ((one.teaching, teach), (one.judging, judge)))
    else:
        train = extract(one.encoder, one.teaching, teach, **sight, title=f"pictures to learn from, {one.entrant.name}")
        test = extract(one.encoder, one.judging, judge, **sight, title=f"pictures to judge by, {one.entrant.name}")
        one.encoder.model.to("cpu")
    own = "auto" if one.entrant.kind == "pixels" else pooling
    names, answers, settings = one.teaching.labels.names if one.teaching.labels is not None else [], {}, {}
    for protocol, ask in PROTOCOLS.items():
        begin = time.perf_counter()
        given, said = ask(train, test, len(names), own, seed)
        answers[protocol] = given.float().cpu().numpy()
        settings[protocol] = {name: value for name, value in said.items() if name != "protocol"} | {"seconds": round(time.perf_counter() - begin, 2)}
    assert test.ids is not None
    if one.tuned is not None:
        answers["finetune"] = _tuned(one.tuned, one.judging, test.ids.tolist(), sight)
        settings["finetune"] = {"run": str(one.tuned)}
    groups = None if test.groups is None else test.groups.numpy()
    return Answers(test.ids.numpy(), test.truth().numpy(), groups, answers, settings, _twice(train, test) if one.entrant.kind == "pixels" else 0)


@torch.inference_mode()
def _tuned(run: Path, judging: Pictures, ids: Sequence[int], sight: dict[str, Any]) -> np.ndarray:
    """What the fine-tuned network answers to the judging pictures: shares of belief, or numbers (m, K)."""
    learner = load(run)
    if not isinstance(learner, Classifier):
        raise Refused(f"{run} is no fine-tuned run")
    learner = learner.eval().to(sight["device"])
    batches = judging.numbered_batches(sight["batch_size"], workers=sight["workers"], indices=ids)
    return torch.cat([learner.predict(x.to(sight["device"])).float().cpu() for x, _ in batches]).numpy()


def _twice(train: FeatureTable, test: FeatureTable) -> int:
    """Judging pictures whose statistics equal, bit for bit, those of a teaching picture: the same file, almost surely."""
    known = {row.tobytes() for row in train.of("pixels").numpy()}
    return sum(row.tobytes() in known for row in test.of("pixels").numpy())


def _spoken(found: Answers, judging: Pictures) -> str:
    """The figures of one entrant in a line, as soon as they are known."""
    assert judging.labels is not None
    kind = judging.labels.kind
    form = "{} {:.1f} %" if kind == "classes" else "{} " + UNITS[METRIC[kind]] + " {:.3f}"
    truth = torch.from_numpy(found.truth)
    return ", ".join(form.format(SAID.get(protocol, protocol), worth(kind, torch.from_numpy(given), truth)) for protocol, given in found.answers.items())


def _notes(found: dict[Entrant, Answers], lost: int) -> list[str]:
    notes = []
    twice = max(each.seen_twice for each in found.values())
    if twice:
        notes.append(f"{twice:,} judging pictures are among the teaching ones too, so all figures are too good: unmask neighbours ENCODER DATA --val finds them")
    if lost:
        notes.append(f"{lost:,} judging pictures cannot be read and are left out for all")
    return notes
