"""What is kept of a run while it trains, and how it goes on from there: its checkpoints, and the steps to leave out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch

from unmask.errors import Failed
from unmask.run.checkpoint import Writer, complete, load_optimizer, newest, optimizer_tensors
from unmask.run.folder import RunFolder
from unmask.training.step import Mover

SAVE = 300.0  # seconds between checkpoints, where no number of steps is said
TOGETHER = 20  # steps between the moments at which several processes ask for the time: they must act together
LED_THERE = 10  # steps before the bad ones that are left out as well after going back
IN_A_ROW = 3  # steps of non-finite gradients, skipped one by one, after which the run goes back to its last checkpoint


class Kept:
    """The checkpoints of a run. `spoiled`: steps whose gradients were not finite before a rollback: their update is left out."""

    def __init__(self, mover: Mover, folder: RunFolder, metadata: Mapping[str, str], say: Callable[[str], None]):
        self.mover, self.folder, self.metadata, self.say = mover, folder, metadata, say
        self.fabric, self.settings = mover.fabric, mover.settings
        self.lead, self.steps = self.fabric.global_rank == 0, self.settings.steps or 1
        self.writer = Writer(folder.checkpoints, self.settings.keep) if self.lead else None
        self.spoiled: set[int] = set()
        self.held, self.saved = 0, time.monotonic()  # the step of the newest checkpoint, and when

    def restore(self, before: float = math.inf) -> int:
        """The newest complete checkpoint of a step under `before` into learner and optimiser, or nothing at step 0; the step."""
        found, lines = newest(self.folder.checkpoints, before)
        if found is not None:
            state, weights, moments = found
            self.spoiled.update(state["spoiled"])
            if state["scaler"]:
                self.fabric.strategy.precision.load_state_dict(state["scaler"])
            self.mover.learner.load_state_dict(weights)
            load_optimizer(self.mover.optimizer, self.mover.learner, moments)
            lines.append(f"going on at step {state['step']:,} of {self.steps:,}")
        for line in lines:
            self.say(line)
        step = 0 if found is None else found[0]["step"]
        if self.lead:
            self.folder.cut_metrics(step or -1)  # at step 0 the monitor writes its row again
            for path in complete(self.folder.checkpoints):  # damaged or given up: no longer counted among the last
                if int(path.name[5:]) > step:
                    path.rename(path.with_name(f"damaged-{path.name}"))
            self.folder.status("running", step)
        self.held = step
        return step

    def back(self, first: int, batch_kept: Callable[[int], str]) -> int:
        """From three bad steps in a row, of which `first` is the first, to a checkpoint before them, from which they are left out; the step.

        Once: where that has been done already, or there is none, the run fails; `batch_kept(step)` keeps what led there, and says so.
        """
        self.join()
        self.fabric.barrier()
        if self.spoiled or not any(int(path.name[5:]) < first for path in complete(self.folder.checkpoints)):
            raise Failed(batch_kept(first - 1) if self.lead else f"the gradients of step {first:,} are not finite")
        self.say(f"warning: the gradients from step {first:,} on are not finite: back to a checkpoint, and on without the steps that led there")
        self.spoiled.update(range(max(first - 1 - LED_THERE, 0), first - 1 + IN_A_ROW))  # the same way would lead there again
        self.fabric.barrier()
        return self.restore(first)

    def due(self, step: int) -> bool:
        """Whether to save now. By the clock it is the first process's, where there are several, for all must act alike."""
        if step == self.steps:
            return True
        if self.settings.checkpoint_every:
            return step % self.settings.checkpoint_every == 0
        if self.fabric.world_size == 1:
            return time.monotonic() - self.saved > SAVE
        return step % TOGETHER == 0 and self.fabric.broadcast(time.monotonic() - self.saved > SAVE)

    def save(self, step: int) -> None:
        """Begin to write a checkpoint, unless that step has one; what was written down reaches as far as what is saved."""
        self.saved = time.monotonic()
        if self.writer is not None and step != self.held:
            self.folder.flush()
            self.folder.status("running", step)
            state = {"steps": self.steps, "threads": torch.get_num_threads(), "torch": torch.__version__, "spoiled": sorted(self.spoiled)}
            state["scaler"] = self.fabric.strategy.precision.state_dict()
            self.writer.save(step, self.mover.learner.state_dict(), optimizer_tensors(self.mover.optimizer, self.mover.learner), state, self.metadata)
        self.held = step

    def join(self) -> None:
        """Wait for what is being written."""
        if self.writer is not None:
            self.writer.join()


def in_a_row(bad: list[int]) -> int | None:
    """The first of the earliest `IN_A_ROW` steps that follow each other, if there are such."""
    last = IN_A_ROW - 1
    return next((bad[i] for i in range(len(bad) - last) if bad[i + last] - bad[i] == last), None)
