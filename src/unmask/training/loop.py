"""The loop: one story from the first step to the last, for any learner.

Lightning Fabric carries devices, precision and processes. Every random number is a function of where it is used, so what
is saved is the weights, the optimiser's state and the step, and a resumed run is the run that was never stopped.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unmask import seeds
from unmask.errors import Failed
from unmask.model import Learner
from unmask.optim.groups import parameter_groups
from unmask.optim.schedule import cosine, scaled_rate, warmup_cosine, warmup_steps
from unmask.run.checkpoint import Writer, complete, load_optimizer, newest, optimizer_tensors
from unmask.run.folder import RunFolder
from unmask.settings import Train
from unmask.training.pace import every as measured_every
from unmask.training.progress import Events, Meter, Progress
from unmask.training.stop import Stop, Stopped
from unmask.training.task import Feed, Watch

FETCH = 1.0  # seconds between looks at what the device has computed: nothing in between waits for it
FETCH_STEPS = 20  # the same in steps, for several processes, which must look together
AGREE = 5  # steps between the moments at which several processes with GPUs agree whether to stop: it waits for the device
SAVE = 300.0  # seconds between checkpoints, where no number of steps is said
LED_THERE = 10  # steps before the bad ones that are left out as well after going back
IN_A_ROW = 3  # steps of non-finite gradients, skipped one by one, after which the run goes back to its last checkpoint


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
    lead, world, rank, device = fabric.global_rank == 0, fabric.world_size, fabric.global_rank, fabric.device
    steps, batch, parts, seed = settings.steps or 1, settings.batch_size or 1, settings.accumulate, settings.seed
    progress = Progress(folder.log, active=lead)
    learner.to(device).train()
    groups, factors = parameter_groups(learner, settings)
    decays = [group["weight_decay"] for group in groups]
    fused, scaled = device.type in ("cpu", "cuda"), settings.precision == "16-mixed"
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=fused)

    writer = Writer(folder.checkpoints, settings.keep) if lead else None
    spoiled: set[int] = set()  # steps whose gradients were not finite before a rollback: their update is left out

    def restore(before: float = math.inf) -> int:
        """The newest complete checkpoint of a step under `before` into learner and optimiser, or nothing at step 0; the step."""
        found, lines = newest(folder.checkpoints, before)
        if found is not None:
            state, weights, moments = found
            spoiled.update(state["spoiled"])
            if state["scaler"]:
                fabric.strategy.precision.load_state_dict(state["scaler"])
            learner.load_state_dict(weights)
            load_optimizer(optimizer, learner, moments)
            lines.append(f"going on at step {state['step']:,} of {steps:,}")
        for line in lines:
            progress.say(line)
        step = 0 if found is None else found[0]["step"]
        if lead:
            folder.cut_metrics(step or -1)  # at step 0 the monitor writes its row again
            for path in complete(folder.checkpoints):  # damaged or given up: no longer counted among the last
                if int(path.name[5:]) > step:
                    path.rename(path.with_name(f"damaged-{path.name}"))
            folder.status("running", step)
        return step

    step = held = restore()  # `held`: the step of the newest checkpoint
    events = Events(folder.path, step, progress.say) if lead else None

    def record(row: Mapping[str, Any]) -> None:
        if events is not None:
            folder.metric(row)
            events.add(row)

    monitor = watch(device, progress) if lead else None
    if monitor is not None and step == 0:
        with contextlib.suppress(Stopped), stop.at_once():
            record(monitor(0))

    if settings.compile == "yes" or (settings.compile == "auto" and device.type == "cuda"):
        learner.compile()
    model, stepper = fabric.setup(learner, optimizer)
    warmup = warmup_steps(settings.warmup_epochs, len(pictures) / batch, steps)
    peak = scaled_rate(settings.lr, settings.base_lr, batch)
    every = measured_every(settings)
    batches = pictures.batches(batch, step, steps - step, parts, rank, world, workers, pin=device.type == "cuda")
    meter = Meter(batch, len(pictures), steps)
    pending: list[tuple[int, float, Tensor, Tensor]] = []
    bad: list[int] = []
    shown: dict[str, Any] = {}
    saved = fetched = time.monotonic()

    def save() -> None:
        if writer is not None and step != held:
            folder.flush()
            folder.status("running", step)
            state = {"steps": steps, "threads": torch.get_num_threads(), "torch": torch.__version__, "spoiled": sorted(spoiled)}
            state["scaler"] = fabric.strategy.precision.state_dict()
            writer.save(step, learner.state_dict(), optimizer_tensors(optimizer, learner), state, metadata)

    def late() -> bool:
        """Whether a checkpoint is due by the clock: the first process's, where there are several, for all must act alike."""
        if world == 1:
            return time.monotonic() - saved > SAVE
        return step % FETCH_STEPS == 0 and fabric.broadcast(time.monotonic() - saved > SAVE)

    try:
        stop.agree(fabric)
        while step < steps and not stop.agreed:
            # what a step needs to know beforehand: pure functions of (seed, step)
            at = step / steps
            learner.before_step(at, seeds.uniform((1,), seed, "step", step).item())
            rate = warmup_cosine(step, steps, warmup, peak, settings.min_lr)
            ends = settings.weight_decay if settings.weight_decay_end is None else settings.weight_decay_end
            decay = cosine(step, steps, settings.weight_decay, ends) / settings.weight_decay if settings.weight_decay else 1.0
            for group, factor, own in zip(optimizer.param_groups, factors, decays):
                group["lr"] = rate if factor is None else rate * factor(at)
                group["weight_decay"] = own * decay

            # look at the visible, predict the masked
            loss = torch.zeros((), device=device)
            for part in range(parts):
                with meter.waiting():
                    read = next(batches)
                x = pictures.finish(read, device)
                noise = seeds.uniform((batch, learner.draws(x)), seed, "noise", step).to(device, non_blocking=True)
                rows = None if world * parts == 1 else share_of(batch, parts, part, world, rank).to(device)
                drawn = {name: given for name, given in (("rows", rows), ("mask", learner.draw_mask(x, noise, rows))) if given is not None}
                seeds.reseed(seed, "dropout", step, rank, part)  # here: reading draws numbers of its own at its start
                with fabric.no_backward_sync(model, enabled=part + 1 < parts):
                    losses = model(x, noise, **drawn)
                    fabric.backward(losses["loss"] / parts)
                loss += losses["loss"].detach() / parts

            # move the weights, unless a gradient is not finite: decided on the device (16-mixed: by the scaler of its gradients)
            norm = clip(fabric, model, stepper, learner, settings)
            if fused and not scaled:
                optimizer.grad_scale, optimizer.found_inf = None, (~torch.isfinite(norm)).float()
            if step not in spoiled and (fused or scaled or bool(torch.isfinite(norm))):
                stepper.step()
            stepper.zero_grad()
            learner.after_step((step + 1) / steps)
            step += 1
            pending.append((step, rate, loss, norm))
            meter.step()

            # now and then: fetch what was computed, write it, show it
            measure = step % every == 0 or step == steps
            due = step == steps or (step % settings.checkpoint_every == 0 if settings.checkpoint_every else late())
            if measure or due or (time.monotonic() - fetched > FETCH if world == 1 else step % FETCH_STEPS == 0):
                fetched = time.monotonic()
                bad += note(pending, spoiled, record, fabric, meter, scaled)
                folder.flush()
                first = in_a_row(bad)
                if first is not None:  # a function of the steps alone, not of when this looks
                    if writer is not None:
                        writer.join()
                    fabric.barrier()
                    if spoiled or not any(int(path.name[5:]) < first for path in complete(folder.checkpoints)):
                        raise Failed(keep_batch(pictures, learner, folder, settings, first - 1) if lead else f"the gradients of step {first:,} are not finite")
                    progress.say(f"warning: the gradients from step {first:,} on are not finite: back to a checkpoint, and on without the steps that led there")
                    spoiled.update(range(max(first - 1 - LED_THERE, 0), first - 1 + IN_A_ROW))  # the same way would lead there again
                    fabric.barrier()
                    step = held = restore(first)
                    bad = []
                    batches = pictures.batches(batch, step, steps - step, parts, rank, world, workers, pin=device.type == "cuda")
                    continue
                if measure and monitor is not None:
                    with contextlib.suppress(Stopped), stop.at_once():
                        shown |= (row := monitor(step, x, noise, rows))
                        record(row)
                    meter.begin()
                shown["bad"] = len(pictures.quarantine)
                (progress.say if measure else progress.move)(meter.line(step, shown))

            # never lose work: what was written down reaches as far as what is saved
            if due:
                saved = time.monotonic()
                save()
                held = step
            if world == 1 or device.type == "cpu" or step % AGREE == 0:
                stop.agree(fabric)
        note(pending, spoiled, record, fabric, meter, scaled)
        if step < steps:
            save()
        if writer is not None:
            writer.join()
    finally:
        folder.close()
        progress.close()
        if events is not None:
            events.close()
    return step


