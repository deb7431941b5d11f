"""Batches of pictures: workers decode and crop, the device finishes, bad samples are replaced and named.

Nothing depends on the number of workers: order, crops, flips and replacements are functions of (seed, place).
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unmask import seeds
from unmask.data.quarantine import BadSample, Quarantine
from unmask.data.raster import Picture
from unmask.data.sampler import Order, Stream, share
from unmask.data.source import Source
from unmask.data.statistics import Format
from unmask.data.views import Finish, centre_view, part, random_view
from unmask.errors import Failed
from unmask.settings import Views

ATTEMPTS = 64  # replacements tried for one sample: with half of all samples bad, all fail once in 10^19
FIRST_VERDICT = 256  # samples after which the share of bad ones is judged (or one epoch, if that is shorter), then every epoch
GRACE = 60  # seconds that a worker goes on after SIGTERM, so that the main process can end in order
Batch = dict[str, Any]
Batches = TypeVar("Batches", bound=Generator)


@dataclass(frozen=True)
class _Reading(Dataset):
    """What a worker knows: how to turn places of the stream, or sample numbers, into a batch of views."""

    source: Source
    format: Format
    size: tuple[int, int]
    seed: int
    tile: int | None

    def __len__(self) -> int:
        return len(self.source)

    def _open(self, index: int, dice: Random | None) -> Picture:
        """The frame and window of a sample that is looked at, with the grey values that the format wants. BadSample."""
        return part(self.source.picture(index).under(self.format.window), self.tile, dice)

    def _empty(self, count: int) -> Tensor:
        """(count, C, H, W), channels last in memory, as pictures are decoded: no worker spends time on transposing."""
        kind = torch.uint8 if self.format.eight_bit else torch.float32
        return torch.zeros((count, *self.size, self.format.in_chans), dtype=kind).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Random(_Reading):
    """Random crops of a list of (place, index)."""

    views: Views
    distort: Callable[[Tensor, Random], Tensor] | None

    def __getitems__(self, places: list[tuple[int, int]]) -> Batch:
        images = self._empty(len(places))
        flips: list[bool] = []
        indices: list[int] = []
        bad: list[tuple[str, str]] = []
        spoiled = lost = 0
        for row, (place, first) in enumerate(places):
            for attempt in range(ATTEMPTS):
                index = first if attempt == 0 else seeds.key(self.seed, "replacement", place, attempt) % len(self.source)
                epoch = place // len(self.source)
                dice = seeds.dice(self.seed, "view", epoch, index, *((place, attempt) if attempt else ()))
                try:
                    view = random_view(self._open(index, dice), self.size, self.views, dice, self.format.in_chans, self.format.eight_bit)
                    images[row] = view if self.distort is None else self.distort(view, dice)
                    break
                except BadSample as error:
                    bad.append((self.source.name(index), str(error)))
                    spoiled += attempt == 0
            else:
                lost += 1
            flips.append(dice.random() < self.views.flip)
            indices.append(index)
        return {"images": images, "flip": torch.tensor(flips), "index": torch.tensor(indices), "bad": tuple(bad), "spoiled": spoiled, "lost": lost}


@dataclass(frozen=True)
class _Still(_Reading):
    """Evaluation pictures of a list of sample numbers; unreadable ones are left out."""

    share: float | None

    def __getitems__(self, indices: list[int]) -> Batch:
        images = self._empty(len(indices))
        kept: list[int] = []
        bad: list[tuple[str, str]] = []
        for index in indices:
            try:
                picture = self._open(index, None)
                images[len(kept)] = centre_view(picture, self.size, self.format.in_chans, self.format.eight_bit, self.share)
                kept.append(index)
            except BadSample as error:
                bad.append((self.source.name(index), str(error)))
        return {"images": images[: len(kept)], "index": torch.tensor(kept, dtype=torch.int64), "bad": tuple(bad)}


class Pictures:
    """A source, its format and the views of a run: random batches of the endless stream, and still pictures to evaluate on.

    `quarantine`: the file that names bad samples (None: only counted). `tile`: side of the windows by which larger pictures are read.
    `distort`: what happens to each crop (C, H, W) in the worker, by the sample's own dice.
    """

    def __init__(
        self,
        source: Source,
        format: Format,
        views: Views,
        img_size: tuple[int, int],
        seed: int = 0,
        max_bad_share: float = 0.05,
        quarantine: str | Path | None = None,
        tile: int | None = None,
        distort: Callable[[Tensor, Random], Tensor] | None = None,
    ):
        self.source, self.format, self.views, self.seed, self.tile, self.distort = source, format, views, seed, tile, distort
        self.img_size = (int(img_size[0]), int(img_size[1]))
        self.labels = source.labels
        self.max_bad_share, self.quarantine = max_bad_share, Quarantine(quarantine)
        self._finish = Finish(format.low, format.high, format.mean, format.std, format.eight_bit)

    def __len__(self) -> int:
        return len(self.source)

    def batches(
        self, batch_size: int, start_step: int, steps: int, accumulate: int = 1, rank: int = 0, world: int = 1, workers: int = 0, pin: bool = False
    ) -> Iterator[Batch]:
        """`accumulate` batches a step, from `start_step` on, for `steps` steps: see `sampler.Stream` for which samples these are.

        A batch: `images` (b, C, H, W) uint8 or float32, `flip` (b,) bool, `index` (b,) int64 (after replacement), `bad` ((name, reason), …).
        Failed when more than `max_bad_share` of the samples are bad. `pin`: page-locked memory, for CUDA. Workers live until the iterator ends.
        """
        stream = Stream(Order(len(self), self.seed), batch_size, start_step, steps, accumulate, rank, world)
        reading = _Random(self.source, self.format, self.img_size, self.seed, self.tile, self.views, self.distort)
        return _ended_at_exit(self._judged(_loader(reading, stream, workers, share(batch_size, accumulate, world), pin)))

    def _judged(self, loader: DataLoader) -> Generator[Batch, None, None]:
        seen, spoiled, verdict = 0, 0, min(FIRST_VERDICT, len(self))
        for batch in loader:
            batch = _unpacked(batch)
            self.quarantine.add(batch["bad"])
            seen += len(batch["index"])
            spoiled += batch.pop("spoiled")
            if batch.pop("lost"):
                raise Failed(f"{ATTEMPTS} samples in a row cannot be read{self._where(batch['bad'])}")
            if seen >= verdict:
                self.judge(spoiled, seen, batch["bad"])
                verdict = (seen // len(self) + 1) * len(self)
            yield batch

    def judge(self, spoiled: int, seen: int, bad: Sequence[tuple[str, str]] = ()) -> None:
        """Failed where more of the samples `seen` are bad than may be; `bad`: the latest (name, reason) of them. Of few, one more or less says nothing."""
        if seen >= min(FIRST_VERDICT, len(self)) and spoiled > self.max_bad_share * seen:
            share = f"{spoiled:,} of {seen:,} samples cannot be read, more than max_bad_share {self.max_bad_share:g}"
            raise Failed(f"{share}{self._where(bad)}; repair or remove them (unmask inspect DATA names all), or raise --max_bad_share")

    def _where(self, bad: Sequence[tuple[str, str]]) -> str:
        example = f": the latest is {bad[-1][0]}, {bad[-1][1]}" if bad else ""
        return example + (f"; all are named in {self.quarantine.path}" if self.quarantine.path else "")

    def finish(self, batch: Batch, device: torch.device | str) -> Tensor:
        """The network's input (b, C, H, W), normalised float32 on the device, of a batch of `batches`."""
        return self._finish(batch["images"], batch["flip"], device)

    def still(self, indices: Sequence[int], img_size: tuple[int, int] | None = None, share: float | None = None) -> Tensor:
        """Evaluation pictures (b, C, H, W), normalised, on the CPU; unreadable ones are left out, so b may be less. `share`: see `centre_view`."""
        batch = self._still(img_size, share).__getitems__([int(index) for index in indices])
        self.quarantine.add(batch["bad"])
        return self._finish(batch["images"], None, "cpu")

    def still_batches(
        self,
        batch_size: int,
        workers: int = 0,
        indices: Sequence[int] | None = None,
        img_size: tuple[int, int] | None = None,
        share: float | None = None,
        pin: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor | None, list[str]]]:
        """(x (b, C, H, W) normalised on the CPU, rows of `labels.values` or None, names) of all samples, or of `indices`, in order, each readable one once."""
        return _ended_at_exit(self._labelled(self.numbered_batches(batch_size, workers, indices, img_size, share, pin)))

    def numbered_batches(
        self,
        batch_size: int,
        workers: int = 0,
        indices: Sequence[int] | None = None,
        img_size: tuple[int, int] | None = None,
        share: float | None = None,
        pin: bool = False,
    ) -> Generator[tuple[Tensor, list[int]], None, None]:
        """The same with the numbers of the pictures instead of labels and names."""
        chosen = [int(index) for index in (range(len(self)) if indices is None else indices)]
        parts = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
        return _ended_at_exit(self._readable(_loader(self._still(img_size, share), parts, workers, batch_size, pin)))

    def _readable(self, loader: DataLoader) -> Generator[tuple[Tensor, list[int]], None, None]:
        for batch in loader:
            batch = _unpacked(batch)
            self.quarantine.add(batch["bad"])
            if len(batch["index"]):
                yield self._finish(batch["images"], None, "cpu"), batch["index"].tolist()

    def _labelled(self, batches: Generator[tuple[Tensor, list[int]], None, None]) -> Generator[tuple[Tensor, Tensor | None, list[str]], None, None]:
        for x, kept in batches:
            labels = torch.from_numpy(self.labels.values[kept]) if self.labels is not None else None
            yield x, labels, [self.source.name(index) for index in kept]

    def _still(self, img_size: tuple[int, int] | None, share: float | None) -> _Still:
        size = self.img_size if img_size is None else (int(img_size[0]), int(img_size[1]))
        return _Still(self.source, self.format, size, self.seed, self.tile, share)


