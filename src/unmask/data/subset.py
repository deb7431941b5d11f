"""Some samples of a source, as a source of their own: those that teach."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from unmask.data.raster import Picture
from unmask.data.source import Source


class Subset(Source):
    """The samples `indices` of `source`, in that order."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)
        self.labels = None if source.labels is None else source.labels.rows(self.indices)
        self.fingerprint = blake2b(source.fingerprint.encode() + self.indices.tobytes(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def raw(self, index: int) -> Any:
        return self.source.raw(int(self.indices[index]))

    def picture(self, index: int) -> Picture:
        return self.source.picture(int(self.indices[index]))

    def prepare(self) -> None:
        self.source.prepare()
