"""Look: at what a run imagines, at what an encoder sees, at data, masks and runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.api.asked import Look, check_data, check_labels, first_of, settings_of, sight_of, written
from unmask.errors import Refused
from unmask.interchange.naming import identify
from unmask.recipe import views_group
from unmask.settings import Crops, Labelled, Ratio, Window, check_window, within


@dataclass(frozen=True)
class Reconstruct:
    """A drawing of what a run imagines."""

    out: str = "reconstruction.png"  # the picture to write
    statistics: Literal["visible", "truth"] = "visible"  # brightness of hidden patches: estimated from what is visible, or given away
    mask_ratio: Ratio | None = None  # share of patches hidden; not given: the run's own
    img_size: tuple[int, int] | None = None  # height and width of the input (one number: square); not given: the run's own
    bands: tuple[int, int, int] | None = None  # channels drawn as red, green and blue, from 1 (one number: as grey); not given: the first three
    count: int = 8  # pictures drawn at most
    seed: int = 0  # of the masks

    def __post_init__(self):
        within(self, "img_size bands count", 1)
        within(self, "seed", 0)


@dataclass(frozen=True)
class ShowEncoder:
    """A drawing of what an encoder sees."""

    count: int = 8  # pictures drawn at most
    out: str | None = None  # the picture to write; not given: show-attention.png or show-features.png here

    def __post_init__(self):
        within(self, "count", 1)


@dataclass(frozen=True)
class ShowMask:
    """A drawing of a masking strategy."""

    mask_ratio: Ratio | None = None  # share of patches hidden; not given: the strategy's own
    grid: tuple[int, int] = (14, 14)  # patches down and across
    picture: str | None = None  # a picture under the masks
    teacher: str | None = None  # ENCODER whose attention for that picture guides the mask, of strategies that are guided
    count: int = 8  # masks drawn
    seed: int = 0  # of the masks
    out: str = "show-mask.png"  # the picture to write

    def __post_init__(self):
        within(self, "grid count", 1)
        within(self, "seed", 0)


@dataclass(frozen=True)
class ShowViews:
    """A drawing of training crops."""

    img_size: tuple[int, int] = (224, 224)  # height and width of the (global) crops (one number: square)
    patch_size: int | None = None  # pixels a patch side: local crops hold whole patches; not given: what a run chooses for such pictures
    count: int = 6  # pictures, one a row
    epochs: int = 6  # crops of each, as in that many passes over the data; of a method with several views always the first pass
    seed: int = 0  # of the crops
    out: str = "show-views.png"  # the picture to write

    def __post_init__(self):
        within(self, "img_size patch_size count epochs", 1)
        within(self, "seed", 0)


@dataclass(frozen=True)
class Inspect(Labelled):
    """A check of pictures before they train."""

    captions: str | None = None  # JSON lines, CSV, TSV or parquet with paths and captions; not given: captions.jsonl in DATA, if there is one
    tile: int | None = None  # look at a window of this side of pictures that are larger
    window: Window | None = None  # grey values from black to white: see `unmask pretrain mae --help`
    workers: int | None = None  # pictures that are read at once; not given: chosen for the machine

    def __post_init__(self):
        within(self, "tile workers", 1)
        check_window(self.window)


@dataclass(frozen=True)
class Report:
    """Where the page goes."""

    out: str | None = None  # the file to write; not given: report.html in the run, or here for several
    pictures: str | None = None  # DATA of which all runs imagine the same pictures; not given: what they drew, or the first run's DATA


def reconstruct(run: str | Path, images: Any, **settings: Any) -> Path:
    """Draw original, masked, prediction and error of pictures; the path of the drawing."""
    (asked,) = settings_of((Reconstruct,), settings)
    identify(run)
    check_data(images)
    from unmask.load import load
    from unmask.model import MaskedModel, VocabularyLearner
    from unmask.visualize.answers import grid

    learner = load(run)
    if isinstance(learner, MaskedModel) and learner.masking is not None:
        if asked.mask_ratio is not None:
            if not learner.masking.rated:
                raise Refused(f"--mask_ratio: the masks of {run} have no ratio ({type(learner.masking).__name__})")
            learner.masking.ratio = asked.mask_ratio
        learner.masking.prepare(1.0, 0.5)  # of a schedule the ratio at the end, of a range the middle
    look, opened = Look(img_size=asked.img_size, seed=asked.seed, workers=0), None
    if isinstance(learner, VocabularyLearner):
        if asked.mask_ratio is not None:
            raise Refused(f"--mask_ratio: {run} is a tokenizer, which hides nothing")
        opened = _seen_by_tokenizer(run, asked.img_size)
    _, pictures, _ = sight_of(run, images, look, None, opened)
    x, names = first_of(pictures, asked.count)
    bands = [band - 1 for band in asked.bands] if asked.bands is not None else None
    if bands is not None and len(set(bands)) == 1:
        bands = bands[:1]  # one number was said: grey
    grid(learner, x, names, mean=pictures.format.mean, std=pictures.format.std, statistics=asked.statistics, seed=asked.seed, bands=bands, out=asked.out)
    return written(asked.out)


def _seen_by_tokenizer(run: str | Path, img_size: tuple[int, int] | None) -> Any:
    """How a tokenizer's run sees pictures: it has no encoder file that says so, but its folder does."""
    from unmask.data.format import Format
    from unmask.interchange.encoder import Encoder
    from unmask.options import load as settings_in

    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    config, kept = folder / "config.yaml", folder / "data.json"
    if not config.is_file() or not kept.is_file():
        raise Refused(f"{run} is a tokenizer without its run folder: how it sees pictures stands there, in config.yaml and data.json")
    form = Format.of(json.loads(kept.read_text(encoding="utf-8"))["statistics"])
    size = img_size or tuple(settings_in(config)["img_size"])
    return Encoder(None, "tokenizer", size, form.in_chans, form.mean, form.std, form.low, form.high, window=form.window)


