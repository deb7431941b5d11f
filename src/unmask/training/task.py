"""What the loop needs to know of a kind of run: which pictures, which learner, what is measured on the way, what is left at the end.

Pre-training (`training/pretraining.py`) and training an encoder further (`transfer/teaching.py`) are two of them. `start.py` and
`loop.py` know this page and nothing else, so that every kind gets run folder, resume, signals and reports from the same lines.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from unmask.data.loader import Batch
from unmask.methods import TASKS, TOKENIZERS, TRANSFERS
from unmask.model import Learner, Signal
from unmask.recipe import Recipe
from unmask.run.folder import RunFolder
from unmask.training.progress import Progress


class Feed(Protocol):
    """What the loop takes batches from: `data.loader.Pictures`, or what wraps it."""

    quarantine: Any  # bad samples, counted

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, start_step: int, steps: int, accumulate: int = 1, rank: int = 0, world: int = 1, workers: int = 0, pin: bool = False
    ) -> Iterator[Batch]: ...

    def finish(self, batch: Batch, device: torch.device | str) -> Any:
        """The learner's input on the device: a tensor, or named tensors."""


class Watch(Protocol):
    """What is measured at chosen steps. It draws from no default generator and leaves no trace in the learner."""

    def __call__(self, step: int, x: Signal | None = None, noise: Tensor | None = None, rows: Tensor | None = None) -> dict[str, Any]:
        """The row of one step for metrics.jsonl; `x`, `noise`, `rows`: what was just trained on (None: before the first step)."""


@dataclass(frozen=True)
class Prepared:
    """A run before its first step: nothing is left open."""

    recipe: Recipe
    kept: dict[str, Any]  # what data.json keeps: count, fingerprint, statistics, and whatever the task needs to build again
    learner: Learner
    said: list[str]  # a line for each choice


class Task(ABC):
    """One kind of run. It has no state: everything comes from the recipe and from what was kept."""

    @abstractmethod
    def prepare(self, recipe: Recipe) -> Prepared:
        """Look at the data, choose what was left open, build the learner of step 0."""

    @abstractmethod
    def keep(self, recipe: Recipe, data: Any = None) -> dict[str, Any]:
        """What data.json keeps, of a recipe with nothing left open. `data`: what DATA is, where it is no path."""

    @abstractmethod
    def fingerprint(self, recipe: Recipe, data: Any = None) -> tuple[str, int]:
        """Which samples the run is made from, and how many an epoch has: a resumed run must find the same."""

    @abstractmethod
    def build(self, recipe: Recipe, kept: Mapping[str, Any]) -> Learner:
        """The learner at step 0: a function of the arguments alone."""

    @abstractmethod
    def feed(self, recipe: Recipe, kept: Mapping[str, Any], data: Any = None, quarantine: Path | None = None) -> Feed:
        """The pictures of the run, as it reads them."""

    @abstractmethod
    def metadata(self, recipe: Recipe, kept: Mapping[str, Any], learner: Learner) -> dict[str, str]:
        """The metadata of model.safetensors: all that `unmask.load` needs to build the learner again."""

    @abstractmethod
    def watch(self, recipe: Recipe, learner: Learner, feed: Any, folder: RunFolder, device: torch.device, progress: Progress) -> Watch:
        """What is measured while the run trains."""

    @abstractmethod
    def finish(self, recipe: Recipe, kept: Mapping[str, Any], learner: Learner, feed: Any, folder: RunFolder, metadata: Mapping[str, str], step: int) -> None:
        """What a finished run leaves, and what a person is told."""


def task_of(recipe: Recipe) -> Task:
    """The task of a recipe, by the name of its method."""
    kind = "transfer" if recipe.name in TRANSFERS else "tokenizing" if recipe.name in TOKENIZERS else "pretraining"
    source, _, name = TASKS[kind].rpartition(":")
    return vars(importlib.import_module(source.removesuffix(".py").replace("/", ".")))[name]()
