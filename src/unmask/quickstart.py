"""The embedded default: everything once, on real photographs that need no download and no account.

Sixteen photographs ship inside scikit-image's wheel (`pip install "unmask[demo]"`). Their left parts are cut into crops to
train on, their right parts into crops to judge by; which photograph a crop is from is its label. A small ViT is
pre-trained for two to three minutes on two cores and measured beside the random encoder and beside plain pixel statistics,
because colour alone already tells many photographs apart.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from unmask import api, seeds
from unmask.errors import Interrupted, Refused

PHOTOGRAPHS = (  # half in colour, half grey; every one is a file of the wheel in scikit-image 0.24 to 0.26
    *("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
    *("brick.png", "camera.png", "cell.png", "clock_motion.png", "coins.png", "grass.png", "gravel.png", "moon.png"),
)
SIDE = 48  # pixels a crop; the network sees 32: a random part while it trains, the middle afterwards
LEFT = 0.64  # share of a photograph's width that is trained on; the rest only judges
COUNTS = {"train": 160, "val": 64}  # crops of each photograph
SETTINGS: Mapping[str, Any] = {  # of a few that were tried by hand, what learned most in that time on two cores
    "model": "vit_tiny_patch16_224",
    "width": 128,
    "depth": 4,
    "heads": 4,
    "patch_size": 4,
    "img_size": (32, 32),
    "batch_size": 256,
    "lr": 2e-3,
    "monitor_every": 100,  # each look costs as much as ten steps
    "compile": "no",
}
STEPS = 400
MAE: Mapping[str, Any] = {"method.decoder_width": 64, "method.decoder_depth": 1, "method.decoder_heads": 4, "method.mask_ratio": 0.75}
PARTS = ("photographs", "run", "timm", "reconstruction.png", "attention.png")  # what the folder holds

Figures = dict[str, dict[str, Any]]  # protocol -> the row that evaluate gives


def run(out: str | Path = "unmask-quickstart", seed: int = 0, steps: int | None = None) -> dict[str, Any]:
    """Train, measure, draw and export into the folder `out`; the figures. Called again it goes on where it stopped.

    `steps`: another length than the 400 steps of the default, for a quick look or a longer try.
    """
    out, steps = Path(out), steps or STEPS
    refuse(out, seed, steps, PARTS, "run")
    print(f"MAE on {len(PHOTOGRAPHS)} photographs, nothing to download: three to four minutes on two free cores. Everything goes to {out}/\n")
    train, val = photographs(out / "photographs", seed)
    pretrain(out / "run", train, seed, steps)
    figures = {"pixel mean and std": pixels(train, val, seed)} | measure(out / "run", train, val, seed)
    few = [str(sorted((val / Path(name).stem).glob("*.png"))[0]) for name in PHOTOGRAPHS[:8]]
    _say("reconstruct", out / "run", "CROPS…", "--out", out / "reconstruction.png")
    api.reconstruct(out / "run", few, out=str(out / "reconstruction.png"), seed=seed)
    _say("show", "attention", out / "run", "CROPS…", "--out", out / "attention.png")
    api.show_encoder("attention", out / "run", few, out=str(out / "attention.png"))
    _say("export", out / "run", "--to", "timm", "--out", out / "timm")
    exported = api.export(out / "run", out=str(out / "timm"), to="timm")
    _say("report", out / "run")
    api.report(out / "run")
    losses = _losses(out / "run")
    print(_summary(losses, figures, out))
    return {"loss": losses, "figures": figures, "export": exported["difference"], "out": str(out)}


def refuse(out: Path, seed: int, steps: int, parts: Collection[str], *runs: str) -> None:
    """Refuse a folder of somebody else's (it may hold `parts`), and one whose runs have another seed or length."""
    if out.is_file() or (out.is_dir() and (others := sorted({entry.name for entry in out.iterdir()} - {*parts, ".photographs"}))):
        held = f"holds {others[0]}" if out.is_dir() else "is a file"
        raise Refused(f"--out {out} {held}, which is not the quickstart's: choose another folder")
    for config in (out / run / "config.yaml" for run in runs if (out / run / "config.yaml").is_file()):
        from unmask.options import load

        before = load(config)
        for name, value in (("seed", seed), ("steps", steps)):
            if before.get(name) != value:
                raise Refused(f"--out {out} holds a quickstart with {name} {before.get(name)}, not {value}: choose another folder")


