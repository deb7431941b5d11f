"""What is known of each picture (one class, several tags, or quantities), and what must stay together when parts are kept apart.

`read` turns the columns of any table (CSV, TSV, parquet, npz, arrays in Python) into `Labels` and says what it took them for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from unmask import seeds
from unmask.data.cells import Column, classes, columns_of, guess, numbers, tags
from unmask.errors import Refused
from unmask.options import suggestion
from unmask.settings import Labelled

if TYPE_CHECKING:
    import numpy as np

LABEL_COLUMNS = ("label", "labels", "class", "cls", "classes", "category", "fine_label", "target", "targets", "y", "Y", "y_train", "train_labels")
GROUP_COLUMNS = ("group", "groups")
SPLIT_COLUMNS = ("split", "is_test", "is_val", "is_train")
PARTS = {"train": "train training", "val": "val valid validation dev", "test": "test testing"}  # what people write for them
UNEVEN = 10  # the largest class over the smallest, above which accuracy hides the small ones


@dataclass(frozen=True, eq=False)
class Labels:
    """One row a picture."""

    kind: Literal["classes", "tags", "numbers"]  # one class a picture; several tags a picture; quantities
    values: np.ndarray  # classes: (N,) int64, -1 unknown · tags: (N, K) float32 of 0/1, NaN where unknown · numbers: (N, T) float32, NaN where unknown
    names: list[str]  # of the classes, tags or numbers
    groups: np.ndarray | None = None  # (N,) int64: patients, scenes, videos: never on both sides of a split; below 0: a picture of no group, alone
    splits: np.ndarray | None = None  # (N,) str: "train", "val", "test" or ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def known(self) -> np.ndarray:
        """(N,) bool: whether anything is known of the picture."""
        import numpy as np

        return self.values >= 0 if self.kind == "classes" else ~np.isnan(self.values).all(axis=1)

    def rows(self, ids: Any) -> Labels:
        """Those of these pictures, in this order."""
        return replace(
            self,
            values=self.values[ids],
            groups=None if self.groups is None else self.groups[ids],
            splits=None if self.splits is None else self.splits[ids],
        )

    def placed(self, rows: np.ndarray) -> Labels:
        """The labels of pictures that have these rows (-1: none, then nothing is known of them)."""
        import numpy as np

        found, none = self.rows(rows), rows < 0
        found.values[none] = -1 if self.kind == "classes" else np.nan
        if found.groups is not None:
            found.groups[none] = -1 - np.flatnonzero(none)
        if found.splits is not None:
            found.splits[none] = ""
        return found

    def counts(self) -> np.ndarray:
        """How many pictures have each class or tag, (K,)."""
        import numpy as np

        if self.kind == "classes":
            return np.bincount(self.values[self.known], minlength=len(self.names))
        return np.nansum(self.values, axis=0).astype(np.int64)

    def balance(self) -> dict[str, Any]:
        """Largest and smallest class or tag with their counts, `imbalance` (their ratio); of numbers the range. For the row of figures."""
        import numpy as np

        if self.kind == "numbers":
            low, high = np.nanmin(self.values, axis=0), np.nanmax(self.values, axis=0)
            return {"range": {name: [round(float(a), 4), round(float(b), 4)] for name, a, b in zip(self.names, low, high)}}
        counts = self.counts()
        there = np.flatnonzero(counts)
        if not len(there):
            return {}
        most, least = there[counts[there].argmax()], there[counts[there].argmin()]
        row = {"largest": [self.names[most], int(counts[most])], "smallest": [self.names[least], int(counts[least])]}
        return row | {"imbalance": round(float(counts[most] / counts[least]), 2)}

    def said(self) -> list[str]:
        """The balance in a line, and a hint where it is uneven."""
        n, row = int(self.known.sum()), self.balance()
        if self.kind == "numbers":
            parts = [f"{name} from {low:g} to {high:g}" for name, (low, high) in list(row["range"].items())[:4]]
            return [f"{n:,} pictures with numbers: {', '.join(parts)}" + (f", and {len(self.names) - 4} more" if len(self.names) > 4 else "")]
        if not row:
            return [f"{n:,} labelled pictures, none of which has a tag"]
        (most, high), (least, low) = row["largest"], row["smallest"]
        balance = f"largest {most} {high:,} ({high / n:.1%}), smallest {least} {low:,} ({low / n:.1%})" if high > low else f"{high:,} each"
        lines = [f"{n:,} labelled pictures, {len(self.names):,} {self.kind}: {balance}"]
        if row["imbalance"] > UNEVEN:
            better = "balanced_accuracy" if self.kind == "classes" else "map"
            lines.append(f"hint: the largest of the {self.kind} is {row['imbalance']:.0f} times the smallest; {better} counts all of them alike")
        return lines


def aligned(labels: Labels, like: Labels, name: str = "--val") -> Labels:
    """`labels` in the numbers of `like`, matched by the names of classes, tags or quantities, so that two sources agree. Refused."""
    import numpy as np

    if labels.kind != like.kind:
        raise Refused(f"DATA has {like.kind} and {name} has {labels.kind}: --task says which is meant")
    place = {word: number for number, word in enumerate(like.names)}
    if labels.kind == "classes":
        table = np.array([place.get(word, -1) for word in labels.names] + [-1], np.int64)  # the last: no label
        return replace(labels, values=table[labels.values], names=like.names)
    column = {word: number for number, word in enumerate(labels.names)}
    if labels.kind == "numbers" and set(place) != set(column) and len(place) == len(column) == 1:
        column = {like.names[0]: 0}  # one quantity under two names
    if not set(place) & set(column):
        raise Refused(f"DATA and {name} share none of their {labels.kind}: {', '.join(like.names[:3])} … and {', '.join(labels.names[:3])} …")
    values: np.ndarray = np.full((len(labels), len(like.names)), np.nan, np.float32)
    for word, number in place.items():
        if word in column:
            values[:, number] = labels.values[:, column[word]]
    return replace(labels, values=values, names=like.names)


@dataclass(frozen=True)
class Chosen:
    """The columns that mean something."""

    labels: tuple[str, ...]
    group: str | None = None
    split: str | None = None
    judges: str | None = None  # of --split COLUMN=VALUE
    sure: bool = True  # the column of splits was asked for, not found by its name

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in (*self.labels, self.group, self.split) if name))


def choose(names: Sequence[str], asked: Labelled, where: str, rest: bool = False) -> Chosen:
    """Columns by the names that were asked for (`-`: none), else by usual names; `rest`: else all that is left are labels. Refused."""
    split, _, judges = (asked.split or "").partition("=")
    for option, name in (("group", asked.group), ("split", split), *(("label", name) for name in _words(asked.label))):
        if name and name != "-" and name not in names:
            near = suggestion(name, names) or f" (it has {', '.join(list(names)[:20]) or 'none'})"
            raise Refused(f"--{option} {name}: {where} has no column '{name}'{near}")
    group = asked.group or next((name for name in GROUP_COLUMNS if name in names), "-")
    sure, split = bool(split), split or next((name for name in SPLIT_COLUMNS if name in names), "-")
    found = _words(asked.label) or tuple(name for name in LABEL_COLUMNS if name in names)[:1]
    if not found and rest:
        found = tuple(name for name in names if name not in (group, split))
    return Chosen(tuple(name for name in found if name != "-"), None if group == "-" else group, None if split == "-" else split, judges or None, sure)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def read(
    table: Mapping[str, Any], chosen: Chosen, task: str, where: str, names: Sequence[str] | None = None, first: int = 0
) -> tuple[Labels | None, tuple[str, ...]]:
    """(the labels of a table's rows, what they were taken for in words); a table of groups and splits alone gives labels without names.

    `table`: columns by name, as lists, arrays or tensors. `names`: of the classes that whole numbers stand for. `first`: the number
    of the first row, where a wrong cell is named. Refused.
    """
    import numpy as np

    said, labels, groups, splits = list[str](), None, None, None
    if chosen.labels:
        columns = columns_of({name: table[name] for name in chosen.labels}, where, first)
        kind, why = guess(columns, where) if task == "auto" else (task, f"--task {task}")
        values: np.ndarray
        values, found = {"classes": classes, "tags": tags, "numbers": numbers}[kind](columns, names)
        labels = Labels(kind, values, found)  # type: ignore[arg-type]
        said.append(f"{', '.join(chosen.labels[:4])}{' …' if len(chosen.labels) > 4 else ''} read as {kind} ({why})")
        unknown = int((~labels.known).sum())
        said += [f"{unknown:,} of {len(labels):,} unknown"] if unknown else []
    if chosen.group:
        groups = _groups(columns_of({chosen.group: table[chosen.group]}, where, first)[0])
        said.append(f"groups by {chosen.group} ({len(set(groups.tolist())):,})")
        labels = replace(labels or Labels("classes", np.full(len(groups), -1, np.int64), []), groups=groups)
    if chosen.split:
        try:
            splits = _splits(columns_of({chosen.split: table[chosen.split]}, where, first)[0], chosen.judges)
            counted = ", ".join(f"{part or 'none'} {count:,}" for part, count in Counter(splits.tolist()).items())
            said.append(f"parts by {chosen.split} ({counted})")
            labels = replace(labels or Labels("classes", np.full(len(splits), -1, np.int64), []), splits=splits)
        except Refused as error:
            if chosen.sure:
                raise
            said.append(f"the column {chosen.split} is left alone: {error}")
    return labels, ((f"{where}: {'; '.join(said)}",) if said else ())


def joined(own: Labels | None, told: Labels | None) -> Labels | None:
    """What a table tells, above what the pictures have without it (class folders): groups and splits may be all it holds."""
    if told is None or told.names:
        return told or own
    return None if own is None else replace(own, groups=told.groups, splits=told.splits)


def _groups(column: Column) -> np.ndarray:
    """A number for each word, the same in every file: 63 bits of its hash; a picture without one stands alone."""
    import numpy as np

    known = {cell: seeds.key(0, f"group {cell}") for cell in {str(cell) for cell in column.cells if cell is not None}}
    return np.array([-1 - row if cell is None else known[str(cell)] for row, cell in enumerate(column.cells)], np.int64)


def _splits(column: Column, judges: str | None) -> np.ndarray:
    """train, val or test for every row: words, or 0 and 1 in a column `is_test`, or the one value whose rows judge."""
    import numpy as np

    if judges is not None:
        if judges not in {str(cell) for cell in column.cells}:
            raise Refused(f"--split {column.name}={judges}: no row of {column.where} has '{judges}' there")
        return np.array(["" if cell is None else "val" if str(cell) == judges else "train" for cell in column.cells], "U5")
    spoken = {word: part for part, words in PARTS.items() for word in words.split()}
    flag = spoken.get(column.name.lower().removeprefix("is_"))
    if flag and {str(cell).lower() for cell in column.cells if cell is not None} <= {"0", "1", "true", "false"}:
        other = "val" if flag == "train" else "train"
        return np.array(["" if cell is None else flag if str(cell).lower() in ("1", "true") else other for cell in column.cells], "U5")
    found = ["" if cell is None else spoken.get(str(cell).lower()) for cell in column.cells]
    if None in found:
        row = found.index(None)
        raise Refused(
            f"{column.place(row)}: '{column.cells[row]}' is none of train, val and test; --split {column.name}=VALUE lets the rows with that value judge"
        )
    return np.array(found, "U5")
