"""The cells of label columns: what they are likely to be, and their reading as classes, tags or numbers. Refused by row and value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.errors import Refused

if TYPE_CHECKING:
    import numpy as np

FEW = 20  # different whole numbers written with decimals (pandas writes class numbers so where some are missing) that are still classes
NOTHING = {"na", "n/a", "nan", "null", "none"}  # what stands for an unknown number; among words it is one of them
SEPARATORS = (";", "|", ",")


@dataclass(frozen=True)
class Column:
    """One column: whole numbers, floats, words or lists of them, None where a cell is empty."""

    name: str
    cells: list[Any]
    typed: bool  # the table told numbers from words; in a CSV all is text
    where: str
    first: int  # number of the first row, as a person counts

    def place(self, row: int) -> str:
        return f"{self.where}, row {row + self.first}, {self.name}"

    @property
    def bits(self) -> bool:
        """Whether nothing but 0 and 1 stands in it, and what means unknown."""
        return all(_bit(cell) is not False for cell in _different(self.cells))

    @property
    def form(self) -> str:
        """lists, whole (numbers), decimal or words; nothing where all is empty."""
        cells = [cell for cell in _different(self.cells) if cell is not None]
        if not cells:
            return "nothing"
        if any(isinstance(cell, list) for cell in cells):
            return "lists"
        found = {_form(cell) for cell in cells if not _nothing(cell)}
        return next((form for form in ("words", "decimal", "whole") if form in found), "words")


def _different(cells: list[Any]) -> list[Any]:
    """Each cell once, where cells can be compared at once (lists cannot)."""
    return cells if any(isinstance(cell, list) for cell in cells) else list(dict.fromkeys(cells))


def _nothing(cell: Any) -> bool:
    return isinstance(cell, str) and cell.lower() in NOTHING


def _form(cell: Any) -> str:
    if isinstance(cell, int) or (isinstance(cell, str) and re.fullmatch(r"[-+]?\d+", cell)):
        return "whole"
    try:
        return "decimal" if math.isfinite(float(cell)) else "words"
    except ValueError:
        return "words"


def columns_of(table: Mapping[str, Any], where: str, first: int = 0) -> list[Column]:
    """The columns with plain cells; an array (N, K) becomes K columns. Refused where they differ in length."""
    found = []
    for name, values in table.items():
        values = values.detach().cpu().numpy() if type(values).__module__.split(".")[0] == "torch" else values
        shape = getattr(values, "shape", None)
        if shape is not None and len(shape) > 1:
            if len(shape) > 2 and math.prod(shape[1:]) != shape[1]:
                raise Refused(f"{where}: {name} has the shape {tuple(shape)}: labels are (N,) or (N, K)")
            parts = {name if shape[1] == 1 else f"{name} {number}": values.reshape(shape[0], -1)[:, number] for number in range(shape[1])}
        else:
            parts = {name: values}
        for title, cells in parts.items():
            typed = any(not isinstance(cell, str) for cell in cells if cell is not None)
            found.append(Column(title, [_plain(cell) for cell in (cells.tolist() if hasattr(cells, "tolist") else cells)], typed, where, first))
    if len({len(column.cells) for column in found}) > 1:
        raise Refused(f"{where}: columns of different length: {', '.join(f'{column.name} {len(column.cells):,}' for column in found)}")
    return found


def _plain(cell: Any) -> Any:
    """A cell as int, float, text or list; None where it is empty."""
    if type(cell).__module__ in ("numpy", "torch"):
        cell = cell.tolist()
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", "replace")
    if isinstance(cell, str):
        return cell.strip() or None
    if isinstance(cell, list | tuple | set | frozenset):
        return [_plain(part) for part in cell]
    if isinstance(cell, bool):
        return int(cell)
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def guess(columns: Sequence[Column], where: str) -> tuple[str, str]:
    """(classes, tags or numbers, why): Refused where the columns are of several sorts."""
    forms = {column.name: column.form for column in columns}
    if set(forms.values()) == {"nothing"}:
        raise Refused(f"{where} has no label: {', '.join(forms)} {'is' if len(forms) == 1 else 'are'} empty in every row")
    if len(columns) > 1:
        if all(column.bits for column in columns):
            return "tags", f"{len(columns)} columns of 0 and 1"
        if not set(forms.values()) - {"whole", "decimal", "nothing"}:
            return "numbers", f"{len(columns)} columns of numbers"
        held = ", ".join(f"{name} ({form})" for name, form in list(forms.items())[:12])
        raise Refused(f"{where}: which column holds the labels? --label COLUMN says it; there are {held}")
    (column,), form = columns, forms[columns[0].name]
    if form == "lists":
        return "tags", "each cell is a list"
    if form == "whole":
        return "classes", "whole numbers; --task numbers takes them for quantities"
    if form == "decimal":
        values = {float(cell) for cell in column.cells if cell is not None and _form(cell) != "words"}
        if column.typed or len(values) > FEW or any(value != int(value) for value in values):
            return "numbers", "numbers with decimals; --task classes takes each value for a class"
        return "classes", f"{len(values)} different whole numbers; --task numbers takes them for quantities"
    separator = _separator(column.cells)
    if separator:
        return "tags", f"cells are lists with '{separator}'; --task classes takes each cell for one class"
    return "classes", "words"


def _separator(cells: Sequence[Any]) -> str | None:
    """What separates tags in a cell. A comma, which class names have too, only where its parts recur."""
    words = {cell for cell in cells if isinstance(cell, str)}
    for mark in SEPARATORS:
        split = {cell for cell in words if mark in cell}
        if split and (mark != "," or len({part.strip(" []'\"") for cell in words for part in cell.split(mark)}) < len(words)):
            return mark
    return None


def _bit(cell: Any) -> float | bool | None:
    """1.0 or 0.0, None for unknown (empty, or -1: uncertain), False for anything else."""
    if cell is None:
        return None
    word = str(cell).lower()
    if word in ("1", "1.0", "true", "yes"):
        return 1.0
    if word in ("0", "0.0", "false", "no"):
        return 0.0
    return None if word in ("-1", "-1.0", *NOTHING) else False


def _bits(columns: Sequence[Column]) -> np.ndarray:
    """(N, K) float32 of 0 and 1, NaN where unknown."""
    import numpy as np

    found: Any = np.full((len(columns[0].cells), len(columns)), np.nan, np.float32)
    for number, column in enumerate(columns):
        meaning = {str(cell): _bit(cell) for cell in _different(column.cells)}
        for row, cell in enumerate(column.cells):
            bit = meaning[str(cell)]
            if bit is False:
                raise Refused(f"{column.place(row)}: '{cell}' is neither 0 nor 1")
            if bit is not None:
                found[row, number] = bit
    return found


def classes(columns: Sequence[Column], names: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """((N,) int64 with -1 where unknown, names): whole numbers that count into `names`, or words in sorted order, numbers by size.

    Several columns of 0 and 1: the one that is 1. A class -1 means unknown, as everywhere, but beside nothing else than 1.
    """
    import numpy as np

    if len(columns) > 1:
        bits = np.nan_to_num(_bits(columns))
        wrong = np.flatnonzero(bits.sum(axis=1) > 1)
        if len(wrong):
            raise Refused(f"{columns[0].place(int(wrong[0]))} …: {int(bits[wrong[0]].sum())} columns are 1, which are tags: --task tags")
        return np.where(bits.any(axis=1), bits.argmax(axis=1), -1).astype(np.int64), [column.name for column in columns]
    (column,) = columns
    counts = column.form in ("whole", "decimal")
    keys = [None if cell is None or (counts and _nothing(cell)) else _class(cell, column, row) for row, cell in enumerate(column.cells)]
    found = {key for key in keys if key is not None}
    if not found:
        raise Refused(f"{column.where} has no label: {column.name} is empty in every row")
    if names is None:
        whole = all(re.fullmatch(r"-?\d+", key) for key in found)
        if whole and "-1" in found and found != {"-1", "1"}:
            found.discard("-1")
        names = sorted(found, key=int) if whole else sorted(found)
        place = {name: number for number, name in enumerate(names)}
        return np.array([-1 if key is None else place.get(key, -1) for key in keys], np.int64), list(names)
    place = {name: number for number, name in enumerate(names)} | {str(number): number for number in range(len(names))} | {"-1": -1}
    for row, key in enumerate(keys):
        if key is not None and key not in place:
            raise Refused(f"{column.place(row)}: '{key}' is none of the {len(names)} classes")
    return np.array([-1 if key is None else place[key] for key in keys], np.int64), list(names)


def _class(cell: Any, column: Column, row: int) -> str:
    """A class as a word; 3.0 is 3."""
    if isinstance(cell, list):
        if len(cell) == 1:
            return str(cell[0])
        raise Refused(f"{column.place(row)}: a list of {len(cell)} is no single class: --task tags")
    if isinstance(cell, float) or (isinstance(cell, str) and re.fullmatch(r"[-+]?\d+\.0*", cell)):
        number = float(cell)
        return str(int(number)) if number == int(number) else str(cell)
    return str(cell)


def tags(columns: Sequence[Column], names: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """((N, K) float32 of 0 and 1, NaN where unknown, names): columns of 0 and 1, or one column of lists.

    In a column of lists an empty cell has none of the tags (a picture without objects); unknown is what has no row, or a null
    of a typed table.
    """
    import numpy as np

    (column, *more) = columns
    if more or (column.form in ("whole", "decimal") and column.bits):
        return _bits(columns), [column.name for column in columns]
    mark = _separator(column.cells) or ";"
    lists = [_list(cell, mark, column.typed) for cell in column.cells]
    words = {str(part) for one in lists if one for part in one}
    if names is None:
        whole = all(re.fullmatch(r"-?\d+", word) for word in words)
        names = sorted(words, key=int) if whole else sorted(words)
        place = {name: number for number, name in enumerate(names)}
    else:
        place = {str(number): number for number in range(len(names))} | {name: number for number, name in enumerate(names)}
    found: Any = np.zeros((len(lists), len(names)), np.float32)
    for row, one in enumerate(lists):
        if one is None:
            found[row] = np.nan
            continue
        for part in one:
            if str(part) not in place:
                raise Refused(f"{column.place(row)}: '{part}' is none of the {len(names)} tags")
            found[row, place[str(part)]] = 1
    if not len(names):
        raise Refused(f"{column.where} has no label: {column.name} is empty in every row")
    return found, list(names)


def _list(cell: Any, mark: str, typed: bool) -> list[Any] | None:
    if isinstance(cell, list):
        return [part for part in cell if part is not None]
    if cell is None:
        return None if typed else []
    text = str(cell)
    if text.startswith("[") and text.endswith("]"):
        text, mark = text[1:-1], mark if mark in text else ","
    return [part for part in (part.strip(" '\"") for part in text.split(mark)) if part]


def numbers(columns: Sequence[Column], names: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """((N, T) float32, NaN where unknown, names)."""
    import numpy as np

    found: Any = np.full((len(columns[0].cells), len(columns)), np.nan, np.float32)
    for number, column in enumerate(columns):
        for row, cell in enumerate(column.cells):
            if cell is None or _nothing(cell):
                continue
            try:
                found[row, number] = float(cell)
            except (ValueError, TypeError):
                raise Refused(f"{column.place(row)}: '{cell}' is no number") from None
            if not math.isfinite(found[row, number]):
                raise Refused(f"{column.place(row)}: '{cell}' is no finite number")
    if np.isnan(found).all():
        raise Refused(f"{columns[0].where} has no label: {', '.join(column.name for column in columns)} empty in every row")
    return found, [column.name for column in columns]
