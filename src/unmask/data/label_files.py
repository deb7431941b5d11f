"""Label files: CSV, TSV or parquet, whose rows are found for each picture by its path.

A path matches as it is given, relative to the file's folder or to DATA, and else by a file name that only one picture has.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unmask.data.forms import PICTURES, extension
from unmask.data.labels import Labels, choose, joined, read
from unmask.data.source import Source
from unmask.errors import Refused
from unmask.settings import Labelled

if TYPE_CHECKING:
    import numpy as np

PATH_COLUMNS = ("path", "file", "file_name", "filename", "filepath", "file_path", "image", "image_path", "image_id", "img", "id")
Table = dict[str, list[Any]]


def open_table(path: str) -> tuple[Table, str, int]:
    """(columns by name, the name of the column of paths, the number of the first row as an editor counts). Refused."""
    if not os.path.isfile(path):
        raise Refused(f"there is no label file {path}")
    kind = extension(path)
    if kind not in (".csv", ".tsv", ".txt", ".parquet"):
        raise Refused(f"{path}: labels are a .csv, .tsv or .parquet file with the columns path and label")
    table = _parquet(path) if kind == ".parquet" else _text(path, "\t" if kind in (".tsv", ".txt") else None)
    named = next((name for name in PATH_COLUMNS if name in table), None)
    if named is None:
        raise Refused(f"{path} has no column 'path' (it has {', '.join(list(table)[:20]) or 'none'}); the first line names the columns path and label")
    rows = [row for row, name in enumerate(table[named]) if name is not None and str(name).strip()]
    if not rows:
        raise Refused(f"{path} is empty: no row with a path in it")
    if len(rows) < len(table[named]):
        table = {name: [cells[row] for row in rows] for name, cells in table.items()}
    return table, named, 1 if kind == ".parquet" else 2


def _text(path: str, mark: str | None) -> Table:
    import csv

    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            mark = mark or max(",;\t", key=head.count)  # where decimals have a comma, spreadsheets separate with ;
            file.seek(0)
            rows = csv.reader(file, delimiter=mark)
            names = [name.strip() for name in next(rows, [])]
            table: Table = {name: [] for name in names}
            if len(table) < len(names):
                raise Refused(f"{path}: two columns are called '{next(name for name, count in Counter(names).items() if count > 1)}'")
            for row in rows:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) > len(names):
                    raise Refused(f"{path}, line {rows.line_num}: {len(row)} cells, but the first line names {len(names)}; put cells with '{mark}' into quotes")
                for name, cell in zip(names, [*row, *[""] * (len(names) - len(row))]):
                    table[name].append(cell)
            return table
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{path} is no text table in UTF-8: {error}") from None


def _parquet(path: str) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Refused(f'reading {path} needs pyarrow: pip install "unmask[hf]"') from None
    try:
        return parquet.read_table(path).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from None


def label(source: Source, path: str, asked: Labelled) -> None:
    """Give a source the labels of a file; pictures without a row, and rows without a picture, are counted and said. Refused."""
    table, named, first = open_table(path)
    chosen = choose([name for name in table if name != named], asked, path, rest=True)
    if not (chosen.labels or chosen.group or chosen.split):
        raise Refused(f"{path} has no label: its only column is '{named}'")
    told, said = read(table, chosen, asked.task, path, first=first)
    assert told is not None  # some column was chosen
    names = [str(name).strip() for name in table[named]]
    _refuse_contradictions(names, told, path, first)
    rows, strangers = matched(names, source, os.path.dirname(path))
    missing, unused = int((rows < 0).sum()), len(set(names)) - len({names[row] for row in set(rows[rows >= 0].tolist())})
    if missing == len(rows):
        raise Refused(f"no row of {path} matches a picture (its first path is '{names[0]}', the first picture is '{source.name(0)}')")
    source.labels = joined(source.labels, told.placed(rows))
    if source.labels is None:
        raise Refused(f"{path} has no label column (it has {', '.join(table)}), and the pictures lie in no class folders")
    source.said += said
    if strangers:
        one = strangers[0]
        source.said += (f"{len(strangers):,} pictures are found by their file name: '{names[rows[one]]}' of {path} is taken for {source.name(one)}",)
    if missing:
        source.said += (f"{missing:,} of {len(rows):,} pictures have no row in {path}" + (": they have no label" if chosen.labels else ""),)
    if unused:
        source.said += (f"{unused:,} of {len(set(names)):,} paths in {path} are none of these pictures",)


def _refuse_contradictions(names: Sequence[str], labels: Labels, path: str, first: int) -> None:
    """A path may stand in several rows only where all say the same."""
    import numpy as np

    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        before = seen.setdefault(name, row)
        if before == row or not name:
            continue
        same = np.array_equal(labels.values[before], labels.values[row], equal_nan=labels.kind != "classes")
        if not same or (labels.groups is not None and labels.groups[before] != labels.groups[row]):
            hint = "; several tags of a picture stand in one cell: a;b" if labels.kind == "classes" else ""
            raise Refused(f"{path}: '{name}' stands in rows {before + first} and {row + first} with different labels{hint}")


def matched(names: Sequence[str], source: Source, folder: str) -> tuple[np.ndarray, list[int]]:
    """(the row of each picture, -1 where there is none; the pictures whose row names other folders than theirs).

    Paths come first. A file name counts where one row and one picture have it, and that row is no other picture's.
    """
    import numpy as np

    exact = {os.path.normpath(os.path.join(folder, name)): row for row, name in enumerate(names)}
    exact |= {os.path.normpath(name): row for row, name in enumerate(names)}
    bare = any(extension(name) not in PICTURES for name in names[:100])  # file names without their ending

    def spelt(*words: str) -> list[str]:
        return [*words, *(os.path.splitext(word)[0] for word in words)] if bare else list(words)

    paths = [tuple(os.path.normpath(path) for path in (source.name(index), source.inside(index))) for index in range(len(source))]
    found = np.array([next((exact[word] for word in spelt(*words) if word in exact), -1) for words in paths], np.int64)
    taken = {names[row] for row in set(found[found >= 0].tolist())}
    rows, pictures = dict[str, set[str]](), Counter[str]()
    for name in names:
        rows.setdefault(os.path.basename(name), set()).add(name)
    for name, _ in paths:
        pictures.update(set(spelt(os.path.basename(name))))
    row_of, strangers = {name: row for row, name in enumerate(names)}, []
    for index in np.flatnonzero(found < 0).tolist():
        name = paths[index][0]
        for word in spelt(os.path.basename(name)):
            (row, *more) = rows.get(word, ("",))
            if row and not more and pictures[word] == 1 and row not in taken:
                found[index] = row_of[row]
                strangers += [] if _same_folders(row, name) else [index]
                break
    return found, strangers


def _same_folders(row: str, path: str) -> bool:
    """Whether the folders that both name, from the last one on, are the same."""
    mine, theirs = (os.path.normpath(word).split(os.sep)[-2::-1] for word in (row, path))
    return all(one == other for one, other in zip(mine, theirs))
