"""What is written of the steps of a run: metrics.jsonl and TensorBoard's events, fetched from the device now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unmask.run.folder import RunFolder
from unmask.run.records import PART
from unmask.training.kept import TOGETHER, in_a_row
from unmask.training.progress import Events, Meter
from unmask.training.step import Taken

FETCH = 1.0  # seconds between looks at what the device has computed: nothing in between waits for it


class Records:
    """The rows of metrics.jsonl, and the same as TensorBoard's events; only the first process writes."""

    def __init__(self, folder: RunFolder, step: int, say: Callable[[str], None], lead: bool):
        self.folder = folder
        self.events = Events(folder.path, step, say) if lead else None

    def write(self, row: Mapping[str, Any]) -> None:
        if self.events is not None:
            self.folder.metric(row)
            self.events.add(row)

    def close(self) -> None:
        self.folder.close()
        if self.events is not None:
            self.events.close()


class Notes:
    """Steps that are made and not yet written. Nothing waits for the device until they are fetched, all at once.

    `scaled`: the gradients are scaled for half precision; `spoiled`: the steps that are known to be bad, and left out.
    """

    def __init__(self, fabric: Any, records: Records, meter: Meter, scaled: bool, spoiled: set[int]):
        self.fabric, self.records, self.meter, self.scaled, self.spoiled = fabric, records, meter, scaled, spoiled
        self.pending: list[tuple[int, float, dict[str, Tensor], Tensor]] = []  # step, rate, losses, norm; not the pictures: they would stay in memory
        self.bad: list[int] = []  # steps, since the last going back, whose gradients were not finite
        self.fetched = time.monotonic()

    def add(self, step: int, taken: Taken) -> None:
        self.pending.append((step, taken.rate, taken.losses, taken.norm))
        self.meter.step()

    def due(self, step: int) -> bool:
        """Whether to fetch now: by the clock or, for several processes, which must look together, by the step."""
        return time.monotonic() - self.fetched > FETCH if self.fabric.world_size == 1 else step % TOGETHER == 0

    def fetch(self) -> int | None:
        """Write what is pending; the first of three bad steps in a row: a function of the steps alone, not of when this looks."""
        self.fetched = time.monotonic()
        if self.pending:
            names = list(self.pending[0][2])
            values = torch.stack([torch.stack([losses[name].float() for name in names] + [norm.float()]) for _, _, losses, norm in self.pending])  # (steps, losses + 1)
            if self.fabric.world_size > 1:
                values = self.fabric.all_reduce(values, reduce_op="mean")
            pace = self.meter.numbers()
            for (step, rate, _, _), (*losses, norm) in zip(self.pending, values.tolist()):
                self.write(step, rate, dict(zip(names, losses)), norm, pace)
            self.pending.clear()
        return in_a_row(self.bad)

    def write(self, step: int, rate: float, losses: dict[str, float], norm: float, pace: Mapping[str, float]) -> None:
        """The row of one step: its loss, the parts of that as `loss.NAME`, the rate, the norm of its gradients, how fast it was."""
        loss = losses.pop("loss")
        row = {"step": step, "loss": finite(loss), **{f"{PART}{name}": finite(part) for name, part in losses.items()}, "lr": rate, "grad_norm": finite(norm), **pace}
        if not math.isfinite(loss if self.scaled else norm) or step - 1 in self.spoiled:  # a scaler looks for its scale: infinite gradients are its way
            self.bad += [step] if step - 1 not in self.spoiled else []
            row["skipped"] = True
        self.records.write(row)
        self.meter.loss, self.meter.parts = loss, losses


def finite(value: float) -> float | None:
    """A number as JSON can say it."""
    return value if math.isfinite(value) else None
