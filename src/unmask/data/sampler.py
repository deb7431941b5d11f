"""One stream for the whole run: epoch after epoch in keyed orders; step s takes places [sB, (s+1)B), nothing padded or dropped.

So a resumed run starts at any step at once, and the workers of a loader live as long as the run.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from unmask import seeds
from unmask.errors import Refused


class Order:
    """Which sample stands at each place of the endless stream: a keyed permutation an epoch, of which the last two are kept."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed
        self._epochs: dict[int, np.ndarray] = {}

    def __call__(self, place: int) -> int:
        epoch, inside = divmod(place, self.length)
        if epoch not in self._epochs:
            if len(self._epochs) == 2:
                self._epochs.pop(min(self._epochs))
            generator = np.random.Generator(np.random.PCG64(seeds.key(self.seed, "order", epoch)))
            self._epochs[epoch] = generator.permutation(self.length).astype(np.int32 if self.length < 2**31 else np.int64)
        return int(self._epochs[epoch][inside])


def share(batch_size: int, accumulate: int = 1, world: int = 1) -> int:
    """Samples of one part of a step in one process; Refused where the batch does not divide."""
    parts = accumulate * world
    if batch_size < parts or batch_size % parts:
        said = f"accumulate {accumulate}" + (f" times {world} processes" if world > 1 else "")
        near = max(parts, round(batch_size / parts) * parts)
        raise Refused(f"batch_size {batch_size} cannot be split into {parts} equal parts ({said}): use batch_size {near}")
    return batch_size // parts


class Stream(Sampler):
    """Batches of (place, index) for one process: `accumulate` of them a step, `share(batch_size, accumulate, world)` long.

    Part a of step s in process r takes places sB + aB/A + rb and the b - 1 after it: rows aB/A + rb … of the step's batch.
    """

    def __init__(self, order: Order, batch_size: int, start_step: int, steps: int, accumulate: int = 1, rank: int = 0, world: int = 1):
        self.order, self.batch_size, self.start_step, self.steps = order, batch_size, start_step, steps
        self.accumulate, self.rank, self.each = accumulate, rank, share(batch_size, accumulate, world)

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.start_step + self.steps):
            for part in range(self.accumulate):
                first = step * self.batch_size + part * (self.batch_size // self.accumulate) + self.rank * self.each
                yield [(place, self.order(place)) for place in range(first, first + self.each)]