def photographs(folder: Path, seed: int) -> tuple[Path, Path]:
    """The folders `train` and `val` of crops, a folder for each photograph. Both are functions of the seed; complete or absent."""
    if not folder.is_dir():
        hidden = folder.with_name(".photographs")
        shutil.rmtree(hidden, ignore_errors=True)
        _cut(_originals(), hidden, seed)
        os.replace(hidden, folder)
    return folder / "train", folder / "val"


def _originals() -> list[Path]:
    """The photographs as files of the installed scikit-image, which is not imported and asks no network."""
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise Refused('quickstart uses photographs that come with scikit-image, which is not installed: pip install "unmask[demo]"')
    files = [Path(found.submodule_search_locations[0]) / "data" / name for name in PHOTOGRAPHS]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise Refused(f'this scikit-image comes without {", ".join(missing)}: pip install --force-reinstall "scikit-image>=0.24"')
    return files


def _cut(files: list[Path], folder: Path, seed: int) -> None:
    """Write random windows of each photograph, from its left part to train and from its right part to val."""
    from PIL import Image

    for file in files:
        with Image.open(file) as opened:
            photograph = opened.convert("RGB")
        width, height = photograph.size
        border = int(LEFT * width)
        for split, (left, right) in {"train": (0, border), "val": (border, width)}.items():
            place = folder / split / file.stem
            place.mkdir(parents=True)
            dice = seeds.dice(seed, f"quickstart {split} {file.stem}")
            for i in range(COUNTS[split]):
                x, y = left + dice.randrange(right - left - SIDE + 1), dice.randrange(height - SIDE + 1)
                photograph.crop((x, y, x + SIDE, y + SIDE)).save(place / f"{file.stem}-{i:03d}.png", compress_level=1)


def pretrain(run: Path, train: Path, seed: int, steps: int, method: str = "mae", own: Mapping[str, Any] = MAE) -> None:
    """Train, or go on with training; a finished run stays as it is. `own`: the method's settings above those of all."""
    settings = {**SETTINGS, **own}
    words = [word for name, value in settings.items() for word in (f"--{name}", *_words(value))]
    try:
        if (run / "config.yaml").is_file():
            _say("resume", run)
            api.resume(run)
        else:
            _say("pretrain", method, train, "--out", run, *words, "--steps", steps, "--seed", seed)
            api.pretrain(method, train, run, **settings, steps=steps, seed=seed)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; the same `unmask quickstart` again goes on and shows the rest") from None


def measure(run: Path, train: Path, val: Path, seed: int) -> dict[str, Figures]:
    """kNN and linear probe of the random encoder and of the trained one, on the same crops."""
    figures: dict[str, Figures] = {"random encoder": {}, "trained encoder": {}}
    for who, more in (("random encoder", ["--random"]), ("trained encoder", [])):
        for protocol in ("knn", "linear"):
            _say("evaluate", protocol, run, train, "--val", val, "--seed", seed, *more)
            figures[who][protocol] = api.evaluate(protocol, run, train, val=str(val), random=bool(more), seed=seed, batch_size=256)
    return figures


def pixels(train: Path, val: Path, seed: int) -> Figures:
    """What mean and standard deviation of each channel reach, standardised, under the same two protocols."""
    from dataclasses import replace

    from unmask.data.loader import Pictures
    from unmask.data.sources import open_source
    from unmask.data.statistics import survey
    from unmask.evaluation.features import FeatureTable, pixel_statistics
    from unmask.evaluation.knn import knn
    from unmask.evaluation.metrics import right, wilson
    from unmask.evaluation.probe import linear
    from unmask.settings import Views

    source = open_source(str(train))
    form, size = survey(source, seed=seed), SETTINGS["img_size"]
    known = pixel_statistics(Pictures(source, form, Views(), size, seed))
    asked = pixel_statistics(Pictures(open_source(str(val)), form, Views(), size, seed))
    x, labels, truth = known.of("pixels"), known.classes_of(), asked.classes_of()  # (n, 6), (n,), (m,)
    mean, std = x.mean(dim=0), x.std(dim=0)

    def standard(table: FeatureTable) -> FeatureTable:
        return replace(table, parts={"pixels": (table.of("pixels") - mean) / std})

    known, asked = standard(known), standard(asked)
    classes = len(PHOTOGRAPHS)
    votes = {"knn": knn(known.of("pixels"), labels, asked.of("pixels"), classes), "linear": linear(known, classes, seed=seed)(asked.of("pixels"))}
    rows: Figures = {}
    for protocol, answer in votes.items():
        hits = right(answer, truth)
        rows[protocol] = {"protocol": protocol, "top1": 100 * hits / len(truth), "interval": list(wilson(hits, len(truth))), "n_val": len(truth)}
    return rows


