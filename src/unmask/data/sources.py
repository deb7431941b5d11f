"""DATA as numbered samples: `open_source(data)` gives a Source, whatever the form; `check(data)` refuses what is none, at once.

Neither torch nor numpy is imported before a source is opened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from unmask.data.forms import PICTURES, Form, check, extension, is_picture, pictures, resolve
from unmask.data.labels import Labels, choose, joined, read
from unmask.data.source import SPLITS, Names, Source
from unmask.errors import Refused
from unmask.settings import Labelled

__all__ = ["Files", "Names", "Source", "check", "open_source"]


class Files(Source):
    """Pictures that are files: `paths` relative to `root` (`""`: as they are)."""

    table: str | None = None  # the list that named them

    def __init__(self, root: str, paths: Sequence[str]):
        self.root = root
        self.paths = Names(paths)
        self.fingerprint = self.paths.digest
        self._label_by_folder(paths if root else _below_common(paths))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])

    def inside(self, index: int) -> str:
        return self.paths[index]

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

    `labels`: what a person says of them (`Labelled`), a label file (see `label_files`), `Labels`, columns by name, or one label a
    sample (whole numbers or words: classes; floats (N,) or (N, T): numbers; 0 and 1 (N, K), or lists: tags). Refused when there
    is nothing to read.
    """
    asked = labels if isinstance(labels, Labelled) else Labelled(labels=labels)
    own = asked if asked.labels is None else Labelled()  # with labels from elsewhere, no column of DATA is meant
    if isinstance(data, Source):
        source = data
    elif isinstance(data, str | os.PathLike):
        source = _by_form(resolve(os.fspath(data)), own)
    elif isinstance(data, Sequence) and len(data) and all(isinstance(word, str | os.PathLike) for word in data):
        source = _by_form(resolve(os.fspath(data[0])), own) if len(data) == 1 else Files("", _together(data))
    else:
        from unmask.data.arrays import in_memory

        source = in_memory(data, own)
    if isinstance(asked.labels, str | os.PathLike):
        from unmask.data.label_files import label

        label(source, os.fspath(asked.labels), asked)
    elif asked.labels is not None:
        _label(source, asked)
    elif (asked.label or asked.group or asked.split) and isinstance(source, Files) and source.table is None:
        option = next(name for name in ("label", "group", "split") if getattr(asked, name))
        raise Refused(f"--{option} names a column, but {source.root or source.name(0)} is no table: --labels FILE gives one")
    return source


def _label(source: Source, asked: Labelled) -> None:
    """Give a source labels that are in memory."""
    given = asked.labels
    if isinstance(given, Labels):
        told, said = given, ()
    else:
        table = dict(given) if isinstance(given, Mapping) else {"label": given}
        told, said = read(table, choose(list(table), asked, "labels", rest=True), asked.task, "labels")  # type: ignore[assignment]
    if told is not None and len(told) != len(source):
        raise Refused(f"{len(told):,} labels for {len(source):,} samples")
    source.labels = joined(source.labels, told)
    source.said += said


def _by_form(form: Form, asked: Labelled) -> Source:
    if form.kind == "folder":
        return Files(form.paths[0], pictures(form.paths[0]))
    if form.kind == "files":
        return Files("", form.paths)
    if form.kind == "list":
        return _listed(form.paths[0], asked)
    if form.kind == "tar":
        from unmask.data.archives import Tars

        return Tars(form, asked)
    if form.kind == "array":
        from unmask.data.arrays import open_arrays

        return open_arrays(form, asked)
    from unmask.data import tables

    return {"parquet": tables.parquet, "hub": tables.hub, "saved": tables.saved}[form.kind](form, asked)


def _together(words: Sequence) -> list[str]:
    """The picture files of several pictures, folders and patterns."""
    paths: list[str] = []
    for word in map(os.fspath, words):
        form = resolve(word)
        if form.kind not in ("files", "folder"):
            raise Refused(f"{word} cannot stand beside other DATA: several are read only where they are pictures, folders of them or patterns")
        found = form.paths if form.kind == "files" else [os.path.join(form.paths[0], name) for name in pictures(form.paths[0])]
        paths.extend(found)
    return paths


def _listed(path: str, asked: Labelled) -> Files:
    """A text list: a path a line (relative to the list's folder), then maybe a tab and a label; a table has the columns path and label."""
    if extension(path) == ".csv" or (extension(path) == ".tsv" and _has_head(path)):
        from unmask.data.label_files import open_table

        table, named, first = open_table(path)
        names = [str(name).strip() for name in table.pop(named)]
    else:
        names, cells = _text_rows(path)
        table, first = ({"label": cells} if any(cells) else {}), 1
    labels, said = read(table, choose(list(table), asked, path), asked.task, path, first=first)
    folder = os.path.dirname(path)
    source = Files("", [os.path.join(folder, os.path.expanduser(name)) for name in names])
    source.table, source.labels, source.said = path, joined(source.labels, labels), source.said + said
    if labels is not None and labels.splits is not None:
        source.said = said  # the column says which part is which, not the folders
    return source


def _has_head(path: str) -> bool:
    """Whether a .tsv begins with the names of its columns, not with a path."""
    from unmask.data.label_files import PATH_COLUMNS

    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return any(word.strip() in PATH_COLUMNS for word in file.readline().split("\t"))


def _text_rows(path: str) -> tuple[list[str], list[str | None]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [line.rstrip("\r\n").split("\t") for line in file if line.strip() and not line.startswith("#")]
    names = [line[0].strip() for line in lines]
    if not names:
        raise Refused(f"the list {path} is empty: one path a line")
    if not any(extension(name) in (*PICTURES, ".npy") for name in names) and not is_picture(os.path.join(os.path.dirname(path), names[0])):
        raise Refused(f"the list {path} names no picture: its first line is '{names[0][:80]}'")
    return names, [line[1].strip() if len(line) > 1 and line[1].strip() else None for line in lines]
