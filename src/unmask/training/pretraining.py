"""Pre-training, as the loop sees it: any pictures, a method's learner, kNN and drawings on the way, an encoder at the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unmask import seeds
from unmask.data.loader import Pictures
from unmask.data.pairs import Captioned, learnt
from unmask.data.sources import Source, open_source
from unmask.data.statistics import Format, survey
from unmask.encoders.build import sizes_of
from unmask.errors import Refused
from unmask.interchange.encoder import describe, load_encoder, save_encoder
from unmask.interchange.initialise import decoder_size, fill, fill_decoder, fill_heads
from unmask.load import metadata_of
from unmask.methods import find
from unmask.model import Learner
from unmask.recipe import Recipe
from unmask.run.folder import RunFolder
from unmask.targets.features import PLAIN, Frozen
from unmask.text import OWN, learn_words, reader_of
from unmask.training import plan
from unmask.training.finish import conclude, trunk_of
from unmask.training.monitor import Monitor
from unmask.training.progress import Progress
from unmask.training.task import Prepared, Task, Watch


class Pretraining(Task):
    """An encoder from pictures without labels."""

    def prepare(self, recipe: Recipe) -> Prepared:
        recipe, reading = plan.reading(recipe)
        source = opened(recipe)
        format = measured(recipe, source)
        recipe, fitted = to_teacher(started(recipe))
        recipe, said = plan.choose(recipe, len(source), format)
        said = [f"{len(source):,} pictures in {recipe.data}", *reading, *source.said, *format.said, *fitted, *said]
        kept = described(recipe, source, format)
        learner, filled = begun(recipe, kept)
        said += [*filled, *looks(learner)]
        recipe, more = plan.sized(recipe, learner)
        said += more
        recipe, more = plan.viewed(recipe, learner)
        said += more
        pace = plan.pace(learner, pictures_of(recipe, source, kept, None), recipe.train, recipe.input.workers or 0)
        recipe, more = plan.paced(recipe, pace)
        said += more
        recipe, more = plan.quickened(recipe)
        more += learner.notes()
        return Prepared(recipe, kept, learner, [*said, *more, plan.announced(recipe, pace, len(source))])

    def keep(self, recipe: Recipe, data: Any = None) -> dict[str, Any]:
        source = opened(recipe, data)
        return described(recipe, source, measured(recipe, source))

    def fingerprint(self, recipe: Recipe, data: Any = None) -> tuple[str, int]:
        source = opened(recipe, data)
        return source.fingerprint, len(source)

    def build(self, recipe: Recipe, kept: Mapping[str, Any]) -> Learner:
        return begun(recipe, kept)[0]

    def feed(self, recipe: Recipe, kept: Mapping[str, Any], data: Any = None, quarantine: Path | None = None) -> Pictures:
        return pictures_of(recipe, opened(recipe, data), kept, quarantine)

    def metadata(self, recipe: Recipe, kept: Mapping[str, Any], learner: Learner) -> dict[str, str]:
        trunk = trunk_of(learner.handed())
        return ({} if trunk is None else describe(trunk, statistics_of(recipe, kept))) | metadata_of(recipe.method, recipe.name, **words_of(recipe, kept))

    def watch(self, recipe: Recipe, learner: Learner, feed: Any, folder: RunFolder, device: torch.device, progress: Progress) -> Watch:
        return Monitor(learner, feed, folder.pictures, recipe.train, device, progress, untrained=recipe.trunk.init is None)

    def finish(self, recipe: Recipe, kept: Mapping[str, Any], learner: Learner, feed: Any, folder: RunFolder, metadata: Mapping[str, str], step: int) -> None:
        trunk = trunk_of(learner.handed())
        if trunk is not None:
            save_encoder(folder.path / "encoder.safetensors", trunk, statistics_of(recipe, kept))
        here, there = shlex.quote(str(folder.path)), shlex.quote(recipe.data) if isinstance(recipe.data, str) else "DATA"
        next_steps = [
            f"unmask evaluate knn {here} LABELLED      # are its features useful? --random measures the untrained network beside it",
            f"unmask export {here} --to timm --out {here}-timm      # for timm.create_model",
        ]
        drawn = f"unmask reconstruct {here} {there} --out grid.png      # what it imagines behind the mask"
        next_steps.insert(1, drawn if learner.imagines() else f"unmask show features {here} {there}      # what it tells apart")
        conclude(folder, learner, metadata, step, next_steps if trunk is not None else [])


def opened(recipe: Recipe, data: Any = None) -> Source:
    """DATA as numbered samples, with their captions where the method reads them; `data`: what it is, where the recipe cannot say it."""
    source = open_source(recipe.data if data is None else data, recipe.input)
    return source if reads(recipe) is None else learnt(source, recipe.input.captions)


def reads(recipe: Recipe) -> str | None:
    """Who reads captions, of methods that have a word for it."""
    return vars(recipe.method).get("text")


def measured(recipe: Recipe, source: Source) -> Format:
    """What the numbers in the pictures mean."""
    reading = recipe.input
    return survey(source, recipe.trunk.in_chans, reading.normalize, recipe.train.seed, reading.max_bad_share, reading.tile, reading.window)


def described(recipe: Recipe, source: Source, format: Format) -> dict[str, Any]:
    """What data.json keeps, which a resumed run trusts more than a second look at the pictures."""
    kept = {"count": len(source), "fingerprint": source.fingerprint, "statistics": format.as_dict()}
    if source.captions is None or reads(recipe) != OWN:
        return kept
    return kept | {"vocabulary": learn_words(source.captions.words)}


def format_of(kept: Mapping[str, Any]) -> Format:
    """The format that was kept."""
    return Format.of(kept["statistics"])


def statistics_of(recipe: Recipe, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What an encoder file says of the numbers that go in, and of how pictures are read."""
    return {name: kept["statistics"].get(name) for name in ("mean", "std", "low", "high", "window")} | {"tile": recipe.input.tile}


