"""From a recipe to a run folder, and on from a run folder: one path for a new run and a resumed one."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from unmask import seeds
from unmask.data.loader import Pictures
from unmask.data.sources import Source, open_source
from unmask.data.statistics import Format, survey
from unmask.errors import Failed, Interrupted, Refused, UnmaskError
from unmask.interchange.encoder import describe, load_encoder, save_encoder
from unmask.load import metadata_of
from unmask.methods import find
from unmask.model import Learner
from unmask.recipe import Recipe, settle
from unmask.run.folder import CONFIG, RunFolder, write_whole
from unmask.settings import FORMAT
from unmask.training import plan
from unmask.training.loop import train
from unmask.training.progress import duration
from unmask.training.stop import Stop

DATA = "data.json"  # what was measured on the pictures, and which they are
FREE = {"workers", "keep", "checkpoint_every", "monitor_every", "accelerator", "max_bad_share"}  # settings that a resume may change: the weights stay the same


def begin(recipe: Recipe, out: Path) -> Path:
    """Choose what was left open, make the run folder and train; the folder."""
    with Stop() as stop:
        source = open_source(recipe.data, recipe.input.labels)
        trunk, reading = recipe.trunk, recipe.input
        format = survey(source, trunk.in_chans, reading.normalize, recipe.train.seed, reading.max_bad_share, reading.tile)
        recipe, said = plan.choose(started(recipe), len(source), format)
        said = [f"{len(source):,} pictures in {recipe.data}", *source.said, *format.said, *said]
        learner = build(recipe)
        recipe, more = plan.sized(recipe, learner)
        said += more
        pictures = Pictures(source, format, recipe.views, recipe.trunk.img_size, recipe.train.seed, reading.max_bad_share, None, reading.tile)
        step = plan.pace(learner, pictures, recipe.train, recipe.input.workers or 0, recipe.train.accelerator)
        if "time" in recipe.given:
            train_, more = plan.timed(recipe.train, recipe, step)
            recipe, said = replace(recipe, train=train_), said + more
        end = datetime.datetime.now() + datetime.timedelta(seconds=step * recipe.train.steps)
        said.append(f"{recipe.train.steps:,} steps of {recipe.train.batch_size}, about {duration(step * recipe.train.steps)}: until about {end:%d %b %H:%M}")
        if stop.wish:
            raise Interrupted(f"stopped by {stop.wish} before the first step: nothing was written")
        folder = RunFolder.create(out, recipe.text())
        kept = {"format": FORMAT, "count": len(source), "fingerprint": source.fingerprint, "statistics": format.as_dict(), "threads": torch.get_num_threads()}
        write_whole(folder.path / DATA, json.dumps(kept, indent=1))
        for line in said:
            print(line)
            folder.log(line)
        return launch(folder, recipe, None if isinstance(recipe.data, str) else recipe.data, learner, stop)


def again(run: Path, force: bool, said: Mapping[str, Any]) -> Path:
    """Go on with a run from its newest checkpoint; changed settings are refused by name unless `force`."""
    folder = RunFolder.open(run)
    if folder.read_status().get("status") == "finished":
        print(f"{run} is finished: nothing is left to do")
        return run
    said = dict(said)
    data = said.pop("data", None)
    before = settle(None, None, run / CONFIG, {})
    after = settle(None, None, run / CONFIG, said)
    changed = [name for name, value in after.lines().items() if before.lines()[name] != value and name not in FREE]
    if changed and not force:
        raise Refused(f"{', '.join('--' + name for name in changed)}: the run has another value, and would no longer be the uninterrupted run; --force takes it")
    if said:
        write_whole(run / CONFIG, after.text())
    kept = json.loads((run / DATA).read_text())
    torch.set_num_threads(kept["threads"])
    source = open_source(after.data if data is None else data, after.input.labels)
    if source.fingerprint != kept["fingerprint"] and not force:
        raise Refused(f"the pictures in {after.data} are not those that the run began with ({kept['count']:,} then, {len(source):,} now); --force goes on with them")
    with Stop() as stop:
        return launch(folder, after, data, None, stop)


def started(recipe: Recipe) -> Recipe:
    """With `--init`: the network is that of the weights, where it was not said."""
    trunk = recipe.trunk
    if trunk.init is None or trunk.model is not None:
        return recipe
    opened = load_encoder(trunk.init)
    sizes = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "patch_size": "patch_size"}
    own = opened.model.unmask_kwargs
    given = {name: own[theirs] for name, theirs in sizes.items() if getattr(trunk, name) is None and theirs in own}
    return replace(recipe, trunk=replace(trunk, model=opened.name, img_size=trunk.img_size or opened.img_size, **given))


def words_of(recipe: Recipe) -> dict[str, Any]:
    """What `method.build` is called with."""
    trunk = recipe.trunk
    sizes = {name: getattr(trunk, name) for name in ("width", "depth", "heads") if getattr(trunk, name) is not None}
    return {"model": trunk.model, "img_size": trunk.img_size, "in_chans": trunk.in_chans, "patch_size": trunk.patch_size, **sizes}


def build(recipe: Recipe) -> Learner:
    """The learner at step 0: a function of the recipe alone."""
    seeds.reseed(recipe.train.seed, "init")
    method = find(recipe.name)(**vars(recipe.method))  # the recipe's own was made without importing its file
    learner = method.build(**words_of(recipe))
    if recipe.trunk.init is not None:
        opened = load_encoder(recipe.trunk.init, img_size=recipe.trunk.img_size)
        trunk = learner.encoder.trunk
        try:
            missing, unknown = trunk.load_state_dict(opened.model.state_dict(), strict=False)
        except RuntimeError as error:
            raise Refused(f"--init {recipe.trunk.init} does not fit {recipe.trunk.model}: {str(error).splitlines()[-1].strip()}") from None
        if missing or unknown:
            raise Refused(f"--init {recipe.trunk.init} does not fit {recipe.trunk.model}: missing {missing[:5]}, unknown {unknown[:5]}")
    if recipe.trunk.activation_checkpointing:
        learner.encoder.trunk.set_grad_checkpointing(True)
    return learner


def launch(folder: RunFolder, recipe: Recipe, data: Any, learner: Learner | None, stop: Stop) -> Path:
    """Start the processes of a run, wait for its end, and say how it ended."""
    from lightning_fabric import Fabric

    settings = recipe.train
    several = settings.devices * settings.nodes > 1
    outside = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_NTASKS" in os.environ  # somebody else has started the processes
    strategy = "auto" if not several else "ddp" if outside else "ddp_spawn"
    fabric = Fabric(accelerator=settings.accelerator, devices=settings.devices, num_nodes=settings.nodes, strategy=strategy, precision=settings.precision)
    try:
        step, wish = fabric.launch(work, folder.path, data, None if several else learner, None if several else stop)
    except UnmaskError as error:
        folder.status("failed", why=str(error))
        raise
    except Exception as error:
        if several and "Process" in type(error).__name__:  # a process has failed: its last line says why
            folder.status("failed", why=str(error).strip().splitlines()[-1])
            raise Failed(str(error).strip().splitlines()[-1]) from None
        folder.status("failed", why=f"{type(error).__name__}: {error}")
        if not (folder.path / "metrics.jsonl").exists() and not list(folder.checkpoints.glob("step-*")):
            shutil.rmtree(folder.path)  # it failed before the first step: nothing to go on with, nothing in the way
        raise
    if step < settings.steps:
        raise Interrupted(f"stopped by {wish or 'a signal'} at step {step:,} of {settings.steps:,}, everything is saved. Go on exactly there: {folder.resume}")
    return folder.path


def work(fabric: Any, path: Path, data: Any, learner: Learner | None, stop: Stop | None) -> tuple[int, str | None]:
    """What each process does: build from the run folder alone, train, finish. The step reached, and the signal that ended it."""
    if stop is None:
        with Stop() as own:
            return work(fabric, path, data, learner, own)
    folder = RunFolder.open(path)
    recipe = settle(None, None, path / CONFIG, {})
    kept = json.loads((path / DATA).read_text())
    said = {field.name: kept["statistics"][field.name] for field in fields(Format)}
    format = Format(**{name: tuple(value) if isinstance(value, list) else value for name, value in said.items()})
    source = open_source(recipe.data if data is None else data, recipe.input.labels)
    learner = learner or build(recipe)
    seed, reading = recipe.train.seed, recipe.input
    quarantine = folder.quarantine if fabric.global_rank == 0 else None
    pictures = Pictures(source, format, recipe.views, recipe.trunk.img_size, seed, reading.max_bad_share, quarantine, reading.tile)
    statistics = {name: getattr(format, name) for name in ("mean", "std", "low", "high")}
    words = metadata_of(recipe.method, recipe.name, **words_of(recipe)) | ({} if learner_trunk(learner) is None else describe(learner_trunk(learner), statistics))
    step = train(fabric, learner, pictures, recipe.train, reading.workers or 0, folder, stop, words, recipe.trunk.init is None)
    if fabric.global_rank == 0:
        if step == recipe.train.steps:
            finish(folder, learner, words, statistics, step)
        else:
            folder.status("interrupted", step, f"stopped by {stop.wish}")
    return step, stop.wish


def learner_trunk(learner: Learner) -> Any:
    """The timm model in a learner; None for learners without an encoder (tokenizers)."""
    encoder = dict(learner.named_children()).get("encoder")
    return None if encoder is None else encoder.trunk


def finish(folder: RunFolder, learner: Learner, words: Mapping[str, str], statistics: Mapping[str, Any], step: int) -> None:
    """What a finished run leaves: the whole learner, its encoder, and the report."""
    hidden = folder.path / ".model.safetensors"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in learner.state_dict().items()}, hidden, metadata=dict(words))
    os.replace(hidden, folder.path / "model.safetensors")
    if learner_trunk(learner) is not None:
        save_encoder(folder.path / "encoder.safetensors", learner_trunk(learner), statistics)
    folder.status("finished", step)
    try:
        from unmask.visualize.report import write

        write([folder.path])
    except ImportError as error:
        print(f"no report.html: {error}")
    print(f"finished: {folder.path} (report.html shows it). Next: unmask evaluate knn {folder.path} LABELLED; unmask reconstruct {folder.path} PICTURES; unmask export {folder.path} --out encoder")
