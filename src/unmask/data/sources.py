"""DATA as numbered samples: `open_source(data)` gives a Source, whatever the form; `check(data)` refuses what is none, at once.

Neither torch nor numpy is imported before a source is opened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unmask.data.forms import PICTURES, Form, check, extension, resolve, walk
from unmask.data.source import SPLITS, Labels, Names, Source
from unmask.errors import Refused

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Files", "Labels", "Names", "Source", "aligned", "check", "open_source"]


class Files(Source):
    """Pictures that are files: `paths` relative to `root` (`""`: as they are)."""

    def __init__(self, root: str, paths: Sequence[str], labels: Labels | None = None):
        self.root = root
        self.paths = Names(paths)
        self.fingerprint = self.paths.digest
        if labels is None:
            self._label_by_folder(paths if root else _below_common(paths))
        self._label(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])

    def raw(self, index: int) -> str:
        return self.name(index)

    def _split(self, index: int) -> str | None:
        first = self.paths[index].split("/", 1)[0]
        return first if first in SPLITS else None


def _below_common(paths: Sequence[str]) -> list[str]:
    common = os.path.commonpath([os.path.dirname(path) or "." for path in map(os.path.abspath, paths)])
    return [os.path.relpath(path, common) for path in map(os.path.abspath, paths)]


def open_source(data: Any, labels: Any = None) -> Source:
    """The samples of DATA: a word (see `forms`), a list of words that are pictures or folders, an array, or any torch Dataset.

    `labels`: a CSV with the columns path and label, or a sequence with one label a sample. Refused when there is nothing to read.
    """
    if isinstance(data, Source):
        source = data
    elif isinstance(data, str | os.PathLike):
        source = _by_form(resolve(os.fspath(data)))
    elif isinstance(data, Sequence) and len(data) and all(isinstance(word, str | os.PathLike) for word in data):
        source = _by_form(resolve(os.fspath(data[0]))) if len(data) == 1 else Files("", _together(data))
    else:
        from unmask.data.arrays import in_memory

        source = in_memory(data)
    if labels is not None:
        source._label(_csv_labels(os.fspath(labels), source) if isinstance(labels, str | os.PathLike) else Labels(list(labels)))
        if source.labels is not None and len(source.labels) != len(source):
            raise Refused(f"{len(source.labels)} labels for {len(source)} samples")
    return source


def _by_form(form: Form) -> Source:
    if form.kind == "folder":
        paths = [name for name in walk(form.paths[0]) if extension(name) in PICTURES]
        return Files(form.paths[0], paths)
    if form.kind == "files":
        return Files("", form.paths)
    if form.kind == "list":
        return _listed(form.paths[0])
    if form.kind == "tar":
        from unmask.data.archives import Tars

        return Tars(form)
    if form.kind == "array":
        from unmask.data.arrays import open_arrays

        return open_arrays(form)
    from unmask.data import tables

    return {"parquet": tables.parquet, "hub": tables.hub, "saved": tables.saved}[form.kind](form)


def _together(words: Sequence) -> list[str]:
    """The picture files of several pictures, folders and patterns."""
    paths: list[str] = []
    for word in map(os.fspath, words):
        form = resolve(word)
        if form.kind not in ("files", "folder"):
            raise Refused(f"{word} cannot stand beside other DATA: several are read only where they are pictures, folders of them or patterns")
        found = form.paths if form.kind == "files" else [os.path.join(form.paths[0], name) for name in walk(form.paths[0]) if extension(name) in PICTURES]
        paths.extend(found)
    return paths


def _listed(path: str) -> Files:
    """A text list: a path a line (relative to the list's folder), then maybe a tab and a label; a CSV has the columns path and label."""
    rows = _csv_rows(path) if extension(path) == ".csv" else _text_rows(path)
    if not rows:
        raise Refused(f"the list {path} is empty: one path a line")
    labels = None
    if any(label is not None for _, label in rows):
        labels = Labels([label for _, label in rows])
    folder = os.path.dirname(path)
    return Files("", [os.path.join(folder, os.path.expanduser(name)) for name, _ in rows], labels)


def _text_rows(path: str) -> list[tuple[str, str | None]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [line.rstrip("\r\n").split("\t") for line in file if line.strip() and not line.startswith("#")]
    rows = [(line[0].strip(), line[1].strip() if len(line) > 1 and line[1].strip() else None) for line in lines]
    named = sum(extension(name) in PICTURES for name, _ in rows)
    if rows and not named:
        raise Refused(f"the list {path} names no picture: its first line is '{rows[0][0][:80]}'")
    return rows


def _csv_rows(path: str) -> list[tuple[str, str | None]]:
    import csv

    if not os.path.isfile(path):
        raise Refused(f"there is no label file {path}")
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        columns = table.fieldnames or []
        if "path" not in columns:
            raise Refused(f"{path} has no column 'path' (it has {', '.join(columns) or 'none'}); the first line names the columns path and label")
        return [(row["path"], row.get("label") or None) for row in table if row["path"]]


def _csv_labels(path: str, source: Source) -> Labels:
    """The label column for every sample, matched by path as given, by path within DATA, or by an unambiguous file name."""
    rows = _csv_rows(path)
    if not any(label is not None for _, label in rows):
        raise Refused(f"{path} has no column 'label' with anything in it")
    exact = {os.path.normpath(os.path.join(os.path.dirname(path), name)): label for name, label in rows}
    exact |= {os.path.normpath(name): label for name, label in rows}
    bases = Counter(os.path.basename(name) for name, _ in rows)
    single = {os.path.basename(name): label for name, label in rows if bases[os.path.basename(name)] == 1}
    root = getattr(source, "root", "")
    found = []
    for index in range(len(source)):
        name = os.path.normpath(source.name(index))
        inside = os.path.relpath(name, root) if root else name
        found.append(exact.get(name, exact.get(inside, single.get(os.path.basename(name)))))
    missing = sum(label is None for label in found)
    if missing == len(found):
        raise Refused(f"no row of {path} matches a sample (its first path is '{rows[0][0]}', the first sample is '{source.name(0)}')")
    if missing:
        source.said += (f"{missing:,} of {len(found):,} samples have no row in {path}: they have no label",)
    return Labels(found)


def aligned(source: Source, classes: list[str]) -> np.ndarray:
    """The labels of `source` as numbers in another source's `classes` (-1: unknown there), so that train and val agree."""
    import numpy as np

    if source.labels is None or source.classes is None:
        raise Refused("the samples have no labels")
    place = {name: number for number, name in enumerate(classes)}
    table = np.array([place.get(name, -1) for name in source.classes] + [-1], np.int64)  # the last: no label
    return table[source.labels]