def show_encoder(kind: str, encoder: str | Path, images: Any, **settings: Any) -> Path:
    """Draw where an encoder looks (`attention`) or its patch features as colours (`features`); the path of the drawing."""
    look, asked = settings_of((Look, ShowEncoder), settings)
    identify(encoder)
    check_data(images)
    from unmask.visualize import attention

    opened, pictures, _ = sight_of(encoder, images, look, None)
    x, names = first_of(pictures, asked.count)
    out = asked.out or f"show-{kind}.png"
    draw = {"attention": attention.show_attention, "features": attention.show_features}[kind]
    draw(opened.model, x, names, mean=pictures.format.mean, std=pictures.format.std, out=out)
    return written(out)


def show_mask(strategy: str, **settings: Any) -> Path:
    """Draw a masking strategy, a method's, or what a run has come to hide, and its law; the path of the picture."""
    (asked,) = settings_of((ShowMask,), settings)
    if asked.teacher is not None:
        identify(asked.teacher)
        if asked.picture is None:
            raise Refused("--teacher looks at a picture: give --picture FILE, too")
    if asked.picture is not None and not Path(asked.picture).is_file():
        raise Refused(f"--picture: there is no file {asked.picture}")
    from PIL import Image

    from unmask.visualize.masks import attention, of_run, show

    try:
        picture = Image.open(asked.picture).convert("RGB") if asked.picture is not None else None
    except OSError:
        raise Refused(f"--picture: {asked.picture} is no picture that can be read") from None
    if (Path(strategy) / "config.yaml").is_file():
        if asked.mask_ratio is not None or asked.teacher is not None:
            raise Refused("show mask RUN draws the run's own masks: leave --mask_ratio and --teacher out")
        masking, scores, grid = of_run(strategy, picture)
        show(masking, grid=grid, picture=picture, scores=scores, said="What guides this run's mask: bright is shown most often", count=asked.count, seed=asked.seed, out=asked.out)
        return written(asked.out)
    ratio = str(asked.mask_ratio) if asked.mask_ratio is not None else None
    scores = attention(asked.teacher, picture, asked.grid) if asked.teacher is not None and picture is not None else None
    show(strategy, ratio=ratio, grid=asked.grid, picture=picture, scores=scores, count=asked.count, seed=asked.seed, out=asked.out)
    return written(asked.out)


def show_views(data: Any, method: Any = None, **settings: Any) -> Path:
    """Draw the training crops that a method (a name, or an instance; not given: crops as MAE's) takes of pictures; the path of the drawing."""
    asked, views = settings_of((ShowViews,), settings, (views_group(method),))
    check_data(data)
    from unmask.data.loader import Pictures
    from unmask.data.sources import open_source
    from unmask.data.statistics import survey
    from unmask.training.plan import in_patches, patch_for
    from unmask.visualize.views import show

    patch = asked.patch_size or patch_for(min(asked.img_size))
    views = in_patches(views, asked.img_size, (patch, patch))[0] if isinstance(views, Crops) else views
    source = open_source(data)
    rows = min(asked.count, len(source))
    show(Pictures(source, survey(source, seed=asked.seed), views, asked.img_size, asked.seed), [i * len(source) // rows for i in range(rows)], asked.epochs, out=asked.out)
    return written(asked.out)


def show_weights(encoder: str | Path) -> dict[str, Any]:
    """What a file of weights was found to be, with every name that is left out of the encoder; the same as a dict."""
    identify(encoder)
    from unmask.interchange.encoder import load_encoder
    from unmask.interchange.report import Report, network_in_words

    opened = load_encoder(encoder, say=lambda line: None)
    report = opened.report or Report(str(encoder), network_in_words(opened.name, opened.model) if opened.patch_size else opened.name)
    print("\n".join(report.whole()))
    return {"source": report.source, "network": report.network, "said": list(report.said), "left_out": {what: list(names) for what, names in report.left.items()}}


def inspect(data: Any, **settings: Any) -> dict[str, Any]:
    """Count and check pictures: sizes, channels, statistics, bad files, constant pictures, duplicates; the findings."""
    (asked,) = settings_of((Inspect,), settings)
    check_data(data)
    check_labels(asked.labels)
    from unmask.data import inspect

    def told(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,}", end="" if done < total else "\r\033[K", file=sys.stderr, flush=True)

    found = inspect.inspect(data, asked, asked.tile, asked.window, asked.workers, progress=told, captions=asked.captions)
    print("\n".join(inspect.lines(found)))
    return found


def report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None, *, pictures: Any = None) -> Path:
    """Write report.html about one run, or about several side by side; its path."""
    if pictures is not None:
        check_data(pictures)
    from unmask.visualize.report import write

    path = write([runs] if isinstance(runs, str | Path) else runs, out, pictures)
    print(path)
    return path


def runs(folder: str | Path) -> dict[str, Any]:
    """Every run below a folder, the last that gave a sign first: state, step, best figures, size, age, and the command that goes on."""
    from unmask.run.listing import lines, listing

    found = listing(folder)
    print("\n".join(lines(found, folder)))
    return {"runs": found}
