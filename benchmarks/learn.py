"""Does a method learn on real pictures? Pre-train, then measure the frozen encoder beside what needs no training.

The run is made by `unmask.pretrain` and `unmask.resume`, the picture by `unmask.reconstruct`; the figures come from the functions
behind `unmask.evaluate`, on features that are computed once. Beside the trained encoder stand the same encoder with random weights,
the channel means and deviations of a picture, and its raw pixels; beside the loss the baselines that the run itself measures.

    python benchmarks/learn.py [METHOD …] [--data cifar10|imagenette|FOLDER] [--budget small|cpu|gpu] [--dry]

Running it again goes on with an unfinished run (in runs/, not under version control), measures a finished one and skips a method whose
result is there. A result goes to benchmarks/results/learn-<method>-<data>-<budget>.json, a picture of what the network says beside it.
Every method gets the same pictures, network, epochs and rate; everything else is its paper's. `--dry` does all of it on five pictures
a class and two steps: it shows that the long run will start, and proves nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import RESULTS, ROOT, keep, machine

import unmask
from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.splits import parts
from unmask.data.statistics import survey
from unmask.evaluation.features import FeatureTable, extract, pixel_statistics, tabulate
from unmask.evaluation.knn import knn
from unmask.evaluation.metrics import right, wilson
from unmask.evaluation.probe import linear
from unmask.interchange.encoder import load_encoder
from unmask.methods import METHODS
from unmask.settings import Views

Row = tuple[str, FeatureTable, FeatureTable]

SHARED = Path(os.environ.get("UNMASK_DATA", ROOT.parent / "shared" / "data"))
DATA = {
    "cifar10": (SHARED / "cifar10-train.parquet", SHARED / "cifar10-test.parquet"),  # 25,000 and 10,000 pictures of 32 px, 10 classes
    "imagenette": (SHARED / "imagenette224.tar" / "train", SHARED / "imagenette224.tar" / "val"),  # 9,469 and 3,925 of 224 px, 10 classes
}
TINY = {"model": "vit_tiny_patch16_224", "width": 96, "depth": 4, "heads": 3}
SMALL = {"model": "vit_tiny_patch16_224", "width": 128, "depth": 6, "heads": 4}
RUNS: dict[tuple[str, str], dict[str, Any]] = {  # what is pre-trained, by data and budget
    ("cifar10", "small"): TINY | {"patch_size": 4, "img_size": (32, 32), "epochs": 4, "batch_size": 128, "lr": 1.5e-3},
    ("imagenette", "small"): TINY | {"patch_size": 8, "img_size": (64, 64), "epochs": 10, "batch_size": 128, "lr": 1.5e-3},
    ("cifar10", "cpu"): SMALL | {"patch_size": 4, "img_size": (32, 32), "epochs": 10, "batch_size": 256, "lr": 2e-3},
    ("imagenette", "cpu"): SMALL | {"patch_size": 8, "img_size": (64, 64), "epochs": 20, "batch_size": 128, "lr": 1.5e-3},
    ("cifar10", "gpu"): {"model": "vit_tiny_patch16_224", "patch_size": 4, "img_size": (32, 32), "epochs": 400, "batch_size": 512, "lr": 1.5e-3},
    ("imagenette", "gpu"): {"model": "vit_small_patch16_224", "img_size": (224, 224), "epochs": 200, "batch_size": 256, "lr": 5e-4},
}
OWN: dict[str, dict[str, Any]] = {  # on a CPU's networks: what a method's parts are called and how small they are
    "mae": {"method.decoder_width": 64, "method.decoder_depth": 1},
    "ijepa": {"method.decoder_width": 48, "method.decoder_depth": 2},
    "aim": {"method.head_width": 192, "method.head_depth": 1},
    "bootmae": {"method.decoder_width": 64, "method.decoder_depth": 1},
    "pixio": {"method.decoder_width": 64, "method.decoder_depth": 2},
    "crossmae": {"method.decoder_width": 64, "method.decoder_depth": 2},
    "cae": {"method.regressor": 2, "method.decoder": 1},
}
WORDS = {"beit": "dvae", "cae": "dvae", "beit2": "vqkd"}  # methods that predict codes, and what their tokenizer is, trained on the same pictures
VOCABULARIES: dict[str, dict[str, Any]] = {  # on a CPU: how small tokenizers are
    "dvae": {"vocabulary": 512, "hidden": 16, "blocks": 1},
    "vqkd": {"vocabulary": 512, "columns": 16, "decoder_depth": 1},
}
JUDGED = {"small": (10_000, 5_000)}  # pictures that teach and judge, where a budget does not take all
FEW = 5  # pictures of a class in a dry run
COLOUR = "channel means and deviations"


@dataclass(frozen=True)
class Ground:
    """What every method of one call stands on: pictures to learn from and to judge by, settings, and where things go."""

    name: str  # data and budget, as files are called
    train: Path
    val: Path | None
    settings: dict[str, Any]
    words: argparse.Namespace

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def run(self, method: str) -> Path:
        return self.words.runs / f"learn-{method}-{self.name}"

    @cached_property
    def halves(self) -> tuple[tuple[Pictures, list[int]], tuple[Pictures, list[int]]]:
        """Pictures and their numbers, that teach and that judge."""
        source = open_source(str(self.train))
        format, size, seed = survey(source, seed=self.words.seed), self.settings["img_size"], self.words.seed  # as a run measures it
        pictures = Pictures(source, format, Views(), size, seed)
        held = Pictures(open_source(str(self.val)), format, Views(), size, seed) if self.val else None
        pictures, teach, judging, judge, _ = parts(pictures, held, str(self.train), seed)
        most = JUDGED.get(self.words.budget, (None, None))
        shuffle = np.random.default_rng(seed).permutation
        return (pictures, sorted(shuffle(teach)[: most[0]].tolist())), (judging, sorted(shuffle(judge)[: most[1]].tolist()))


def halves(data: str) -> tuple[Path, Path | None]:
    """The pictures to learn from and those to judge by (None: a fifth of them is kept apart)."""
    if data in DATA:
        return DATA[data]
    train, val = Path(data, "train"), Path(data, "val")
    return (train, val) if train.is_dir() and val.is_dir() else (Path(data), None)


def few(data: Path, folder: Path) -> Path:
    """The first pictures of every class of DATA, as files in class folders."""
    source = open_source(data)
    if source.labels is None or source.labels.kind != "classes":
        raise SystemExit(f"{data} has no labels: class folders are wanted")
    for number, name in enumerate(source.labels.names):
        for index in np.flatnonzero(source.labels.values == number)[:FEW]:
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = source.read(int(index))  # (H, W, 1 or 3)
            Image.fromarray(np.repeat(pixels, 3 // pixels.shape[2], axis=2)).save(path)
    return folder


def pretrain(method: str, run: Path, train: Path, settings: dict[str, Any]) -> float:
    """Make the run, or go on with it; the seconds from its first file to its last, pauses included."""
    status = run / "status.json"
    state = json.loads(status.read_text(encoding="utf-8"))["status"] if status.is_file() else None
    if state is None:
        (unmask.pretrain if method in METHODS else unmask.train_tokenizer)(method, str(train), run, **settings)
    elif state != "finished":
        unmask.resume(run)
    return (run / "model.safetensors").stat().st_mtime - (run / "config.yaml").stat().st_mtime


def vocabulary(kind: str, ground: Ground) -> Path:
    """The tokenizer of a kind, trained on this ground unless it is there; a `vqkd` is taught by the masked autoencoder of the same ground."""
    run, shared = ground.run(kind), ground.settings
    settings = {key: value for key, value in shared.items() if key in ("img_size", "epochs", "steps", "batch_size", "seed", "workers")} | {"lr": 1e-3}
    settings |= VOCABULARIES[kind] if ground.words.budget != "gpu" else {}
    if kind == "vqkd":
        settings |= {key: shared[key] for key in ("model", "width", "depth", "heads", "patch_size") if key in shared} | {"teacher": str(ground.run("mae"))}
    else:
        settings |= {"stride": min(8, shared.get("patch_size", 8))}
    pretrain(kind, run, ground.train, settings)
    return run


def encoders(ground: Ground, run: Path) -> Iterator[Row]:
    """Name, and feature tables to learn from and to judge by, of the trained encoder and the random ones."""
    taken = [("trained encoder", load_encoder(run))]
    taken += [(f"random encoder, seed {seed}", load_encoder(run, random=True, seed=seed)) for seed in range(ground.words.random_seeds)]
    for name, encoder in taken:
        learn, judge = (extract(encoder, *half, workers=ground.words.workers or 0, device=ground.device, title=name) for half in ground.halves)
        yield name, learn, judge


def colours(ground: Ground) -> Iterator[Row]:
    """The same of what needs no network."""
    workers = ground.words.workers or 0
    yield COLOUR, *standard(*(pixel_statistics(*half, workers=workers) for half in ground.halves))
    yield "raw pixels", *standard(*(raw_pixels(*half, workers) for half in ground.halves))


def raw_pixels(pictures: Pictures, indices: list[int], workers: int) -> FeatureTable:
    """The normalised pixels themselves, shrunk to at most 32 a side: features (n, C·32·32)."""

    def small(x: torch.Tensor) -> dict[str, torch.Tensor]:
        side = min(32, x.shape[2])
        return {"pixels": torch.nn.functional.interpolate(x, (side, side), mode="area").flatten(1)}

    return tabulate(small, pictures, indices, workers=workers, title="raw pixels")


def standard(learn: FeatureTable, judge: FeatureTable) -> tuple[FeatureTable, FeatureTable]:
    """Both with the columns standardised by the first: what an encoder's final norm does for its features."""
    std, mean = torch.std_mean(learn.of("pixels"), dim=0)
    first, second = (replace(table, parts={"pixels": (table.of("pixels") - mean) / std}) for table in (learn, judge))
    return first, second