def _losses(run: Path) -> dict[str, float]:
    """The loss at the end, and its two baselines over the whole run."""
    from unmask.run.records import Run, column
    from unmask.visualize.verdict import BASELINES, final_loss

    read = Run.read(run)
    found = {"loss": final_loss(read)} | {key: statistics.fmean(values) for key, _ in BASELINES if (values := column(read.rows, key)[1])}
    return {key: value for key, value in found.items() if value is not None}


def _summary(losses: dict[str, float], figures: dict[str, Figures], out: Path) -> str:
    """What came out, in a table and in words, and what to try next."""
    from unmask.visualize.verdict import BASELINES

    beside = ", ".join(f"{losses[key]:.3f} for {said}" for key, said in BASELINES if key in losses)
    shown = figures["trained encoder"]["knn"]
    chance = 100 / len(PHOTOGRAPHS)
    lines = [
        f"\nThe loss on hidden patches ended at {losses.get('loss', float('nan')):.3f}, beside {beside}.\n",
        f"Right answers in percent on {shown['n_val']:,} crops of the unseen right parts (95 % interval; chance {chance:.1f}):\n",
        f"{'':21}{'kNN':<22}linear probe",
    ]
    for who, rows in figures.items():
        lines.append(f"{who:<20}{''.join(cell(rows[protocol]).ljust(22) for protocol in ('knn', 'linear'))}".rstrip())
    lines += ["", *_verdict(figures)]
    lines += ["Crops of one photograph overlap and this is one seed, so the true uncertainty is larger than the intervals.", ""]
    kept = {out / "run" / "report.html": "curves, pictures, figures", out / "reconstruction.png": "original, masked, prediction, error"}
    kept |= {out / "attention.png": "where it looks", out / "timm": f'timm.create_model("local-dir:{out / "timm"}", pretrained=True)'}
    lines += [*(f"  {path!s:<42}{said}" for path, said in kept.items()), ""]
    lines += ["Now your own pictures, three commands:", "", "  unmask inspect photos/", "  unmask pretrain mae photos/ --out runs/first --time 30m"]
    return "\n".join([*lines, "  unmask reconstruct runs/first photos/ --out grid.png"])


def _verdict(figures: dict[str, Figures]) -> list[str]:
    """One sentence a protocol: is the trained encoder above the other two by more than the intervals allow?"""
    said = []
    for protocol, name in (("knn", "kNN"), ("linear", "Linear probe")):
        ours, parts = figures["trained encoder"][protocol], []
        for who in ("random encoder", "pixel mean and std"):
            theirs = figures[who][protocol]
            difference = ours["top1"] - theirs["top1"]
            apart = ours["interval"][0] > theirs["interval"][1] or ours["interval"][1] < theirs["interval"][0]
            sure = "" if apart else ", but the intervals overlap"
            parts.append(f"{abs(difference):.1f} points {'above' if difference >= 0 else 'below'} the {who}{sure}")
        said.append(f"{name}: the trained encoder is {'; '.join(parts)}.")
    return said


def cell(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['top1']:5.1f}  ({low:.1f} to {high:.1f})"


def _words(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, tuple) else [str(value)]


def _say(*words: Any) -> None:
    """The command that does the same, before it is done."""
    print(f"\n$ unmask {' '.join(shlex.quote(str(word)) if word != 'CROPS…' else str(word) for word in words)}", flush=True)
