"""What DATA becomes: numbered samples with names and, where they are known, labels and captions.

A source is small to send to a worker process (names lie in one block of bytes, files are opened where they are first read)
and is never changed.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any

from unmask.data.labels import Labels

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


@dataclass(frozen=True, eq=False)
class Captions:
    """Any number of captions a picture; they lie in one block of bytes, so that workers share them."""

    words: Names  # all captions, one picture's behind the other's
    ends: np.ndarray  # (N,) int64: where those of each picture end
    splits: np.ndarray | None = None  # (N,) str: "train", "val", "test" or ""

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]], splits: Sequence[str] | None = None) -> Captions:
        """Of the captions of each picture."""
        import numpy as np

        ends = np.cumsum([len(some) for some in texts], dtype=np.int64)
        return cls(Names(one for some in texts for one in some), ends, None if splits is None else np.array(splits, "U5"))

    def __len__(self) -> int:
        return len(self.ends)

    def span(self, index: int) -> range:
        """The numbers of a picture's captions among all."""
        return range(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))

    def __getitem__(self, index: int) -> list[str]:
        return [self.words[number] for number in self.span(index)]

    @property
    def counts(self) -> np.ndarray:
        """(N,) how many captions each picture has."""
        import numpy as np

        return np.diff(self.ends, prepend=0)

    def draw(self, index: int, dice: Random) -> int:
        """The number of one of a picture's captions."""
        some = self.span(index)
        return some[dice.randrange(len(some))]

    def rows(self, ids: Sequence[int]) -> Captions:
        """Those of these pictures, in this order."""
        return Captions.of([self[index] for index in ids], None if self.splits is None else self.splits[ids].tolist())

    @property
    def digest(self) -> str:
        return blake2b(self.words.digest.encode() + self.ends.tobytes(), digest_size=16).hexdigest()


class Source(ABC):
    """Numbered samples. `labels`: what is known of each, `captions`: what is said of each, or None; `said`: lines to print when it is opened."""

    labels: Labels | None = None
    captions: Captions | None = None
    said: tuple[str, ...] = ()
    fingerprint: str = ""  # of which samples these are, not of their pixels

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person would call the sample: its path as given, or file and row."""

    def inside(self, index: int) -> str:
        """Its path within DATA, where DATA is a folder or an archive: what a label file may call it."""
        return self.name(index)

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

    def _label_by_folder(self, paths: Sequence[str]) -> None:
        """Labels from class folders, and a line where held-out pictures are among the samples."""
        self.labels = folder_labels(paths)
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
    import numpy as np

    place = {name: number for number, name in enumerate(classes)}
    return Labels("classes", np.array([place[name] for name in above], np.int64), classes)
