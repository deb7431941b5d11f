"""The loop: one story from the first step to the last, for any learner.

Lightning Fabric carries devices, precision and processes. Every random number is a function of where it is used, so what
is saved is the weights, the optimiser's state and the step, and a resumed run is the run that was never stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from safetensors.torch import save_file

from unmask import seeds
from unmask.data.loader import Batch
from unmask.model import Learner
from unmask.run.folder import RunFolder
from unmask.settings import Train
from unmask.training.kept import Kept
from unmask.training.notes import Notes, Records
from unmask.training.pace import every as measured_every
from unmask.training.progress import Meter, Progress
from unmask.training.step import Mover
from unmask.training.stop import Stop, Stopped
from unmask.training.task import Feed, Watch

AGREE = 5  # steps between the moments at which several processes with GPUs agree whether to stop: it waits for the device


def train(
    fabric: Any,
    learner: Learner,
    pictures: Feed,
    settings: Train,
    workers: int,
    folder: RunFolder,
    stop: Stop,
    metadata: Mapping[str, str],
    watch: Callable[[torch.device, Progress], Watch],
) -> int:
    """Train from the newest checkpoint (or the start) to the last step, or until `stop` is wished; the step reached.

    `metadata` goes into the checkpoints' model.safetensors; `watch` makes what is measured at chosen steps.
    """
    lead, steps, batch, every = fabric.global_rank == 0, settings.steps or 1, settings.batch_size or 1, measured_every(settings)
    progress = Progress(folder.log, active=lead)
    mover = Mover(fabric, learner, settings)
    kept = Kept(mover, folder, metadata, progress.say)
    step = kept.restore()
    records = Records(folder, step, progress.say, lead)
    monitor = watch(fabric.device, progress) if lead else None
    if monitor is not None and step == 0:
        with contextlib.suppress(Stopped), stop.at_once():
            records.write(monitor(0))
    mover.begin(len(pictures) / batch)
    batches = reading(fabric, pictures, settings, workers, step)
    meter = Meter(batch, len(pictures), steps)
    notes = Notes(fabric, records, meter, mover.scaled, kept.spoiled)
    shown: dict[str, Any] = {}
    kept.saved = time.monotonic()
    try:
        stop.agree(fabric)
        while step < steps and not stop.agreed:
            taken = mover.step(step, pictures, batches, meter, move=step not in kept.spoiled)
            step += 1
            notes.add(step, taken)

            measure, due = step % every == 0 or step == steps, kept.due(step)
            if measure or due or notes.due(step):
                first = notes.fetch()
                folder.flush()
                if first is not None:
                    step = kept.back(first, partial(keep_batch, pictures, learner, folder, settings))
                    notes.bad.clear()
                    batches = reading(fabric, pictures, settings, workers, step)
                    continue
                if measure and monitor is not None:
                    with contextlib.suppress(Stopped), stop.at_once():
                        shown |= (row := monitor(step, taken.x, taken.noise, taken.rows))
                        records.write(row)
                    meter.begin()
                shown["bad"] = len(pictures.quarantine)
                (progress.say if measure else progress.move)(meter.line(step, shown, room=measure))
            if due:
                kept.save(step)
            if fabric.world_size == 1 or fabric.device.type == "cpu" or step % AGREE == 0:
                stop.agree(fabric)
        notes.fetch()
        if step < steps:
            kept.save(step)
        kept.join()
    finally:
        records.close()
        progress.close()
    return step


def reading(fabric: Any, pictures: Feed, settings: Train, workers: int, step: int) -> Iterator[Batch]:
    """This process's batches from a step on to the last."""
    batch, steps = settings.batch_size or 1, settings.steps or 1
    pin = fabric.device.type == "cuda"
    return pictures.batches(batch, step, steps - step, settings.accumulate, fabric.global_rank, fabric.world_size, workers, pin=pin)


def keep_batch(pictures: Feed, learner: Learner, folder: RunFolder, settings: Train, step: int) -> str:
    """Write the pictures and the noise of a step for replay; the sentence that the run ends with."""
    batch = settings.batch_size or 1
    x = pictures.finish(next(pictures.batches(batch, step, 1)), "cpu")
    path = folder.path / f"not-finite-step-{step + 1}.safetensors"
    named = {f"x.{name}": part for name, part in x.items()} if isinstance(x, dict) else {"x": x}
    save_file({name: part.contiguous() for name, part in named.items()} | {"noise": seeds.uniform((batch, learner.draws(x)), settings.seed, "noise", step)}, path)
    return (
        f"the gradients are not finite from step {step + 1:,} on, also after going back to a checkpoint; that step's pictures and noise are in {path}. "
        "Try a lower --lr, --clip 1, or --precision 32-true"
    )
