"""Training an encoder further, as the loop sees it: labelled pictures, a classifier, its metric on the way, an evaluation at the end."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unmask import seeds
from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.splits import parts
from unmask.data.statistics import Format, survey
from unmask.data.subset import Subset
from unmask.data.transform import format_for
from unmask.errors import Refused
from unmask.interchange.encoder import Encoder, describe, load_encoder, save_encoder
from unmask.load import metadata_of
from unmask.methods import find
from unmask.optim.schedule import scaled_rate
from unmask.recipe import Recipe
from unmask.run.folder import RunFolder
from unmask.settings import Views
from unmask.training import plan
from unmask.training.finish import conclude
from unmask.training.pretraining import format_of, statistics_of
from unmask.training.progress import Progress
from unmask.training.task import Prepared, Task
from unmask.transfer import choice
from unmask.transfer.classifier import Classifier
from unmask.transfer.distortion import Distortion
from unmask.transfer.supervised import Asked, Supervised, asked_of, few, said_of
from unmask.transfer.validation import Validation, figures


class Teaching(Task):
    """An encoder trained on labels."""

    def prepare(self, recipe: Recipe) -> Prepared:
        source = open_source(recipe.data, recipe.input)
        encoder, format, said = begun(recipe, source)
        recipe = replace(recipe, trunk=replace(recipe.trunk, img_size=encoder.img_size, in_chans=encoder.in_chans), input=replace(recipe.input, tile=encoder.tile))
        feed = taught(recipe, source, format)
        said += [*source.said, *feed.labels.said(), said_of(feed.asked, len(feed), len(feed.judge), feed.chosen, recipe.input.shots, recipe.input.share)]
        recipe, more = choice.fitting(recipe, encoder.name)
        said += more
        recipe, more = choice.choose(recipe, len(feed), encoder.model.num_features)
        said += more
        kept = described(recipe, feed, format, encoder)
        pace = plan.pace(built(recipe, kept, encoder), feed, recipe.train, recipe.input.workers or 0)
        recipe, more = plan.paced(recipe, pace)
        said += more
        recipe, more = choice.strength(recipe, len(feed), feed.asked.kind, undistorted(format))
        said += more
        return Prepared(recipe, kept, built(recipe, kept, encoder), [*said, plan.announced(recipe, pace, len(feed))])

    def keep(self, recipe: Recipe, data: Any = None) -> dict[str, Any]:
        source = open_source(recipe.data if data is None else data, recipe.input)
        encoder, format, _ = begun(recipe, source)
        return described(recipe, taught(recipe, source, format), format, encoder)

    def fingerprint(self, recipe: Recipe, data: Any = None) -> tuple[str, int]:
        source = open_source(recipe.data if data is None else data, recipe.input)
        feed = taught(recipe, source, Format(1, (0,), (255,), (0,), (1,)))  # which pictures: their numbers do not matter
        return feed.fingerprint, len(feed)

    def build(self, recipe: Recipe, kept: Mapping[str, Any]) -> Classifier:
        return built(recipe, kept, encoder_of(recipe))

    def feed(self, recipe: Recipe, kept: Mapping[str, Any], data: Any = None, quarantine: Path | None = None) -> Supervised:
        source = open_source(recipe.data if data is None else data, recipe.input)
        return taught(recipe, source, format_of(kept), quarantine)

    def metadata(self, recipe: Recipe, kept: Mapping[str, Any], learner: Any) -> dict[str, str]:
        return describe(learner.encoder.trunk, read_by(recipe, kept)) | metadata_of(recipe.method, recipe.name, **words_of(kept))

    def watch(self, recipe: Recipe, learner: Any, feed: Any, folder: RunFolder, device: torch.device, progress: Progress) -> Validation:
        return Validation(learner, feed, recipe.train, device, progress)

    def finish(self, recipe: Recipe, kept: Mapping[str, Any], learner: Any, feed: Any, folder: RunFolder, metadata: Mapping[str, str], step: int) -> None:
        average = learner.handed() is not learner.encoder
        save_encoder(folder.path / "encoder.safetensors", learner.handed().trunk, read_by(recipe, kept))
        row = evaluation(recipe, learner, feed, folder, average)
        folder.evaluation(row)
        start = Path(recipe.trunk.encoder)
        if (start / "config.yaml").is_file() and recipe.input.shots is None and recipe.input.share is None:  # subsets are told together: see lowshot
            RunFolder.open(start).evaluation(row)
        here = shlex.quote(str(folder.path))
        conclude(folder, learner, metadata, step, [f"unmask evaluate knn {here} LABELLED      # what the fine-tuned encoder's features tell"])


def built(recipe: Recipe, kept: Mapping[str, Any], encoder: Encoder) -> Classifier:
    """The learner at step 0: the encoder's weights, and a head that is a function of the seed."""
    seeds.reseed(recipe.train.seed, "init")
    learner = find(recipe.name)(**vars(recipe.method)).build(**words_of(kept))
    fill(learner.encoder.trunk, encoder)
    if digest(encoder.model) != kept["encoder"]["digest"]:
        print(f"warning: the weights of {recipe.trunk.encoder} have changed since the run began; what is saved of the run is used, if anything is")
    if learner.average is not None:
        learner.average.load_state_dict(learner.parts().state_dict())
    if recipe.trunk.activation_checkpointing:
        learner.encoder.trunk.set_grad_checkpointing(True)
    return learner


