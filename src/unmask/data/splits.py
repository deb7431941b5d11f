"""Which pictures teach and which judge: chosen so that both sides look alike and no patient, scene or video stands on both.

Everybody who needs two parts asks `parts`; whoever needs a held-out part of one table asks `held_out`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from unmask import seeds
from unmask.data.labels import Labels, aligned
from unmask.data.loader import Pictures
from unmask.data.quarantine import BadSample
from unmask.errors import Refused

HELD_OUT = 0.2  # of DATA's labelled pictures, where there are none to judge by
TRAIN, VAL = ("train", "training"), ("val", "valid", "validation", "test", "testing")
QUANTILES = 10  # strata of a quantity
PASSES = 8  # rounds in which groups change sides, while that helps
EXCHANGES = 10_000_000  # numbers that may be added up in looking for two groups to exchange: about half a second
LABEL_HELP = "put each class in a folder of its own, or give --labels FILE (CSV, TSV or parquet with the columns path and label)"


class Parts(NamedTuple):
    """Who teaches, who judges, and how that was chosen, in words."""

    teaching: Pictures  # those that were given; DICOM files with their patients as groups
    teach: list[int]  # numbers in `teaching`
    judging: Pictures  # with labels in the teaching pictures' names
    judge: list[int]  # numbers in `judging`
    said: str


def labelled(pictures: Pictures, name: str) -> np.ndarray:
    """The numbers of the pictures of which something is known; Refused where there are none."""
    if pictures.labels is None or not pictures.labels.known.any():
        raise Refused(f"{name} has no labels: {LABEL_HELP}")
    return np.flatnonzero(pictures.labels.known)


def parts(pictures: Pictures, val: Pictures | None, name: str, seed: int) -> Parts:
    """By --val, else by the split column, else by train/ and val/ folders, else a stratified fifth that keeps groups apart.

    Where no groups are given, the patients of DICOM files are groups.
    """
    known = labelled(pictures, name)
    pictures, val = by_patient(pictures), None if val is None else by_patient(val)
    labels = pictures.labels
    assert labels is not None
    if val is not None:
        return _by_val(pictures, val, known, name)
    if labels.splits is not None:
        return _by_column(pictures, labels, known, name)
    folders = {word: np.intersect1d(numbers, known) for word, numbers in pictures.source.splits.items()}
    teach, judge = (next((folders[word] for word in words if word in folders), None) for words in (TRAIN, VAL))
    if teach is not None and judge is not None and len(teach) and len(judge):
        return Parts(pictures, teach.tolist(), pictures, judge.tolist(), "DATA's own folders" + _warned(labels, teach, labels, judge))
    kept, held, said = held_out(labels.rows(known), HELD_OUT, seed)
    if not len(held):
        raise Refused(f"{name} has too few labelled pictures to keep some apart: give others to judge by with --val")
    return Parts(pictures, known[kept].tolist(), pictures, known[held].tolist(), said)


def by_patient(pictures: Pictures) -> Pictures:
    """The same pictures, grouped by patient where they are DICOM files of several patients and have no groups; only heads of files are read."""
    labels, source = pictures.labels, pictures.source

    def patient(number: int) -> int:
        try:
            hashed = source.picture(int(number)).patient
        except BadSample:
            hashed = None
        return -1 - int(number) if hashed is None else int(hashed[:15], 16)  # below 0: alone

    if labels is None or labels.groups is not None or not labels.known.any():
        return pictures
    known = np.flatnonzero(labels.known)
    if all(patient(number) < 0 for number in known[:: max(1, len(known) // 4)]):
        return pictures
    groups: np.ndarray = -1 - np.arange(len(labels))
    with ThreadPoolExecutor(8) as pool:
        groups[known] = list(pool.map(patient, known))
    if len(np.unique(groups[known])) < 2:
        return pictures
    print(f"groups: {len(np.unique(groups[known])):,} patients by PatientID (hashed, never shown), kept apart")
    grouped = copy.copy(pictures)
    grouped.labels = replace(labels, groups=groups)
    return grouped


def _by_val(pictures: Pictures, val: Pictures, known: np.ndarray, name: str) -> Parts:
    labels = pictures.labels
    assert labels is not None
    if val.labels is None or not val.labels.known.any():
        raise Refused(f"the pictures to judge by (--val) have no labels: {LABEL_HELP}")
    judging = copy.copy(val)
    judging.labels = aligned(val.labels, labels)
    judge = np.flatnonzero(judging.labels.known)
    unknown = int(val.labels.known.sum()) - len(judge)
    if not len(judge):
        raise Refused(f"DATA and --val have no class in common: {', '.join(labels.names[:3])} … and {', '.join(val.labels.names[:3])} …")
    if unknown:
        print(f"warning: {unknown:,} pictures of --val are of {labels.kind} that {name} does not have: they are left out")
    return Parts(pictures, known.tolist(), judging, judge.tolist(), "--val" + _warned(labels, known, judging.labels, judge))


def _by_column(pictures: Pictures, labels: Labels, known: np.ndarray, name: str) -> Parts:
    assert labels.splits is not None
    of = {part: known[labels.splits[known] == part] for part in ("train", "val", "test", "")}
    judges = "val" if len(of["val"]) else "test"
    if not len(of["train"]) or not len(of[judges]):
        there = ", ".join(f"{part or 'no part'} {len(numbers):,}" for part, numbers in of.items() if len(numbers))
        raise Refused(f"the split column of {name} names no pictures that {'judge' if len(of['train']) else 'teach'} (labelled pictures: {there})")
    spare = "".join(f", {len(of[part]):,} of {part or 'no part'} left alone" for part in ("test", "") if part != judges and len(of[part]))
    said = f"the split column: {judges} judges{spare}" + _warned(labels, of["train"], labels, of[judges])
    return Parts(pictures, of["train"].tolist(), pictures, of[judges].tolist(), said)


def _warned(labels: Labels, teach: np.ndarray, others: Labels, judge: np.ndarray) -> str:
    """What a split that was given does: groups on both sides, classes that nobody teaches."""
    said = ""
    if labels.groups is not None and others.groups is not None:
        count = int((np.intersect1d(labels.groups[teach], others.groups[judge]) >= 0).sum())
        said = f"; warning: {count:,} groups stand on both sides, which flatters" if count else ", groups apart"
    untaught = np.setdiff1d(others.values[judge], labels.values[teach]) if labels.kind == "classes" else np.empty(0)
    if len(untaught):
        names = ", ".join(labels.names[number] for number in untaught[:3])
        said += f"; warning: no picture teaches {names}" + (f" and {len(untaught) - 3:,} more" if len(untaught) > 3 else "")
    return said


def held_out(labels: Labels, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """(rows kept, rows held out, how, in words): a `share` of every class, tag or range of a quantity; groups stay whole. Of known rows.

    A function of the labels and the seed. A class of one picture, or of one group, is only learnt from. Refused with one group.
    """
    order = seeds.uniform((len(labels),), seed, "split").numpy()
    if labels.groups is not None:
        return _whole_groups(labels, share, seed)
    held = _stratified(labels, share, order)
    alike = {"classes": "each class", "tags": "each tag", "numbers": "low and high numbers"}[labels.kind]
    return np.flatnonzero(~held), np.flatnonzero(held), f"{share:.0%} of DATA, of {alike} alike, kept apart"


def drawn(labels: Labels, share: float, seed: int, *keys: int) -> np.ndarray:
    """The rows of a subset: a `share` of every class, tag or range of a quantity, whole groups where there are groups. `keys` number the subset."""
    if share >= 1:
        return np.arange(len(labels))
    if labels.groups is not None:
        return _whole_groups(labels, share, seed, *keys)[1]
    return np.flatnonzero(_stratified(labels, share, seeds.uniform((len(labels),), seed, "subset", *keys).numpy(), round(share * len(labels))))


def _strata(labels: Labels, most: int = QUANTILES) -> np.ndarray:
    """The class of every row (n,); of one quantity its range between at most so many quantiles, equal numbers in one."""
    if labels.kind == "classes":
        return labels.values
    numbers = labels.values[:, 0]
    bins = max(1, min(QUANTILES, most, len(numbers) // 10))
    edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.asarray(np.searchsorted(edges, np.nan_to_num(numbers, nan=np.inf), side="right"))


def _memberships(labels: Labels) -> np.ndarray:
    """(n, L) float32 of 0 and 1: the tags of every row, or the ranges that its quantities are in."""
    if labels.kind == "tags":
        return np.nan_to_num(labels.values)
    columns = [Labels("numbers", labels.values[:, [column]], []) for column in range(labels.values.shape[1])]
    return np.concatenate([np.eye(QUANTILES, dtype=np.float32)[_strata(column)] for column in columns], axis=1)


def _counts(labels: Labels, of: np.ndarray, groups: int) -> np.ndarray:
    """(G, 1 + L): how many rows each group has, and how many in each stratum that is not empty."""
    if labels.kind == "classes":
        counts = np.zeros((groups, len(labels.names)))
        np.add.at(counts, (of, labels.values), 1)
    else:
        strata = _memberships(labels)
        counts = np.zeros((groups, strata.shape[1]))
        np.add.at(counts, of, strata)
    return np.concatenate([np.bincount(of, minlength=groups)[:, None], counts[:, counts.sum(axis=0) > 0]], axis=1)


def _stratified(labels: Labels, share: float, order: np.ndarray, most: int = QUANTILES) -> np.ndarray:
    """(n,) bool of the rows held out, every row by itself; a quantity has at most so many strata."""
    if labels.kind == "tags" or (labels.kind == "numbers" and labels.values.shape[1] > 1):
        return _iterative(_memberships(labels), share, order)
    strata = _strata(labels, most)
    held: np.ndarray = np.zeros(len(labels), bool)
    for number in np.unique(strata):
        rows = np.flatnonzero(strata == number)
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held[rows[order[rows].argsort(kind="stable")[:count]]] = True
    return held


def _iterative(strata: np.ndarray, share: float, order: np.ndarray) -> np.ndarray:
    """Iterative stratification (Sechidis et al., ECML PKDD 2011, algorithm 1) into two parts: the rarest stratum is dealt out first.

    Rows in no stratum are dealt out last, by the share of all rows. Of strata with two rows or more each part gets one.
    """
    n = len(strata)
    rows_left: np.ndarray = np.ones(n, bool)
    held: np.ndarray = np.zeros(n, bool)
    wanted = np.array([[1 - share], [share]]) * strata.sum(axis=0)  # (2, L): rows of each stratum that each part still wants
    wanted[1] = np.where(strata.sum(axis=0) > 1, np.maximum(wanted[1], 1), 0)
    room = np.array([(1 - share) * n, share * n])
    shuffled = order.argsort(kind="stable")
    left = strata.sum(axis=0)
    while left.max(initial=0) > 0:
        rarest = int(np.where(left > 0, left, np.inf).argmin())
        for row in shuffled[rows_left[shuffled] & (strata[shuffled, rarest] > 0)]:
            side = int(wanted[1, rarest] > wanted[0, rarest] or (wanted[1, rarest] == wanted[0, rarest] and room[1] > room[0]))
            held[row], rows_left[row] = bool(side), False
            wanted[side] -= strata[row]
            room[side] -= 1
        left = strata[rows_left].sum(axis=0)
    rest = shuffled[rows_left[shuffled]]
    held[rest[: max(0, round(room[1]))]] = True
    return held


def _exchanged(held: np.ndarray, counts: np.ndarray, cost: Callable[[np.ndarray], np.ndarray], seed: int, *keys: int) -> np.ndarray:
    """`held` (G,) after every exchange of a group held out for one that is not which lowers the cost of the counts (…, 1 + L) held out.

    Single moves stop where each of them makes one side too large. Of many groups only some exchanges are tried.
    """
    held, have, helped, turn = held.copy(), counts[held].sum(axis=0), True, 0
    tries = EXCHANGES // counts.shape[1]
    while helped and tries > 0:
        order = seeds.uniform((len(held),), seed, "exchanges", *keys, turn).numpy().argsort(kind="stable")
        helped, turn = False, turn + 1
        for out in order[held[order]]:
            others = order[~held[order]][:tries]
            tries -= len(others)
            if not len(others):
                break
            costs = cost(have - counts[out] + counts[others])  # (others,)
            if costs.min() < cost(have) - 1e-12:
                best = others[costs.argmin()]
                have = have - counts[out] + counts[best]
                held[[out, best]] = False, True
                helped = True
    return held


def _whole_groups(labels: Labels, share: float, seed: int, *keys: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Groups change sides, in a random order, then two by two, as long as that brings every stratum nearer to its share."""
    assert labels.groups is not None
    names, of = np.unique(labels.groups, return_inverse=True)
    if len(names) < 2:
        raise Refused("all labelled pictures are of one group: no part can be kept apart; give others to judge by with --val")
    counts = _counts(labels, of, len(names))
    total, spread = counts.sum(axis=0), (counts > 0).sum(axis=0)
    held: np.ndarray = np.zeros(len(names), bool)
    have = np.zeros_like(total)

    def cost(have: np.ndarray) -> np.ndarray:
        """How far each stratum is from its share; that a stratum which both sides could have is wholly on one side costs more."""
        part = have / total
        off = (part - share) ** 2 + 0.25 * ((have == 0) & (spread > 1)) + 4.0 * (have == total)
        return off.sum(axis=-1)

    for turn in range(PASSES):
        before = held.copy()
        for group in seeds.uniform((len(names),), seed, "groups", *keys, turn).numpy().argsort(kind="stable"):
            moved = have + (-1 if held[group] else 1) * counts[group]
            if cost(moved) < cost(have) - 1e-12:
                have, held[group] = moved, not held[group]
        if (before == held).all():
            break
    held = _exchanged(held, counts, cost, seed, *keys)
    rows = held[of]
    if not held.any() or held.all():
        raise Refused("the groups cannot be divided into two parts: give others to judge by with --val")
    off = np.abs(counts[~held].sum(axis=0)[1:] / (~rows).sum() - counts[held].sum(axis=0)[1:] / rows.sum()).max(initial=0)
    what = {"classes": "class", "tags": "tag", "numbers": "range"}[labels.kind]
    said = f"{rows.mean():.0%} of DATA, {held.sum():,} of {len(names):,} groups, kept apart; the two sides' shares of a {what} differ by at most {100 * off:.1f} points"
    return np.flatnonzero(~rows), np.flatnonzero(rows), said