def protocols(name: str, learn: FeatureTable, judge: FeatureTable, seed: int) -> Iterator[dict[str, Any]]:
    """kNN by every pooling, and the linear probe with the pooling that it chooses itself, with 95 % intervals."""
    labels, truth = learn.classes_of(), judge.classes_of()
    classes = int(labels.max()) + 1
    votes = [("knn", pooling, knn(learn.of(pooling), labels, judge.of(pooling), classes)) for pooling in learn.parts]
    if name != "raw pixels":  # of thousands of raw pixels the sweep of rates takes longer than everything else
        probe = linear(learn, classes, seed=seed)
        votes.append(("linear", probe.pooling, probe(judge.of(probe.pooling))))
    for protocol, pooling, answer in votes:
        hits, n = right(answer, truth), len(judge)
        interval = [round(end, 2) for end in wilson(hits, n)]
        top1 = round(100 * hits / n, 2)
        yield {"features": name, "protocol": protocol, "pooling": pooling, "top1": top1, "interval": interval, "n_train": len(learn), "n_val": n}


def curve(run: Path, points: int = 40) -> dict[str, Any]:
    """The loss over the run, thinned, its mean over the last steps, and everything else that the run measured last."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "step" in row and "loss" in row]
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    tail = [row["loss"] for row in steps[-max(1, len(steps) // 20) :]]
    thin = [[row["step"], round(row["loss"], 4)] for row in steps[:: max(1, len(steps) // points)]]
    return {"steps": steps[-1]["step"], "loss_last_20th": sum(tail) / len(tail), "measured_last": last, "curve": thin}


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        low, high = row["interval"]
        print(f"  {row['features']:30s} {row['protocol']:7s} {row['pooling']:8s} {row['top1']:5.1f} % (95 % {low:.1f} to {high:.1f})")


def learn(method: str, ground: Ground, beside: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train, measure, draw, write; the rows of what needs no network, which the next method can share."""
    name, run, words = f"learn-{method}-{ground.name}", ground.run(method), ground.words
    if (words.out / f"{name}.json").is_file() and not words.dry:
        print(f"{method}: done, {words.out / name}.json")
        return beside
    settings = ground.settings | (OWN.get(method, {}) if words.budget != "gpu" else {})
    if method == "eva":  # the teacher is the masked autoencoder of the same ground
        settings |= {"method.teacher": str(ground.run("mae"))}
    if method in WORDS:
        settings |= {"method.tokenizer": str(vocabulary(WORDS[method], ground))}
    trained = pretrain(method, run, ground.train, settings)
    start = time.perf_counter()
    rows = [row for found in encoders(ground, run) for row in protocols(*found, words.seed)]
    beside = beside or [row for found in colours(ground) for row in protocols(*found, words.seed)]
    words.out.mkdir(parents=True, exist_ok=True)
    count = 8 if max(settings["img_size"]) <= 32 else 4  # so that the picture stays small
    unmask.reconstruct(run, str(ground.val or ground.train), out=str(words.out / f"{name}.png"), count=count)
    print(f"{method}, {ground.name}:")
    show(rows + beside)
    said = {key: list(value) if isinstance(value, tuple) else Path(value).name if key in ("method.teacher", "method.tokenizer") else value for key, value in settings.items()}
    result = {"settings": {"method": method, "data": words.data} | said, "machine": machine(ground.device)}
    seconds = {"pretraining_seconds": round(trained, 1), "evaluation_seconds": round(time.perf_counter() - start, 1)}
    print(keep(name, result | seconds | {"evaluations": rows + beside, "loss": curve(run)}, words.out), flush=True)
    return beside


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}; not given: mae")
    parser.add_argument("--data", default="cifar10", help="cifar10, imagenette, or a folder of class folders (with train/ and val/, or without)")
    parser.add_argument("--budget", choices=("small", "cpu", "gpu"), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry", action="store_true", help="five pictures a class, two steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random_seeds", type=int, default=2, help="how many random encoders stand beside")
    parser.add_argument("--epochs", type=float, help="another length than the planned one")
    parser.add_argument("--workers", type=int, help="processes that read pictures")
    parser.add_argument("--threads", type=int, help="CPU threads; not given: torch's choice")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders are made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the result goes")
    words = parser.parse_args()
    wrong = [name for name in words.methods if name not in METHODS]
    if wrong:
        parser.error(f"no method {wrong[0]}; there are {', '.join(METHODS)}")
    return words


def main() -> None:
    words = arguments()
    if words.threads:
        torch.set_num_threads(words.threads)
    settings = RUNS[words.data if words.data in DATA else "imagenette", words.budget] | {"seed": words.seed}
    settings |= {key: value for key, value in (("epochs", words.epochs), ("workers", words.workers)) if value is not None}
    longer = f"-{words.epochs:g}-epochs" if words.epochs else ""
    seed = f"-seed{words.seed}" if words.seed else ""
    name = f"{words.data if words.data in DATA else Path(words.data).name}-{words.budget}{longer}{seed}" + "-dry" * words.dry
    train, val = halves(words.data)
    if words.dry:
        train, val = few(train, words.runs / f"learn-{name}-train"), val and few(val, words.runs / f"learn-{name}-val")
        settings = {key: value for key, value in settings.items() if key != "epochs"} | {"steps": 2, "batch_size": 16}
    beside: list[dict[str, Any]] = []
    for method in words.methods or ["mae"]:
        beside = learn(method, Ground(name, train, val, settings, words), beside)


if __name__ == "__main__":
    main()
