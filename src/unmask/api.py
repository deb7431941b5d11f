"""The verbs in Python: pretrain, resume, evaluate, reconstruct, embed, export, inspect, report.

Each does what its command does (`unmask VERB --help`) and takes the same settings by the same names; a name with a dot is
given as `**{"method.mask_ratio": 0.6}`. What can be refused without torch is refused before torch is imported, so every
verb imports what it needs when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unmask import verbs
from unmask.encoders import names
from unmask.errors import Refused
from unmask.interchange.naming import identify
from unmask.options import Group, check
from unmask.recipe import Recipe, settle
from unmask.settings import Views

FEW = 256  # pictures below which starting workers takes longer than reading


def pretrain(method: Any = None, data: Any = None, out: str | Path | None = None, *, config: str | Path | None = None, **settings: Any) -> Path:
    """Pre-train an encoder on pictures; the path of the run folder.

    `method` is a name, `my_method.py:Name` or an instance such as `unmask.methods.MAE(mask_ratio=0.6)`; `data` a path or
    whatever else DATA may be, also a torch Dataset; `config` a YAML file of settings, above which the others go.
    """
    recipe = settle(method, data, config, settings)
    if out is None:
        raise Refused("pretrain wants out, the folder to make (--out RUN)")
    _refuse(recipe, Path(out))
    from unmask.training.start import begin

    return begin(recipe, Path(out))


def resume(run: str | Path, *, data: Any = None, force: bool = False, **settings: Any) -> Path:
    """Go on exactly where a run stopped; the path of the run folder. Settings that change the result want `force`.

    `data` is wanted again only where the run was given something else than a path.
    """
    config = Path(run) / "config.yaml"
    if not config.is_file():
        raise Refused(f"{run} is no run folder: there is no config.yaml in it")
    settle(None, None, config, settings)
    from unmask.training.start import again

    return again(Path(run), force, settings | ({} if data is None else {"data": data}))


def _refuse(recipe: Recipe, out: Path) -> None:
    """Refuse without torch what can be refused: data, a folder that is taken, names and files that do not exist."""
    from unmask.run import folder

    _check_data(recipe.data)
    folder.refuse_taken(out)
    if recipe.trunk.model is not None:
        names.check(recipe.trunk.model)
    if recipe.trunk.init is not None:
        identify(recipe.trunk.init)
    if recipe.input.labels is not None and not Path(recipe.input.labels).is_file():
        raise Refused(f"--labels: there is no file {recipe.input.labels}")


def load_encoder(name: str | Path, **settings: Any) -> Any:
    """A timm model that never masks, of any ENCODER; `settings`: img_size, in_chans, patch_size, random, seed."""
    from unmask.interchange import encoder

    return encoder.load_encoder(name, **settings).model


def load_transform(name: str | Path, **settings: Any) -> Any:
    """The preprocessing that belongs to an ENCODER: a torchvision transform of one PIL picture."""
    from unmask.interchange import encoder

    return encoder.load_transform(encoder.load_encoder(name, **settings))


def evaluate(protocol: str, encoder: str | Path, data: Any, **settings: Any) -> dict[str, Any]:
    """Measure a frozen encoder on labelled pictures by `knn` or `linear`; the figures, which a run also keeps in evaluations.jsonl."""
    own = {"knn": verbs.Neighbours, "linear": verbs.Linear}
    if protocol not in own:
        raise Refused(f"evaluate wants one of {', '.join(own)}, got '{protocol}'")
    look, asked, how = _settings((verbs.Look, verbs.Measure, own[protocol]), settings)
    identify(encoder)
    for words in (data, asked.val):
        _check_data(words)
    from unmask.evaluation.measure import measure

    opened, pictures, sight = _sight(encoder, data, look, asked.labels)
    val = _sight(encoder, asked.val, look, asked.labels, opened)[1] if asked.val is not None else None
    row = measure(protocol, opened, pictures, val, name=str(data), seed=look.seed, **sight, **vars(how))
    row = {"encoder": str(encoder), "random": look.random, **row}
    if (Path(encoder) / "config.yaml").is_file():
        from unmask.run.folder import RunFolder

        RunFolder.open(Path(encoder)).evaluation(row)
    low, high = row["interval"]
    who = "the random encoder" if look.random else str(encoder)
    print(f"{row['protocol']} of {who}: {row['top1']:.1f} % (95 % interval {low:.1f} to {high:.1f}), largest class {row['majority']:.1f} %")
    return row


def embed(encoder: str | Path, images: Any, **settings: Any) -> Path:
    """Write the features of pictures with their paths, and labels where known, to .npz or .parquet; the file's path."""
    look, asked = _settings((verbs.Look, verbs.Embed), settings)
    out = Path(asked.out)
    if out.suffix not in (".npz", ".parquet"):
        raise Refused(f"--out {out} must end in .npz or .parquet")
    identify(encoder)
    _check_data(images)
    from unmask.evaluation import files
    from unmask.evaluation.features import extract

    opened, pictures, sight = _sight(encoder, images, look, asked.labels)
    table = extract(opened, pictures, **sight)
    pooling = table.poolings[0] if asked.pooling == "auto" else asked.pooling
    files.write(table, pooling, pictures.classes, out)
    skipped = f", {table.skipped} unreadable left out" if table.skipped else ""
    print(f"{out}: {len(table)} rows of {table.of(pooling).shape[1]} features ({pooling}){skipped}")
    return out


