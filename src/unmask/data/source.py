"""What DATA becomes: numbered samples with names and, where they are known, labels.

A source is small to send to a worker process (names lie in one block of bytes, files are opened where they are first read)
and is never changed.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from unmask.data.raster import Picture

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")


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
