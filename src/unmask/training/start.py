"""From a recipe to a run folder, and on from a run folder: one path for a new run and a resumed one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from unmask.errors import Failed, Interrupted, Refused, UnmaskError
from unmask.model import Learner
from unmask.recipe import Recipe, settle
from unmask.run.checkpoint import complete
from unmask.run.folder import CONFIG, RunFolder, leads, refuse_taken, write_whole
from unmask.settings import FORMAT
from unmask.training import plan
from unmask.training.loop import train
from unmask.training.progress import duration
from unmask.training.stop import Stop, Stopped
from unmask.training.task import task_of

DATA = "data.json"  # what was measured on the pictures, and which they are
FREE = {"workers", "keep", "checkpoint_every", "monitor_every", "max_bad_share"}  # settings that a resume may change: the weights stay the same
PATIENCE = 3600  # seconds that processes started by a launcher wait for the first one to choose and to make the folder


def begin(recipe: Recipe, out: Path) -> Path:
    """Choose what was left open, make the run folder and train; the folder."""
    outside = launched()
    if outside:
        recipe = replace(recipe, train=replace(recipe.train, devices=outside[0], nodes=outside[1]))
    first = leads()
    data, folder, learner = None if isinstance(recipe.data, str) else recipe.data, None, None
    with Stop() as stop:
        try:
            with stop.at_once():
                if first:
                    refuse_taken(out)
                    made = task_of(recipe).prepare(recipe)
                    recipe, learner = made.recipe, made.learner
                    folder = RunFolder.create(out, recipe.text())
                    folder.take()
                    keep_data(folder, made.kept)
                    for line in made.said:
                        print(line, flush=True)
                        folder.log(line)
                else:
                    wait_for(out)
        except Stopped:
            if folder is not None:
                folder.leave()
                folder.discard()
            raise Interrupted(f"stopped by {stop.wish} before the first step: nothing is kept, the same command begins again") from None
        if folder is None:
            folder, recipe = RunFolder.open(out), settle(None, None, out / CONFIG, {})
        return launch(folder, recipe, data, learner, stop, fresh=first)


def again(run: Path, force: bool, said: Mapping[str, Any]) -> Path:
    """Go on with a run from its newest checkpoint; changed settings are refused by name unless `force`."""
    folder = RunFolder.open(run)
    said = dict(said)
    data = said.pop("data", None)
    before, after = settle(None, None, run / CONFIG, {}), settle(None, None, run / CONFIG, said)
    changed = [name for name, value in after.lines().items() if before.lines()[name] != value and name not in FREE]
    if "time" in said:
        raise Refused("--time is for a new run: say --steps or --epochs")
    if changed and not force:
        raise Refused(f"{', '.join('--' + name for name in changed)}: the run has another value, and would no longer be the uninterrupted run; --force takes it")
    if folder.read_status().get("status") == "finished" and not changed:
        print(f"{run} is finished: nothing is left to do")
        return run
    with Stop() as stop:
        if not leads():  # the first process looks at everything; they meet when the processes are joined
            return launch(folder, after, data, None, stop, fresh=False)
        try:
            with stop.at_once():
                folder.take()
                after = check_data(folder, after, data, force)
                if changed:
                    check_network(folder, after, changed)
                if said:
                    write_whole(run / CONFIG, after.text())
                    folder.log(f"resumed with other settings: {said}")
        except Stopped:
            raise Interrupted(f"stopped by {stop.wish} before the first step. Go on: {folder.resume}") from None
        return launch(folder, after, data, None, stop, fresh=False)


def check_data(folder: RunFolder, recipe: Recipe, data: Any, force: bool) -> Recipe:
    """The pictures must be those that the run began with; the recipe, its length as steps. Restores the number of threads."""
    task = task_of(recipe)
    if not (folder.path / DATA).is_file():  # killed between its first two files
        keep_data(folder, task.keep(recipe, data))
    kept = json.loads((folder.path / DATA).read_text(encoding="utf-8"))
    fingerprint, count = task.fingerprint(recipe, data)
    if fingerprint != kept["fingerprint"] and not force:
        raise Refused(f"the pictures in {recipe.data} are not those that the run began with ({kept['count']:,} then, {count:,} now); --force goes on with them")
    torch.set_num_threads(kept["threads"])  # another number of threads adds in another order: the last bits would differ
    plan.together(recipe.method, recipe.name, recipe.train)
    return replace(recipe, train=plan.fixed(recipe.train, count))


def check_network(folder: RunFolder, recipe: Recipe, changed: Sequence[str]) -> None:
    """Refused where the network that the changed settings make is not that of the newest checkpoint: not even --force turns one into the other."""
    kept = json.loads((folder.path / DATA).read_text(encoding="utf-8"))
    made = {name: list(tensor.shape) for name, tensor in task_of(recipe).build(recipe, kept).state_dict().items()}
    for checkpoint in complete(folder.checkpoints)[-1:]:
        with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
            there = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        other = next((name for name in sorted(made | there) if made.get(name) != there.get(name)), None)
        if other is not None:
            raise Refused(
                f"{', '.join('--' + name for name in changed)}: the network would not be the run's ({other}: {made.get(other)}, there {there.get(other)}); "
                f"begin another run with it: unmask pretrain … --init {folder.path}"
            )


def keep_data(folder: RunFolder, kept: Mapping[str, Any]) -> None:
    """Write data.json: what was measured on the pictures, and which they are."""
    write_whole(folder.path / DATA, json.dumps({"format": FORMAT} | dict(kept) | {"threads": torch.get_num_threads()}, indent=1))


def launched() -> tuple[int, int] | None:
    """Devices a machine, and machines, where a launcher (torchrun, SLURM) has already started this run's processes."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        return each, int(os.environ["WORLD_SIZE"]) // each
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        nodes = int(os.environ["SLURM_NNODES"])
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return None


