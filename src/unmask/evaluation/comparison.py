"""What several encoders answered to the same judging pictures, and everything that follows from it: figures, differences, the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from unmask.evaluation.metrics import FEW, METRIC, score
from unmask.evaluation.paired import Difference, Judged, explained, mean_auroc, share_right
from unmask.evaluation.ranking import SAID, Field, signed, verdict

PIXELS, RANDOM = "pixel statistics", "the random encoder"  # the floors, in the words of the verdict
LONG = ("per_tag", "per_number", "intervals", "left_out", "interval_over")  # of a row of figures: left to `unmask evaluate`
JUDGES = {"classes": share_right, "tags": mean_auroc, "numbers": explained}


@dataclass(frozen=True)
class Entrant:
    """One row of the table: an encoder that competes, or a floor that the encoders `floor_of` must beat."""

    name: str
    kind: Literal["encoder", "random", "pixels"]
    model: str = ""  # timm's name of the network
    floor_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The answers of every entrant under every protocol; the last protocol decides.

    `truth`: class numbers (m,), or tags or numbers (m, K); `answers`: protocol -> entrant -> logits or votes (m, classes), or
    scores or numbers (m, K); `settings`: protocol -> entrant -> how its row came about.
    """

    task: Literal["classes", "tags", "numbers"]
    names: Sequence[str]  # of the classes, tags or numbers
    paths: Sequence[str]  # of the judging pictures
    truth: np.ndarray
    groups: np.ndarray | None
    entrants: Sequence[Entrant]
    answers: Mapping[str, Mapping[str, np.ndarray]]
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    ids: Sequence[int] = ()  # numbers of the judging pictures in their source
    about: Mapping[str, Any] = field(default_factory=dict)  # of all rows alike: how many teach, how they were chosen, size, seed
    notes: Sequence[str] = ()  # what a reader should know before he believes the figures

    @property
    def metric(self) -> str:
        return METRIC[self.task]

    @property
    def encoders(self) -> list[str]:
        return [one.name for one in self.entrants if one.kind == "encoder"]

    def judged(self) -> dict[str, dict[str, Judged]]:
        """Every figure, with what each picture adds to it."""
        return {protocol: {name: JUDGES[self.task](each, self.truth) for name, each in answers.items()} for protocol, answers in self.answers.items()}

    def field(self) -> Field:
        """What the verdict is made of."""
        floors: dict[str, dict[str, str]] = {PIXELS: {}, RANDOM: {}}
        for one in self.entrants:
            if one.kind != "encoder":
                floors[PIXELS if one.kind == "pixels" else RANDOM] |= dict.fromkeys(one.floor_of, one.name)
        return Field(self.judged(), self.encoders, floors, self.metric, self.groups)

    def figures(self) -> dict[str, dict[str, dict[str, Any]]]:
        """protocol -> entrant -> its figures with their intervals, as `unmask evaluate` has them."""
        truth, groups = torch.from_numpy(self.truth), None if self.groups is None else torch.from_numpy(self.groups)
        seed = int(self.about.get("seed", 0))
        return {
            protocol: {name: score(self.task, torch.from_numpy(each), truth, seed, groups, self.names) for name, each in answers.items()}
            for protocol, answers in self.answers.items()
        }

    def told(self) -> dict[str, Any]:
        """All of it as plain values, without the answers: what `unmask compare` prints last."""
        made = self.field()
        figures = self.figures()
        table = [self._row(one, figures) for one in self.entrants]
        gaps = [
            self._gap(protocol, pair, found)
            for protocol in made.judged
            for kind in (made.between(protocol), made.above(protocol))
            for pair, found in kind.items()
        ]
        return {
            "verdict": verdict(made),
            "task": self.task,
            "metric": self.metric,
            "deciding": made.deciding,
            "table": table,
            "pixel_statistics": next((row for row in table if row["kind"] == "pixels"), None),
            "differences": gaps,
            "notes": [*self.notes, *_doubts(made), *self._warnings()],
            "n_val": len(self.truth),
            "groups": None if self.groups is None else len(np.unique(self.groups)),
            self.task: len(self.names),
            **self.about,
        }

    def _row(self, one: Entrant, figures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
        row: dict[str, Any] = {"name": one.name, "kind": one.kind, "model": one.model or None}
        if one.kind != "encoder":
            row["floor_of"] = list(one.floor_of)
        for protocol, found in figures.items():
            if one.name in found:
                row[protocol] = {name: value for name, value in found[one.name].items() if name not in ("metric", *LONG)}
                row[protocol] |= self.settings.get(protocol, {}).get(one.name, {})
        return row

    def _gap(self, protocol: str, pair: tuple[str, str], found: Difference) -> dict[str, Any]:
        row = {"protocol": protocol, "first": pair[0], "second": pair[1], "difference": _plain(found.value, 6), "half_width": _plain(found.half, 6)}
        row |= {"level": round(found.level, 6), "told_apart": bool(found.better)}
        if found.only_first is not None:
            row |= {"only_first_right": found.only_first, "only_second_right": found.only_second}
        return row | ({"mcnemar_p": found.p} if found.p is not None else {})

    def _warnings(self) -> list[str]:
        if self.groups is None:
            return []
        count = len(np.unique(self.groups))
        said = f"pictures of one group count together: {len(self.truth):,} pictures in {count:,} groups"
        return [said + ("; so few make every interval wide, and trust it less" if count < FEW else "")]

    def belief(self, protocol: str, name: str) -> np.ndarray:
        """The answers as shares of belief in each class (m, K), or in each tag; numbers as they are."""
        answers: np.ndarray = self.answers[protocol][name].astype(np.float64)
        logits = bool((answers < 0).any() or (answers > 1).any())
        if self.task == "classes":
            positive: np.ndarray = np.exp(answers - answers.max(axis=1, keepdims=True)) if (answers < 0).any() else answers
            return positive / np.maximum(positive.sum(axis=1, keepdims=True), 1e-12)
        return 1 / (1 + np.exp(-answers.clip(-60, 60))) if self.task == "tags" and logits else answers

    def closeness(self, protocol: str, name: str) -> np.ndarray:
        """How near each answer is to the truth (m,), larger is nearer: the belief in the true class, or less distance."""
        belief = self.belief(protocol, name)
        if self.task == "classes":
            return belief[np.arange(len(belief)), self.truth]
        distance = np.abs(belief - self.truth) / (np.nanstd(self.truth, axis=0) if self.task == "numbers" else 1.0)
        return -np.nanmean(np.where(np.isfinite(distance), distance, np.nan), axis=1)

    def spoken(self, row: int, belief: np.ndarray | None = None) -> str:
        """The truth about a picture, or the answer in a row of `belief`, in words."""
        value = self.truth[row] if belief is None else belief[row]
        if self.task == "classes":
            return self.names[int(value if belief is None else value.argmax())]
        if self.task == "tags":
            return ", ".join(self.names[i] for i in np.argsort(-np.nan_to_num(value), kind="stable") if value[i] >= 0.5) or "none"
        return ", ".join(f"{name} {number:.4g}" for name, number in zip(self.names, value) if np.isfinite(number))

    def pictures(self) -> list[dict[str, Any]]:
        """Each judging picture with the truth and every answer, for the file."""
        last = list(self.answers)[-1]
        beliefs = {name: self.belief(last, name) for name in self.answers[last]}
        return [
            {"path": path, "truth": self.spoken(row), "answers": {name: self.spoken(row, belief) for name, belief in beliefs.items()}}
            for row, path in enumerate(self.paths)
        ]


def _doubts(made: Field) -> list[str]:
    """What the sentence says of the floors by the deciding protocol, and another protocol does not show."""
    sure, said = made.above(), list[str]()
    for protocol in list(made.judged)[:-1]:
        for (name, floor), gap in made.above(protocol).items():
            if sure[name, floor].better > 0 and gap.better <= 0:
                shown = "is worse than" if gap.better < 0 else "is not shown to beat"
                said.append(f"by {SAID.get(protocol, protocol)}, {name} {shown} {floor} ({signed(made, gap)})")
    return said


def _plain(value: float, digits: int) -> float | None:
    """JSON knows no infinity."""
    return round(float(value), digits) if math.isfinite(value) else None