def in_a_row(bad: list[int]) -> int | None:
    """The first of the earliest `IN_A_ROW` steps that follow each other, if there are such."""
    last = IN_A_ROW - 1
    return next((bad[i] for i in range(len(bad) - last) if bad[i + last] - bad[i] == last), None)


def share_of(batch: int, parts: int, part: int, world: int, rank: int) -> Tensor:
    """Which rows of a step's batch one process computes in one part."""
    each = batch // (parts * world)
    first = part * (batch // parts) + rank * each
    return torch.arange(first, first + each)


def clip(fabric: Any, model: nn.Module, stepper: Any, learner: Learner, settings: Train) -> Tensor:
    """Clip the gradients as the settings say; their norm before that, all together."""
    apart = settings.clip is not None and settings.clip_per != "all"
    limit = math.inf if apart or settings.clip is None else settings.clip
    norm = fabric.clip_gradients(model, stepper, max_norm=limit, error_if_nonfinite=False)
    if apart:
        each = [list(one.parameters()) for one in learner.children()] if settings.clip_per == "module" else [[one] for one in learner.parameters()]
        for some in each:
            if some:
                torch.nn.utils.clip_grad_norm_(some, settings.clip)
    return norm


def note(
    pending: list[tuple[int, float, Tensor, Tensor]], spoiled: set[int], record: Callable[[Mapping[str, Any]], None], fabric: Any, meter: Meter, scaled: bool
) -> list[int]:
    """Record the steps since the last time; those whose gradients were not finite, but for the ones known as `spoiled`."""
    if not pending:
        return []
    values = torch.stack([torch.stack([loss.float(), norm.float()]) for _, _, loss, norm in pending])  # (steps, 2)
    if fabric.world_size > 1:
        values = fabric.all_reduce(values, reduce_op="mean")
    pace, bad = meter.numbers(), []
    for (step, rate, _, _), (loss, norm) in zip(pending, values.tolist()):
        row = {"step": step, "loss": loss if math.isfinite(loss) else None, "lr": rate, "grad_norm": norm if math.isfinite(norm) else None, **pace}
        if not math.isfinite(loss if scaled else norm) or step - 1 in spoiled:  # a scaler looks for its scale: infinite gradients are its way
            bad += [step] if step - 1 not in spoiled else []
            row["skipped"] = True
        record(row)
        meter.loss = loss
    pending.clear()
    return bad


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
