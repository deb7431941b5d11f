"""Who is better, and who cannot be told from whom, in one plain sentence.

The sentence rests on one protocol, named in it; the others are asked whether they agree. Where it compares several encoders, every
interval is widened so that all differences of its kind hold together 95 times in 100 (Bonferroni): all pairs of
encoders are one kind, all encoders against the floors (pixel statistics, random weights) another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from unmask.evaluation.paired import LEVEL, Difference, Judged, difference

UNITS = {"top1": "points", "auroc": "AUROC", "r2": "R²"}
SAID = {"knn": "kNN", "linear": "linear", "finetune": "fine-tuned"}


@dataclass(frozen=True)
class Field:
    """Everything the sentence is made of.

    `judged`: protocol -> name -> its figure on the same pictures; the last protocol decides. `encoders`: the names that compete.
    `floors`: what an encoder must beat, in words -> encoder -> the name of the row that it must beat.
    """

    judged: Mapping[str, Mapping[str, Judged]]
    encoders: Sequence[str]
    floors: Mapping[str, Mapping[str, str]]
    metric: str = "top1"
    groups: np.ndarray | None = None

    @property
    def deciding(self) -> str:
        return list(self.judged)[-1]

    def ranked(self, protocol: str | None = None) -> list[str]:
        """The encoders by their figure, the best first."""
        return sorted(self.encoders, key=lambda name: -self.judged[protocol or self.deciding][name].value)

    def between(self, protocol: str | None = None) -> dict[tuple[str, str], Difference]:
        """Every pair of encoders, the better figure first."""
        pairs = list(combinations(self.ranked(protocol), 2))
        return self._differences(pairs, protocol)

    def above(self, protocol: str | None = None) -> dict[tuple[str, str], Difference]:
        """Every encoder against every floor, (encoder, row of the floor); without `protocol` by the last one that the floor has."""
        pairs = [(name, row) for floor in self.floors.values() for name, row in floor.items() if protocol is None or row in self.judged[protocol]]
        return self._differences(list(dict.fromkeys(pairs)), protocol)

    def last_of(self, row: str) -> str:
        """The last protocol under which a row was measured: pixel statistics cannot be fine-tuned."""
        return next(protocol for protocol in reversed(list(self.judged)) if row in self.judged[protocol])

    def _differences(self, pairs: Sequence[tuple[str, str]], protocol: str | None) -> dict[tuple[str, str], Difference]:
        level, found = 1 - (1 - LEVEL) / max(len(pairs), 1), {}
        for one, two in pairs:
            figures = self.judged[protocol or self.last_of(two)]
            found[one, two] = difference(figures[one], figures[two], self.groups, level)
        return found


def verdict(field: Field) -> str:
    """The sentence."""
    first, floor = _first(field), _floors(field)
    return f"{first}; {floor}." if floor else f"{first}."


def amount(field: Field, found: Difference, of: float | None = None) -> str:
    """`3.1 ± 0.8 points`; the size of the difference, without its sign."""
    value = abs(found.value) if of is None else of
    if not math.isfinite(found.half):
        return f"{_number(field, value, 1.0)} {UNITS[field.metric]}, with no interval, for the pictures are all of one group"
    return f"{_number(field, value, found.half)} ± {_number(field, found.half, found.half)} {UNITS[field.metric]}"


def _number(field: Field, value: float, half: float) -> str:
    """With the digits that the interval leaves a meaning."""
    return f"{value:.{3 if field.metric != 'top1' else 2 if half < 0.095 else 1}f}"


def _first(field: Field) -> str:
    names, how = field.ranked(), SAID.get(field.deciding, field.deciding)
    count = len(field.judged[field.deciding][names[0]].pulls)
    if len(names) == 1:
        value = field.judged[field.deciding][names[0]].value
        return f"{names[0]} reaches {f'{value:.1f} %' if field.metric == 'top1' else f'{value:.3f} {UNITS[field.metric]}'} on {count:,} pictures ({how})"
    found = field.between()
    if len(names) == 2:
        one, two = names
        gap, others = found[one, two], _agreement_of_two(field, one, two)
        if gap.better:
            return f"{one} is better than {two} by {amount(field, gap)} ({how}{others})"
        if gap.half == 0 or (gap.only_first == gap.only_second == 0):
            return f"{one} and {two} are right and wrong on the same {count:,} pictures ({how}{others})"
        return f"{one} and {two} cannot be told apart on these {count:,} pictures: the difference is {amount(field, gap)} ({how}{others})"
    best, rest = names[0], names[1:]
    level = [name for name in rest if not found[best, name].better]
    worse = [name for name in rest if found[best, name].better]
    how += _agreement_of_many(field, best)
    if not level:
        return f"{best} is the best of the {len(names)}, {amount(field, found[best, worse[0]])} above {worse[0]}, the next ({how})"
    gaps = listed([amount(field, found[best, name]) for name in level])
    told = f"{best} has the highest figure, but {listed(level)} cannot be told from it on these {count:,} pictures ({gaps} below; {how})"
    if not worse:
        return told
    return f"{told}; {listed(worse)} {'is' if len(worse) == 1 else 'are'} worse than {best}, by {listed([amount(field, found[best, name]) for name in worse])}"


def _agreement_of_two(field: Field, one: str, two: str) -> str:
    """Whether the other protocols say the same of two encoders."""
    decided, parts = field.between()[one, two].better, []
    for protocol in list(field.judged)[:-1]:
        figures = field.judged[protocol]
        gap, how = difference(figures[one], figures[two], field.groups), SAID.get(protocol, protocol)
        if gap.better == decided:
            parts.append(f"{how} agrees")
        elif not gap.better:
            parts.append(f"{how} cannot tell them apart")
        else:
            winner = one if gap.better > 0 else two
            parts.append(f"{how} {'says the opposite' if decided else f'puts {winner} ahead'}, by {amount(field, gap)}")
    return "".join(f"; {part}" for part in parts)


def _agreement_of_many(field: Field, best: str) -> str:
    parts = list[str]()
    for protocol in list(field.judged)[:-1]:
        first = field.ranked(protocol)[0]
        parts.append(f"{SAID.get(protocol, protocol)} {'too' if first == best else f'puts {first} first'}")
    return "".join(f"; {part}" for part in parts)


def _floors(field: Field) -> str:
    """What is beaten and what is not: floors about which the same can be said are named together."""
    above = field.above()
    said: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for words, rows in field.floors.items():
        if rows:
            by = field.last_of(next(iter(rows.values())))
            named = words if by == field.deciding else f"{words} ({SAID.get(by, by)})"
            said.setdefault(tuple((name, above[name, row].better) for name, row in rows.items()), []).append(named)
    clauses = []
    for standing, beside in said.items():
        floor = listed(beside)
        names = {state: [name for name, better in standing if better == state] for state in (1, 0, -1)}
        everybody = len(standing) == len(field.encoders)
        if len(field.encoders) == 1:
            clauses.append(_alone(field, beside, standing[0][1]))
            continue
        parts = list[str]()
        for state, verb, verbs in ((1, "beats", "beat"), (0, "is not shown to beat", "are not shown to beat"), (-1, "is worse than", "are worse than")):
            if not names[state]:
                continue
            if len(names[state]) == len(standing) and everybody:
                who = "both" if len(standing) == 2 else f"all {len(standing)}"
                if state == 0:
                    parts.append(f"{'neither' if len(standing) == 2 else 'none'} is shown to beat {floor}")
                    continue
            else:
                who = listed(names[state])
            parts.append(f"{who} {verb if len(names[state]) == 1 else verbs} {floor if not parts else 'it' if len(beside) == 1 else 'them'}")
        clauses.append(", ".join(parts))
    return "; ".join(clauses)


def _alone(field: Field, words: Sequence[str], state: int) -> str:
    """One encoder against its floors, each with its amount."""
    (name,), above = field.encoders, field.above()
    rows = {floor: field.floors[floor.partition(" (")[0]][name] for floor in words}
    gaps = [f"{floor} by {amount(field, above[name, row])}" for floor, row in rows.items()]
    if state > 0:
        return f"it beats {listed(gaps)}"
    if state < 0:
        return f"it is worse than {listed(gaps)}"
    spoken = [f"{floor} (difference {signed(field, above[name, row])})" for floor, row in rows.items()]
    return f"it is not shown to beat {listed(spoken)}"


def signed(field: Field, found: Difference) -> str:
    """The amount with its sign."""
    return ("-" if found.value < 0 else "") + amount(field, found)


def listed(words: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
