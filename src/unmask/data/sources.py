"""DATA as numbered samples: `open_source(data)` gives a Source, whatever the form; `check(data)` refuses what is none, at once.

Neither torch nor numpy is imported before a source is opened. A source is small to send to a worker process (names lie in one
block of bytes, files are opened where they are first read) and is never changed.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from importlib import import_module
from typing import TYPE_CHECKING, Any

from unmask.data.forms import PICTURES, Form, check, extension, resolve, walk
from unmask.errors import Refused

if TYPE_CHECKING:
    import numpy as np

    from unmask.data.raster import Picture

__all__ = ["Files", "Labels", "Names", "Source", "aligned", "check", "open_source"]

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
READERS = {"tar": "archives:Tars", "parquet": "tables:parquet", "array": "arrays:open_arrays", "hub": "tables:hub", "saved": "tables:saved"}


class Names(Sequence):
    """Many strings in one block of bytes: a million paths cost one copy to send, not a million."""

    def __init__(self, names: Iterable[str]):
        import numpy as np

        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = index % len(self)
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])])

    @property
    def digest(self) -> str:
        return blake2b(self._bytes + self._ends.tobytes(), digest_size=16).hexdigest()


class Labels:
    """Class numbers (N,) int64, -1 where a sample has none, and the names of the classes."""

    def __init__(self, values: Sequence, classes: Sequence[str] | None = None):
        """`values`: numbers, which stay what they are, or words, numbered in sorted order (None: no label)."""
        import numpy as np

        given = [value.item() if isinstance(value, np.generic) else value for value in values]
        words = {str(value) for value in given if value is not None}
        numbers = [int(word) for word in words] if all(word.lstrip("-").isdigit() for word in words) else []
        if numbers and max(numbers) < max(1000, len(given)):  # larger ones are codes, not class numbers
            self.numbers = np.array([-1 if value is None else int(value) for value in given], np.int64)
            self.classes = list(classes) if classes is not None else [str(number) for number in range(max(0, int(self.numbers.max()) + 1))]
        else:
            self.classes = list(classes) if classes is not None else sorted(words)
            place = {name: number for number, name in enumerate(self.classes)}
            self.numbers = np.array([-1 if value is None else place[str(value)] for value in given], np.int64)


class Source(ABC):
    """Numbered samples. `labels` (N,) int64 (-1: none) and `classes`, or both None; `said`: lines to print when it is opened."""

    labels: np.ndarray | None = None
    classes: list[str] | None = None
    said: tuple[str, ...] = ()
    fingerprint: str = ""  # of which samples these are, not of their pixels

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person would call the sample: its path as given, or file and row."""

    @abstractmethod
    def raw(self, index: int) -> Any:
        """The sample as stored: a path, bytes, an array or a Pillow image. BadSample."""

    def prepare(self) -> None:
        """Load what worker processes can share, before they are forked."""
        return

    def picture(self, index: int) -> Picture:
        """The sample opened, not yet decoded. BadSample."""
        from unmask.data.images import open_picture

        return open_picture(self.raw(index))

    def read(self, index: int) -> np.ndarray:
        """(H, W, C) in the stored dtype. BadSample."""
        return self.picture(index).pixels()

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """Indices under train/, val/ or test/, where all samples lie in such folders and there is more than one; else {}."""
        import numpy as np

        parts: dict[str, list[int]] = {}
        for index in range(len(self)):
            split = self._split(index)
            if split is None:
                return {}
            parts.setdefault(split, []).append(index)
        return {split: np.array(indices) for split, indices in parts.items()} if len(parts) > 1 else {}

    def _split(self, index: int) -> str | None:
        return None

    def _label(self, labels: Labels | None) -> None:
        if labels is not None:
            self.labels, self.classes = labels.numbers, labels.classes

    def _label_by_folder(self, paths: Sequence[str]) -> None:
        """Labels from class folders, and a line where held-out pictures are among the samples."""
        self._label(folder_labels(paths))
        splits = Counter(path.split("/", 1)[0] for path in paths)
        if len(splits) > 1 and set(splits) <= set(SPLITS):
            parts = ", ".join(f"{name}/ {count:,}" for name, count in splits.items())
            self.said += (f"all parts are read ({parts} pictures); to hold one out, name the part to train on (…/{next(iter(splits))})",)


def folder_labels(paths: Sequence[str]) -> Labels | None:
    """The folder directly above a picture as its class.

    Only in a regular tree: all pictures at one depth, at least two classes that are no splits, two pictures a class on average.
    """
    if len({path.count("/") for path in paths}) != 1 or "/" not in paths[0]:
        return None
    above = [path.rsplit("/", 2)[-2] for path in paths]
    classes = sorted(set(above))
    if not 2 <= len(classes) <= len(paths) / 2 or set(classes) <= set(SPLITS):
        return None
    return Labels(above, classes)


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
        source = import_module("unmask.data.arrays").in_memory(data)
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
    module, maker = READERS[form.kind].split(":")
    return getattr(import_module(f"unmask.data.{module}"), maker)(form)


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
