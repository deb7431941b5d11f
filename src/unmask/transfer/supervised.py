"""Pictures with what is to be said of each: what the loop reads when an encoder is trained on labels, and what it is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from unmask import seeds
from unmask.data.labels import Labels
from unmask.data.loader import Batch, Pictures
from unmask.data.splits import drawn
from unmask.errors import Refused
from unmask.transfer.answers import Kind


@dataclass(frozen=True)
class Asked:
    """What is asked of a picture."""

    kind: Kind
    names: list[str]  # of the classes, tags or numbers
    moments: tuple[list[float], list[float]] | None = None  # mean and deviation of each number, over the pictures that teach


class Supervised:
    """The pictures that teach, with their labels, as the loop wants them; beside them those that judge.

    `labels` are those of `pictures`; of `judging`, whose labels are `verdicts`, the rows `judge` are used. `chosen`: how they were told apart.
    """

    def __init__(self, pictures: Pictures, labels: Labels, judging: Pictures, judge: Sequence[int], verdicts: Tensor, asked: Asked, chosen: str):
        self.pictures, self.labels, self.asked, self.chosen = pictures, labels, asked, chosen
        self.truth = torch.from_numpy(labels.values)
        self.judging, self.judge, self.verdicts = judging, list(judge), verdicts
        self.quarantine = pictures.quarantine

    def __len__(self) -> int:
        return len(self.pictures)

    def batches(
        self, batch_size: int, start_step: int, steps: int, accumulate: int = 1, rank: int = 0, world: int = 1, workers: int = 0, pin: bool = False
    ) -> Iterator[Batch]:
        return self.pictures.batches(batch_size, start_step, steps, accumulate, rank, world, workers, pin)

    def finish(self, batch: Batch, device: torch.device | str) -> dict[str, Tensor]:
        """`images` (b, C, H, W), normalised, and `labels`: (b,) class numbers or (b, K) tags or numbers, NaN where unknown."""
        return {"images": self.pictures.finish(batch, device), "labels": self.truth[batch["index"]].to(device, non_blocking=True)}

    @property
    def fingerprint(self) -> str:
        """Which pictures teach and judge, and what is said of them."""
        digest = blake2b(self.pictures.source.fingerprint.encode() + self.judging.source.fingerprint.encode(), digest_size=16)
        for part in (self.truth, torch.tensor(self.judge), self.verdicts):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()


def few(labels: Labels, rows: Sequence[int], shots: int | None, share: float | None, seed: int, subset: int = 0) -> list[int]:
    """Some of `rows`, every class alike: `shots` of each class, or a `share` of each (at least one); subset number `subset` of that size.

    Of tags and of ranges of numbers a share as well. With groups a share is one of whole groups: a tenth of the patients, not of the
    pictures of each. A class with fewer than `shots` pictures is refused by name.
    """
    if shots is None and share is None:
        return list(rows)
    if shots is None and (labels.kind != "classes" or labels.groups is not None):
        try:
            return np.asarray(rows)[drawn(labels.rows(rows), share or 0, seed, subset)].tolist()
        except Refused:
            count = len(np.unique(labels.rows(rows).groups)) if labels.groups is not None else 0
            raise Refused(f"--share {share:g} of {count:,} groups, which stay whole, is none of them or all: say another share, or --shots") from None
    if labels.kind != "classes":
        raise Refused(f"--shots counts the pictures of a class, and these have {labels.kind}: say --share")
    order = np.asarray(rows)[seeds.uniform((len(rows),), seed, "subset", subset).argsort().numpy()]
    kept: list[int] = []
    for number in np.unique(labels.values[order]):
        own = order[labels.values[order] == number]
        count = shots if shots is not None else max(1, round((share or 0) * len(own)))
        if count > len(own):
            raise Refused(f"--shots {shots}: the class {labels.names[number]} has only {len(own)} pictures to learn from")
        kept += own[:count].tolist()
    return sorted(kept)


def asked_of(labels: Labels, rows: Sequence[int]) -> Asked:
    """What the labels ask; the moments of numbers are those of `rows`, the pictures that teach."""
    if labels.kind != "numbers":
        return Asked(labels.kind, list(labels.names))
    values: np.ndarray = labels.values[list(rows)].astype(np.float64)
    std = np.nanstd(values, axis=0)
    return Asked("numbers", list(labels.names), (np.nanmean(values, axis=0).tolist(), np.where(std > 0, std, 1.0).tolist()))


def said_of(asked: Asked, teach: int, judge: int, chosen: str, shots: int | None, share: float | None) -> str:
    """A line: how many pictures teach and judge."""
    fewer = f" ({shots} of each class)" if shots else f" ({100 * share:.3g} % of {'each class' if asked.kind == 'classes' else 'all'})" if share else ""
    return f"{teach:,} pictures teach{fewer}, {judge:,} judge ({chosen}); {len(asked.names):,} {asked.kind}"