def reconstruct(run: str | Path, images: Any, **settings: Any) -> Path:
    """Draw original, masked, prediction and error of pictures; the path of the drawing."""
    (asked,) = _settings((verbs.Reconstruct,), settings)
    identify(run)
    _check_data(images)
    from unmask.load import load
    from unmask.model import MaskedModel
    from unmask.visualize.reconstruction import grid

    learner = load(run)
    if isinstance(learner, MaskedModel) and learner.masking is not None:
        if asked.mask_ratio is not None:
            learner.masking.ratio = asked.mask_ratio
        learner.masking.prepare(1.0, 0.5)  # of a schedule the ratio at the end, of a range the middle
    look = verbs.Look(img_size=asked.img_size, seed=asked.seed, workers=0)
    _, pictures, _ = _sight(run, images, look, None)
    x, names = _first(pictures, asked.count)
    grid(learner, x, names, mean=pictures.format.mean, std=pictures.format.std, statistics=asked.statistics, seed=asked.seed, out=asked.out)
    return _written(asked.out)


def show_encoder(kind: str, encoder: str | Path, images: Any, **settings: Any) -> Path:
    """Draw where an encoder looks (`attention`) or its patch features as colours (`features`); the path of the drawing."""
    look, asked = _settings((verbs.Look, verbs.ShowEncoder), settings)
    identify(encoder)
    _check_data(images)
    from unmask.visualize import attention

    opened, pictures, _ = _sight(encoder, images, look, None)
    x, names = _first(pictures, asked.count)
    out = asked.out or f"show-{kind}.png"
    draw = {"attention": attention.show_attention, "features": attention.show_features}[kind]
    draw(opened.model, x, names, mean=pictures.format.mean, std=pictures.format.std, out=out)
    return _written(out)


def export(run: str | Path, out: str | Path | None = None, to: str = "timm") -> dict[str, Any]:
    """Write the encoder for another library; the result says the largest difference of its features to the trained encoder's."""
    identify(run)
    (asked,) = _settings((verbs.Export,), {"to": to})
    if out is None:
        raise Refused(f"--out is missing: unmask export {run} --to {to} --out {Path(run).name}-{to}")
    from unmask.interchange import timm
    from unmask.interchange.encoder import load_encoder

    writer = {"timm": timm.export_timm, "safetensors": timm.export_safetensors}[asked.to]
    return {"to": to, "out": str(out), "difference": writer(load_encoder(run), out)}


