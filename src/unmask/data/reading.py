"""What a worker does: places of the stream, or sample numbers, become a batch of views. A bad sample is replaced, and named."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unmask import seeds
from unmask.data.quarantine import BadSample
from unmask.data.raster import Picture
from unmask.data.recolour import NUMBERS, draw, views_of
from unmask.data.source import Source
from unmask.data.statistics import Format
from unmask.data.views import centre_view, part, random_view, random_views
from unmask.settings import Crops, Views

ATTEMPTS = 64  # replacements tried for one sample: with half of all samples bad, all fail once in 10^19
Batch = dict[str, Any]


@dataclass(frozen=True)
class Reading(Dataset):
    """What a worker knows: how to turn places of the stream, or sample numbers, into a batch of views."""

    source: Source
    format: Format
    size: tuple[int, int]
    seed: int
    tile: int | None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def values(self) -> int:
        """Numbers of one sample in a batch."""
        return self.format.in_chans * math.prod(self.size)

    def _open(self, index: int, dice: Random | None) -> Picture:
        """The frame and window of a sample that is looked at, with the grey values that the format wants. BadSample."""
        return part(self.source.picture(index).under(self.format.window), self.tile, dice)

    def _empty(self, count: int, size: tuple[int, int]) -> Tensor:
        """(count, C, H, W), channels last in memory, as pictures are decoded: no worker spends time on transposing."""
        kind = torch.uint8 if self.format.eight_bit else torch.float32
        return torch.zeros((count, *size, self.format.in_chans), dtype=kind).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Taking(Reading, ABC):
    """Random views of a list of (place, index)."""

    @abstractmethod
    def empty_batch(self, count: int) -> Batch:
        """The tensors of a batch of so many samples, to be filled."""

    @abstractmethod
    def take(self, batch: Batch, row: int, index: int, where: tuple[int, ...]) -> None:
        """Sample `index` into row `row`; `where` (epoch, index, …) is what its dice are keyed by. BadSample."""

    def __getitems__(self, places: list[tuple[int, int]]) -> Batch:
        batch, indices = self.empty_batch(len(places)), list[int]()
        bad: list[tuple[str, str]] = []
        spoiled = lost = 0
        for row, (place, first) in enumerate(places):
            for attempt in range(ATTEMPTS):
                index = first if attempt == 0 else seeds.key(self.seed, "replacement", place, attempt) % len(self.source)
                epoch = place // len(self.source)
                try:
                    self.take(batch, row, index, (epoch, index, *((place, attempt) if attempt else ())))
                    break
                except BadSample as error:
                    bad.append((self.source.name(index), str(error)))
                    spoiled += attempt == 0
            else:
                lost += 1
            indices.append(index)
        return {**batch, "index": torch.tensor(indices), "bad": tuple(bad), "spoiled": spoiled, "lost": lost}


@dataclass(frozen=True)
class OneView(Taking):
    """One random crop a sample: `images` (b, C, H, W) and `flip` (b,)."""

    views: Views
    distort: Callable[[Tensor, Random], Tensor] | None

    def empty_batch(self, count):
        return {"images": self._empty(count, self.size), "flip": torch.zeros(count, dtype=torch.bool)}

    def take(self, batch, row, index, where):
        dice = seeds.dice(self.seed, "view", *where)
        view = random_view(self._open(index, dice), self.size, self.views, dice, self.format.in_chans, self.format.eight_bit)
        batch["images"][row] = view if self.distort is None else self.distort(view, dice)
        batch["flip"][row] = dice.random() < self.views.flip


@dataclass(frozen=True)
class SeveralViews(Taking):
    """Several crops a sample: `global` (2·b, C, H, W) and perhaps `local` (L·b, C, h, w), view-major, each with its `.flip` and its `.recolour` (…, 11).

    Frame and window of a sample are drawn once; then each view has dice of its own, so that more of them change none of the others.
    """

    crops: Crops

    def empty_batch(self, count):
        batch: Batch = {}
        views = views_of(self.crops, self.size)
        for name, size in {view.name: view.size for view in views}.items():
            rows = count * sum(view.name == name for view in views)
            batch |= {name: self._empty(rows, size), f"{name}.flip": torch.zeros(rows, dtype=torch.bool), f"{name}.recolour": torch.zeros(rows, NUMBERS)}
        return batch

    @property
    def values(self):
        return self.format.in_chans * sum(math.prod(view.size) for view in views_of(self.crops, self.size))

    def take(self, batch, row, index, where):
        views = views_of(self.crops, self.size)
        count = len(batch["global"]) // 2
        picture = self._open(index, seeds.dice(self.seed, "view", *where))
        dice = [seeds.dice(self.seed, "views", number, *where) for number in range(len(views))]
        crops = random_views(picture, [(view.size, view.cut, own) for view, own in zip(views, dice)], self.format.in_chans, self.format.eight_bit)
        for number, (view, own, crop) in enumerate(zip(views, dice, crops)):
            place = row + count * (number if view.name == "global" else number - 2)
            batch[view.name][place] = crop
            batch[f"{view.name}.flip"][place] = own.random() < self.crops.flip
            batch[f"{view.name}.recolour"][place] = torch.tensor(draw(self.crops, view, own))


@dataclass(frozen=True)
class Still(Reading):
    """Evaluation pictures of a list of sample numbers; unreadable ones are left out."""

    share: float | None

    def __getitems__(self, indices: list[int]) -> Batch:
        images = self._empty(len(indices), self.size)
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