def _loader(reading: _Reading, batches: Any, workers: int, each: int, pin: bool) -> DataLoader:
    more: dict[str, Any] = {}
    if workers:
        reading.source.prepare()
        weight = each * reading.format.in_chans * reading.size[0] * reading.size[1] * (1 if reading.format.eight_bit else 4)
        roomy = _shared_memory() > weight * (2 * workers + 2)
        # forked workers share what is loaded; they start before the run's own threads do, and never touch the device
        context = "fork" if sys.platform == "linux" else None
        more = {"worker_init_fn": _begin, "multiprocessing_context": context, "prefetch_factor": 2, "collate_fn": _same if roomy else _packed}
    return DataLoader(reading, batch_sampler=batches, num_workers=workers, pin_memory=pin, **({"collate_fn": _same} | more))


def _shared_memory() -> int:
    """Free bytes where worker processes hand tensors over; containers often have only 64 MiB of it."""
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 1 << 40


def _begin(worker: int) -> None:
    """Signals are the main process's business: a worker that died of Ctrl-C or of the scheduler's warning would break the orderly stop.

    SIGTERM only sets an alarm: by then the main process has saved, or has died and would wait for this worker at its exit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
    torch.set_num_threads(1)


_running: WeakSet[Generator] = WeakSet()


def _ended_at_exit(batches: Batches) -> Batches:
    """Python ends leftover workers with SIGTERM and waits for them: so a stream that an error left open is closed before."""
    _running.add(batches)
    return batches


@atexit.register  # after multiprocessing's own, hence called before it
def _end_all() -> None:
    for batches in list(_running):
        batches.close()


def _same(batch: Batch) -> Batch:
    return batch


def _packed(batch: Batch) -> Batch:
    """Arrays travel through a pipe, slower than tensors through shared memory, but need none of it."""
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in batch.items()}


def _unpacked(batch: Batch) -> Batch:
    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()}