def wait_for(out: Path) -> None:
    """Until the first process has made the run folder."""
    end = time.monotonic() + PATIENCE
    while not (out / DATA).is_file():
        if time.monotonic() > end:
            raise Failed(f"the first process has made no {out} in {duration(PATIENCE)}")
        time.sleep(0.2)


def launch(folder: RunFolder, recipe: Recipe, data: Any, learner: Learner | None, stop: Stop, fresh: bool) -> Path:
    """Start the processes of a run, wait for its end, and say how it ended. A `fresh` run that fails before its first step leaves nothing."""
    settings = recipe.train
    several, outside = settings.devices * settings.nodes > 1, launched() is not None
    strategy = "auto" if not several else "ddp" if outside or settings.nodes > 1 else "ddp_spawn"
    apart = several and not outside
    if apart:
        folder.leave()  # the first of the processes takes it
    try:
        from lightning_fabric import Fabric

        fabric = Fabric(accelerator=settings.accelerator, devices=settings.devices, num_nodes=settings.nodes, strategy=strategy, precision=settings.precision)
        step, wish, done = fabric.launch(work, folder.path, data, None if apart else learner, None if apart else stop)
    except Exception as error:
        error = explained(error, settings)
        if folder.read_status().get("status") != "failed":
            folder.status("failed", folder.read_status().get("step", 0), why=str(error))
        if fresh:
            folder.leave()
            folder.discard()
        raise error from (None if isinstance(error, UnmaskError) else error.__cause__)
    finally:
        folder.leave()
    if not done:
        raise Interrupted(f"stopped by {wish or 'a signal'} at step {step:,} of {settings.steps:,}, everything is saved. Go on exactly there: {folder.resume}")
    return folder.path


def explained(error: Exception, settings: Any) -> Exception:
    """The error as a person wants to read it, where it is one of the usual ones."""
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    if isinstance(error, ProcessRaisedException | ProcessExitedException):  # the last line of the process's traceback says why
        last = str(error).strip().splitlines()[-1]
        kind, _, said = last.partition(": ")
        return (Refused if kind.endswith("Refused") else Failed)(said if kind.startswith("unmask.errors.") else last)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        less = f"--accumulate {settings.accumulate * 2} (the same result), --activation_checkpointing, or less than --batch_size {settings.batch_size}"
        return Failed(f"the GPU's memory is too small for this step: try {less}")
    return error


def work(fabric: Any, path: Path, data: Any, learner: Learner | None, stop: Stop | None) -> tuple[int, str | None, bool]:
    """What each process does: build from the run folder alone, train, finish. The step reached, the signal that ended it, whether all is done."""
    if stop is None:
        with Stop(os.getppid()) as own:
            if fabric.global_rank == 0:
                held = RunFolder.open(path)
                held.take()  # to the end of this process
            return work(fabric, path, data, learner, own)
    folder, lead = RunFolder.open(path), fabric.global_rank == 0
    recipe = settle(None, None, path / CONFIG, {})
    task = task_of(recipe)
    kept = json.loads((path / DATA).read_text(encoding="utf-8"))
    learner = learner or task.build(recipe, kept)
    feed = task.feed(recipe, kept, data, folder.quarantine)
    words = task.metadata(recipe, kept, learner)
    settings = recipe.train
    if lead:
        device = torch.cuda.get_device_name() if fabric.device.type == "cuda" else fabric.device.type
        folder.environment(device=device, precision=settings.precision, processes=fabric.world_size, threads=torch.get_num_threads())
    try:
        step = train(fabric, learner, feed, settings, recipe.input.workers or 0, folder, stop, words, partial(task.watch, recipe, learner, feed, folder))
        done = step == settings.steps
        if lead and done:
            try:
                with stop.at_once():
                    task.finish(recipe, kept, learner, feed, folder, words, step)
            except Stopped:
                done = False  # the last checkpoint holds everything: resuming goes straight to the end
    except Exception as error:
        if lead:
            folder.status("failed", folder.reached, why=f"{error}" if isinstance(error, UnmaskError) else f"{type(error).__name__}: {error}")
        raise
    if lead and not done:
        folder.status("interrupted", step, f"stopped by {stop.wish or 'a signal'}")
    return step, stop.wish, done