def report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write report.html about one run, or about several side by side; its path."""
    from unmask.visualize.report import write

    path = write([runs] if isinstance(runs, str | Path) else runs, out)
    print(path)
    return path


def inspect(data: Any, **settings: Any) -> dict[str, Any]:
    """Count and check pictures: sizes, channels, statistics, bad files, constant pictures, duplicates; the findings."""
    (asked,) = _settings((verbs.Inspect,), settings)
    _check_data(data)
    from unmask.data import inspect

    def told(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,}", end="" if done < total else "\r\033[K", file=sys.stderr, flush=True)

    found = inspect.inspect(data, progress=told, **vars(asked))
    print("\n".join(inspect.lines(found)))
    return found


def show_views(data: Any, **settings: Any) -> Path:
    """Draw training crops of pictures; the path of the drawing."""
    (asked,) = _settings((verbs.ShowViews,), settings)
    _check_data(data)
    from unmask.data.loader import Pictures
    from unmask.data.sources import open_source
    from unmask.data.statistics import survey
    from unmask.visualize.views import show

    source = open_source(data)
    rows = min(asked.count, len(source))
    show(Pictures(source, survey(source, seed=asked.seed), Views(), asked.img_size, asked.seed), [i * len(source) // rows for i in range(rows)], asked.epochs, out=asked.out)
    return _written(asked.out)


def show_mask(strategy: str, **settings: Any) -> Path:
    """Draw a masking strategy and its law; the path of the picture."""
    (asked,) = _settings((verbs.ShowMask,), settings)
    if asked.picture is not None and not Path(asked.picture).is_file():
        raise Refused(f"--picture: there is no file {asked.picture}")
    from PIL import Image

    from unmask.visualize.masks import show

    picture = Image.open(asked.picture) if asked.picture is not None else None
    ratio = str(asked.mask_ratio) if asked.mask_ratio is not None else None
    show(strategy, ratio=ratio, grid=asked.grid, picture=picture, count=asked.count, seed=asked.seed, out=asked.out)
    return _written(asked.out)


def _settings(classes: Sequence[type], said: dict[str, Any]) -> list[Any]:
    """A verb's settings, each class of them, read as the command line reads them."""
    groups = [Group(cls.__name__.lower(), cls, Path(verbs.__file__)) for cls in classes]
    values = check(said, {name: option for group in groups for name, option in group.options().items()})
    return [group.make(values) for group in groups]


def _check_data(data: Any) -> None:
    """Refuse a path that is no DATA before torch is imported."""
    from unmask.data import sources

    for word in [data] if isinstance(data, str | Path) else data if isinstance(data, list | tuple) else []:
        if isinstance(word, str | Path):
            sources.check(str(word))


def _sight(name: str | Path, data: Any, look: verbs.Look, labels: Any, opened: Any = None) -> tuple[Any, Any, dict[str, Any]]:
    """(the Encoder, DATA as it sees it, how to run it). A random network takes its channels, and what lacks statistics takes them, from DATA."""
    import torch

    from unmask.data.loader import Pictures
    from unmask.data.sources import open_source
    from unmask.data.statistics import Format, survey
    from unmask.interchange.encoder import load_encoder

    source = open_source(data, labels)
    for line in source.said:
        print(line)
    measured = None
    if opened is None:
        chans = look.in_chans
        if chans is None and str(name).startswith("random:"):
            measured = survey(source, None, seed=look.seed, max_bad_share=look.max_bad_share)
            chans = measured.in_chans
        opened = load_encoder(name, img_size=look.img_size, in_chans=chans, patch_size=look.patch_size, random=look.random, seed=look.seed)
    if opened.mean is None or opened.std is None:
        measured = measured or survey(source, opened.in_chans, seed=look.seed, max_bad_share=look.max_bad_share)
        opened = replace(opened, mean=measured.mean, std=measured.std, low=measured.low, high=measured.high)
    low, high = (value * opened.in_chans if len(value) == 1 else value for value in (opened.low, opened.high))
    form = Format(opened.in_chans, low, high, opened.mean, opened.std)
    pictures = Pictures(source, form, Views(), opened.img_size, look.seed, look.max_bad_share)
    auto = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if look.accelerator not in ("auto", "cpu", auto):
        raise Refused(f"--accelerator {look.accelerator}: this machine has none")
    workers = look.workers if look.workers is not None else 0 if len(source) < FEW else min(8, len(os.sched_getaffinity(0)))
    return opened, pictures, {"batch_size": look.batch_size, "workers": workers, "device": auto if look.accelerator == "auto" else look.accelerator}


def _first(pictures: Any, count: int) -> tuple[Any, list[str]]:
    """The first `count` pictures that can be read, normalised, and their names."""
    import torch

    parts, names = [], []
    for x, _, said in pictures.still_batches(1):
        parts.append(x)
        names += [Path(name).name for name in said]
        if len(names) == count:
            break
    if not parts:
        raise Refused(f"none of the {len(pictures)} pictures can be read")
    return torch.cat(parts), names


def _written(out: str | Path) -> Path:
    print(out)
    return Path(out)