def evaluation(recipe: Recipe, learner: Classifier, feed: Supervised, folder: RunFolder, average: bool) -> dict[str, Any]:
    """The row of evaluations.jsonl: the figures on all pictures that judge, and everything needed to read them."""
    begin = time.perf_counter()
    device, workers, seed = learner.head.weight.device, recipe.input.workers or 0, recipe.train.seed
    found, judged = figures(learner, feed, device, workers, average, seed)
    both = {}
    if learner.average is not None:  # the other weights beside those that are kept
        other, _ = figures(learner, feed, device, workers, not average, seed)
        both = {f"{other['metric']}_{'last' if average else 'average'}": other[other["metric"]]}
    train, method = recipe.train, recipe.method
    settings = {name: value for name, value in vars(method).items() if name not in ("pooling", "weights")}
    spent = (time.time() - (folder.path / "config.yaml").stat().st_mtime) if (folder.path / "config.yaml").is_file() else 0.0
    return {
        "encoder": str(recipe.trunk.encoder),
        "random": recipe.trunk.scratch or str(recipe.trunk.encoder).startswith("random:"),
        "protocol": recipe.name,
        **found,
        **both,
        "pooling": learner.pooling,
        "img_size": list(recipe.trunk.img_size),
        "seed": train.seed,
        "n_train": len(feed),
        "n_val": judged,
        "val": feed.chosen,
        **feed.labels.balance(),
        "steps": train.steps,
        "epochs": round((train.steps or 0) * (train.batch_size or 0) / len(feed), 2),
        "batch_size": train.batch_size,
        "lr": scaled_rate(train.lr, train.base_lr, train.batch_size or 0, train.lr_by),
        **settings,
        "shots": recipe.input.shots,
        "share": recipe.input.share,
        "subset": recipe.input.subset,
        "run": str(folder.path),
        "seconds": round(spent if spent > 0 else time.perf_counter() - begin, 2),
    }


