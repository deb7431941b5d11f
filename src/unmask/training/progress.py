"""What a person sees while a run trains: one live line in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PLAIN_EVERY = 30.0  # seconds between lines where nothing can be redrawn
FEW = 3  # parts of a loss that have room in a line
MEASURED = (("knn", "kNN", "{:.1f} %"), ("top1", "top-1", "{:.1f} %"), ("auroc", "AUROC", "{:.3f}"), ("r2", "R²", "{:.3f}"))  # name in the row, in words, form


def duration(seconds: float) -> str:
    """`3 h 05 min`, `12 min`, `40 s`."""
    if seconds >= 5400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{round(seconds / 60)} min" if seconds >= 90 else f"{round(seconds)} s"


class Progress:
    """Prints lines and keeps the one that moves; everything printed is in log.txt too.

    Without rich, or where the output is no terminal, the moving line becomes a plain line every half minute.
    """

    def __init__(self, log: Callable[[str], None], active: bool = True):
        self._log, self._active, self._live, self._last = log, active, None, 0.0
        if active and sys.stdout.isatty():
            try:
                from rich.console import Console
                from rich.live import Live
            except ImportError:
                self.say("rich is not installed: progress is printed as plain lines")
                return
            self._live = Live(console=Console(file=sys.stdout, highlight=False, soft_wrap=True), refresh_per_second=4, transient=True)
            self._live.start()

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self._active:
            return
        self._log(line)
        if self._live is not None:
            self._live.console.print(line, markup=False)
        else:
            print(line, flush=True)

    def move(self, line: str) -> None:
        """The line that is redrawn."""
        if not self._active:
            return
        if self._live is not None:
            self._live.update(line)
        elif time.monotonic() - self._last > PLAIN_EVERY:
            self._last = time.monotonic()
            self.say(line)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class Events:
    """The numbers of metrics.jsonl once more, as TensorBoard's events in the run folder; without tensorboard one line says so."""

    def __init__(self, folder: Path, step: int, say: Callable[[str], None]):
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            say("tensorboard is not installed: its events are not written, metrics.jsonl holds the same numbers")
            return
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)  # what a kill left behind step is hidden

    def add(self, row: Mapping[str, Any]) -> None:
        """One point for every number of a row."""
        if self._writer is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Meter:
    """How fast a run is, and how long it waits for data: since the last `begin` or `numbers`, and the line that says so."""

    def __init__(self, batch: int, pictures: int, steps: int):
        self.batch, self.pictures, self.steps, self.loss = batch, pictures, steps, float("nan")
        self.pace: dict[str, float] = {}
        self.parts: dict[str, float] = {}  # of the loss, where it has several
        self.begin()

    def begin(self) -> None:
        """Start to measure: what lies before (start-up, the monitor) is not training."""
        self._start, self._waited, self._done = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    def step(self) -> None:
        self._done += 1

    def numbers(self) -> dict[str, float]:
        """Pictures a second and the share of time spent waiting for data, since the last time."""
        spent = time.monotonic() - self._start
        if self._done and spent > 0:
            self.pace = {"images_per_second": round(self._done * self.batch / spent, 2), "data_wait": round(self._waited / spent, 4)}
        self.begin()
        return self.pace

    def line(self, step: int, shown: dict[str, Any], room: bool = False) -> str:
        """Epoch, step, loss beside its baselines, what was measured, speed, waiting, time left; where there is `room` the loss in its parts, if they are few."""
        parts = [f"epoch {step * self.batch / self.pictures:.1f}", f"step {step:,}/{self.steps:,}", f"loss {self.loss:.3f}"]
        if room and 0 < len(self.parts) <= FEW:
            parts[-1] += " = " + " + ".join(f"{name.replace('_', ' ')} {part:.3f}" for name, part in self.parts.items())
        named = (("patch_mean", "patch mean"), ("copy_nearest", "copy nearest"), ("best_constant", "best constant"), ("copy_noisy", "noisy picture"))
        beside = [f"{said} {shown[key]:.3f}" for key, said in named if key in shown]
        parts += [f"what is hidden {shown['predicted']:.3f}"] if "predicted" in shown else []
        parts[-1] += f" ({', '.join(beside)})" if beside else ""
        parts += [f"{said} {form.format(shown[key])}" for key, said, form in MEASURED if key in shown]
        parts += [f"{shown['codes_used']:,} codes in use, as evenly as {shown['codes_as_many_as']:,.0f}"] if "codes_used" in shown else []
        if speed := self.pace.get("images_per_second"):
            left = (self.steps - step) * self.batch / speed
            parts += [f"{speed:,.0f} images/s", f"{self.pace['data_wait']:.0%} waiting for data", f"{duration(left)} left"]
        parts += [f"{shown['bad']:,} bad samples"] if shown.get("bad") else []
        return " · ".join(parts)
