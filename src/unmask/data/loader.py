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
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from unmask.data.quarantine import Quarantine
from unmask.data.reading import ATTEMPTS, Batch, OneView, Reading, SeveralViews, Still, Taking
from unmask.data.recolour import recolour
from unmask.data.sampler import Order, Stream, share
from unmask.data.source import Source
from unmask.data.statistics import Format
from unmask.data.views import Finish
from unmask.errors import Failed
from unmask.settings import Crops, Views

FIRST_VERDICT = 256  # samples after which the share of bad ones is judged (or one epoch, if that is shorter), then every epoch
GRACE = 60  # seconds that a worker goes on after SIGTERM, so that the main process can end in order
Batches = TypeVar("Batches", bound=Generator)


class Pictures:
    """A source, its format and the views of a run: random batches of the endless stream, and still pictures to evaluate on.

    `quarantine`: the file that names bad samples (None: only counted). `tile`: side of the windows by which larger pictures are read.
    `distort`: what happens to each crop (C, H, W) in the worker, by the sample's own dice.
    """

    def __init__(
        self,
        source: Source,
        format: Format,
        views: Views | Crops,
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

        A batch: `index` (b,) int64 (after replacement), `bad` ((name, reason), …), and pictures as `reading.OneView` or, with `Crops`, `reading.SeveralViews` says.
        Failed when more than `max_bad_share` of the samples are bad. `pin`: page-locked memory, for CUDA. Workers live until the iterator ends.
        """
        stream = Stream(Order(len(self), self.seed), batch_size, start_step, steps, accumulate, rank, world)
        return _ended_at_exit(self._judged(_loader(self.taking(), stream, workers, share(batch_size, accumulate, world), pin)))

    def taking(self) -> Taking:
        """How random views are taken of a sample."""
        known = (self.source, self.format, self.img_size, self.seed, self.tile)
        return SeveralViews(*known, self.views) if isinstance(self.views, Crops) else OneView(*known, self.views, self.distort)

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

    def finish(self, batch: Batch, device: torch.device | str) -> Tensor | dict[str, Tensor]:
        """The network's input, normalised float32 on the device, of a batch of `batches`: (b, C, H, W), or `global` (2·b, C, H, W), perhaps `local`,
        and `sample` (b,), the numbers of the samples.
        """
        if not isinstance(self.views, Crops):
            return self._finish(batch["images"], batch["flip"], device)
        kernel = self.views.blur_kernel
        views = {
            name: self._finish(batch[name], batch[f"{name}.flip"], device, partial(recolour, table=batch[f"{name}.recolour"], kernel=kernel))
            for name in ("global", "local")
            if name in batch
        }
        return views | ({"sample": batch["index"].to(device)} if "index" in batch else {})

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

    def _still(self, img_size: tuple[int, int] | None, share: float | None) -> Still:
        size = self.img_size if img_size is None else (int(img_size[0]), int(img_size[1]))
        return Still(self.source, self.format, size, self.seed, self.tile, share)


def _loader(reading: Reading, batches: Any, workers: int, each: int, pin: bool) -> DataLoader:
    more: dict[str, Any] = {}
    if workers:
        reading.source.prepare()
        weight = each * reading.values * (1 if reading.format.eight_bit else 4)
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