def pictures_of(recipe: Recipe, source: Source, kept: Mapping[str, Any], quarantine: Path | None) -> Pictures:
    """The pictures of a run, as it reads them."""
    size, reading = recipe.trunk.img_size, recipe.input
    words = (source, format_of(kept), recipe.views, size, recipe.train.seed, reading.max_bad_share, quarantine, reading.tile)
    text = reads(recipe)
    return Pictures(*words) if text is None else Captioned(reader_of(text, kept.get("vocabulary", ()), recipe.method.text_length), *words)


def started(recipe: Recipe) -> Recipe:
    """With `--init`: the network is that of the weights, and the decoder as large as the one beside them, where it was not said."""
    trunk = recipe.trunk
    if trunk.init is None:
        return recipe
    if all(vars(recipe.method).get(name, 0) is None for name in ("decoder_width", "decoder_depth", "decoder_heads")):
        recipe = replace(recipe, method=replace(recipe.method, **decoder_size(trunk.init)))
    if trunk.model is not None:
        return recipe
    opened = load_encoder(trunk.init, heads=trunk.heads, say=lambda line: None)  # the report follows when the network is filled
    given = {name: value for name, value in sizes_of(opened.model.unmask_kwargs).items() if getattr(trunk, name) is None}
    return replace(recipe, trunk=replace(trunk, model=opened.name, img_size=trunk.img_size or opened.img_size, **given))


def to_teacher(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """For a student, what was not said of pictures and patches so that its teacher sees pictures at its own size: one patch of the student for one of the teacher's."""
    trunk, teacher = recipe.trunk, vars(recipe.method).get("teacher")
    if not vars(type(recipe.method)).get("student") or teacher is None or trunk.init is not None or (trunk.img_size and trunk.patch_size):
        return recipe, []
    its = load_encoder(teacher, say=lambda line: None)
    size, patch = trunk.img_size, trunk.patch_size
    if its.patch_size is None or not isinstance(its.model, PLAIN):  # it looks at its own size, whatever the student's
        return (recipe, []) if size else (replace(recipe, trunk=replace(trunk, img_size=its.img_size)), [f"img_size {its.img_size[0]}: that of the teacher"])
    grid = tuple(side // cell for side, cell in zip(its.img_size, its.patch_size))
    if size is None:
        size = its.img_size if patch is None else (grid[0] * patch, grid[1] * patch)
    if patch is None:
        cells = {side / count for side, count in zip(size, grid)}
        patch = int(cells.pop()) if len(cells) == 1 and min(cells).is_integer() else None
    said = [] if patch is None else [f"img_size {size[0]} {size[1]} with patches of {patch}: so the teacher sees pictures at its own size"]
    return replace(recipe, trunk=replace(trunk, img_size=size, patch_size=patch)), said


def looks(learner: Learner) -> list[str]:
    """At what size frozen teachers look."""
    said, encoder = list[str](), learner.handed()
    for teacher in (part for part in learner.modules() if isinstance(part, Frozen)):
        size = teacher.looks_at(encoder.img_size)
        other = "" if size == teacher.own else f", and was made for {teacher.own[0]} x {teacher.own[1]}: one of its patches for one of the encoder's, see --img_size and --patch_size"
        said.append(f"the teacher {teacher.source} looks at {size[0]} x {size[1]} pixels{other}")
    return said


def begun(recipe: Recipe, kept: Mapping[str, Any]) -> tuple[Learner, list[str]]:
    """The learner of step 0, and a line for each thing that `--init` put into it or left out."""
    seeds.reseed(recipe.train.seed, "init")
    method = find(recipe.name)(**vars(recipe.method))  # the recipe's own was made without importing its file
    learner = method.build(**words_of(recipe, kept))
    trunk, init, said = trunk_of(dict(learner.named_children()).get("encoder")), recipe.trunk.init, list[str]()
    if init is not None:
        if trunk is None:
            raise Refused(f"--init fills an encoder, and {recipe.name} has none")
        said = fill(trunk, init, statistics_of(recipe, kept), recipe.trunk.heads) + fill_decoder(learner, init) + fill_heads(learner, init)
    learner.sees(kept["statistics"]["mean"], kept["statistics"]["std"])
    learner.begin()
    if recipe.trunk.activation_checkpointing and trunk is not None:
        trunk.set_grad_checkpointing(True)
    return learner, said


def words_of(recipe: Recipe, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What `method.build` is called with."""
    trunk = recipe.trunk
    sizes = {name: getattr(trunk, name) for name in ("width", "depth", "heads") if getattr(trunk, name) is not None}
    words = {"vocabulary": kept["vocabulary"]} if "vocabulary" in kept else {}
    return {"model": trunk.model, "img_size": trunk.img_size, "in_chans": trunk.in_chans, "patch_size": trunk.patch_size, **sizes, **words}