def read_by(recipe: Recipe, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What an encoder's file says beside its network: how stored numbers become its input, and of what size that is."""
    return {**statistics_of(recipe, kept), "img_size": list(recipe.trunk.img_size or ()), "in_chans": recipe.trunk.in_chans}


def encoder_of(recipe: Recipe, in_chans: int | None = None) -> Encoder:
    """The encoder that the run begins with; with `scratch` its network and fresh weights."""
    start = recipe.trunk
    chans = start.in_chans if str(start.encoder).startswith("random:") else None
    return load_encoder(
        start.encoder, img_size=start.img_size, in_chans=in_chans or chans, patch_size=start.patch_size, random=start.scratch, seed=recipe.train.seed
    )


def begun(recipe: Recipe, source: Any) -> tuple[Encoder, Format, list[str]]:
    """The encoder, and what the numbers in the pictures mean to it: its own statistics, or measured ones where it has none."""
    start, reading, seed = recipe.trunk, recipe.input, recipe.train.seed
    chans = None
    if str(start.encoder).startswith("random:") and start.in_chans is None:
        chans = survey(source, None, seed=seed, max_bad_share=reading.max_bad_share, tile=reading.tile, window=reading.window).in_chans
    encoder = encoder_of(recipe, chans)
    encoder = replace(encoder, tile=reading.tile or encoder.tile)
    format = format_for(encoder, source, reading.window, seed, reading.max_bad_share)
    encoder = replace(encoder, mean=format.mean, std=format.std, low=format.low, high=format.high, window=format.window)
    weights = sum(p.numel() for p in encoder.model.parameters()) / 1e6
    return encoder, format, [*format.said, f"{encoder.source}: {encoder.name}, {weights:.1f} M weights, {' x '.join(map(str, encoder.img_size))} px"]


def taught(recipe: Recipe, source: Any, format: Format, quarantine: Path | None = None) -> Supervised:
    """The pictures that teach and judge."""
    reading, method, size, seed = recipe.input, recipe.method, recipe.trunk.img_size, recipe.train.seed
    every = Pictures(source, format, Views(), size, seed, reading.max_bad_share, quarantine, reading.tile)
    val = None
    if reading.val is not None:
        val = Pictures(open_source(reading.val, reading), format, Views(), size, seed, reading.max_bad_share, quarantine, reading.tile)
    every, teach, judging, judge, chosen = parts(every, val, str(recipe.data), seed)
    assert every.labels is not None and judging.labels is not None
    teach = few(every.labels, teach, reading.shots, reading.share, seed, reading.subset)
    distort = None
    strength, colour = (vars(method).get(name, 0.0) for name in ("randaugment", "colour"))
    if (strength or colour) and not undistorted(format):
        distort = Distortion(strength, colour, tuple(min(255, round(255 * mean)) for mean in format.mean))
    pictures = Pictures(Subset(source, teach), format, recipe.views, size, seed, reading.max_bad_share, quarantine, reading.tile, distort)
    verdicts = torch.from_numpy(judging.labels.values[judge])
    return Supervised(pictures, every.labels.rows(teach), judging, judge, verdicts, asked_of(every.labels, teach), chosen)


def undistorted(format: Format) -> str:
    """Why RandAugment cannot change such pictures; empty where it can."""
    if format.eight_bit and format.in_chans in (1, 3):
        return ""
    return f"it is made for 8-bit pictures of 1 or 3 channels, these have {format.in_chans} of {'8' if format.eight_bit else 'more'} bits"


def described(recipe: Recipe, feed: Supervised, format: Format, encoder: Encoder) -> dict[str, Any]:
    """What data.json keeps."""
    network = {"model": encoder.name, "kwargs": dict(encoder.kwargs), "img_size": list(encoder.img_size)}
    return {
        "count": len(feed),
        "fingerprint": feed.fingerprint,
        "statistics": format.as_dict(),
        "network": json.loads(json.dumps(network)),
        "asked": asdict(feed.asked),
        "encoder": {"name": str(recipe.trunk.encoder), "digest": digest(encoder.model)},
    }


def words_of(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What `Finetune.build` is called with."""
    asked = Asked(**kept["asked"])
    kwargs = {name: tuple(value) if isinstance(value, list) else value for name, value in kept["network"]["kwargs"].items()}
    size = tuple(kept["network"]["img_size"])
    return {"model": kept["network"]["model"], "kwargs": kwargs, "img_size": size, "names": asked.names, "kind": asked.kind, "moments": asked.moments}


def digest(model: nn.Module) -> str:
    """Which weights these are."""
    found = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def fill(trunk: Any, encoder: Encoder) -> None:
    """Put the encoder's weights into the network: all of them, but for the final norm where it starts afresh behind the pool.

    A table of relative places that the encoder's blocks share is copied into each of them (BEiT, utils.py and SimMIM; un-shared for fine-tuning).
    """
    state = dict(encoder.model.state_dict())
    own, shared = trunk.state_dict(), "rel_pos_bias."
    if any(name.startswith(shared) for name in state) and not any(name.startswith(shared) for name in own):
        tables = {name.removeprefix(shared): state.pop(name) for name in list(state) if name.startswith(shared)}
        state |= {f"blocks.{i}.attn.{name}": table for i in range(len(trunk.blocks)) for name, table in tables.items()}
    missing, unknown = trunk.load_state_dict(state, strict=False)
    left = [name for name in missing if not name.startswith("fc_norm.")] + [name for name in unknown if not name.startswith("norm.")]
    if left:
        raise Refused(f"the weights of {encoder.source} do not fit the network that is fine-tuned: {', '.join(left[:5])}")
