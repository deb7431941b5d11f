"""The wish to stop: a signal sets a flag, the loop ends its step, saves, and says how to go on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

NAMES = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal arrived where nothing has to be ended first. No `Exception`: nobody on the way shall take it for an error."""


class Stop:
    """`with Stop() as stop`: while it lasts, `stop.wish` names the signal that arrived here, and `stop.agreed` is True once all
    processes know of one.

    Signals are handed on to processes that this one has started for the run; such a process (`parent`: of whom) also wishes
    to stop when its parent is gone. Outside the main thread nothing is caught: Python allows handlers there only.
    """

    def __init__(self, parent: int | None = None) -> None:
        self.parent = parent
        self.wish: str | None = None
        self.agreed = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While this lasts (start-up, measuring) a signal raises `Stopped` where it arrives, for there is no step to end first."""
        if self.wish is not None:
            raise Stopped(self.wish)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def agree(self, fabric: Any) -> None:
        """Whether any process wishes to stop: all processes ask at the same step, and all get the same answer in `agreed`."""
        if self.parent is not None and os.getppid() != self.parent:
            self.wish = self.wish or "the end of its parent process"
        if fabric.world_size == 1:
            self.agreed = self.wish is not None
        else:
            wishes = torch.tensor(float(self.wish is not None), device=fabric.device)
            self.agreed = fabric.all_reduce(wishes, reduce_op="sum").item() > 0

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.wish = signal.Signals(number).name
        for process in multiprocessing.active_children():
            if process.pid is not None and process.name.startswith("SpawnProcess-"):  # those of Fabric; readers are forked
                os.kill(process.pid, number)
        if self._at_once:
            self._at_once = False
            raise Stopped(self.wish)
