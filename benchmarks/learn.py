"""Does a method learn on real pictures? Pre-train, then measure the encoder beside what needs no training.

The runs are made by `unmask.pretrain` and `unmask.resume`, the pictures by `unmask.reconstruct`, fine-tuning by `unmask.evaluate`; kNN and
the linear probe come from the functions behind `unmask.evaluate`, on features that are computed once. Beside the trained encoder stand
the same encoder with random weights, the channel means and deviations of a picture, and its raw pixels; beside fine-tuning the same network
from scratch; beside the loss the baselines that the run itself measures.

    python benchmarks/learn.py [METHOD …] [--data cifar10|imagenette|FOLDER] [--budget small|cpu|gpu] [--seeds 1] [--experiments]

Without METHOD all of them, the most telling first. What each will take on this machine is measured on a few steps and printed before
(`--forecast`: that alone), and what fits in `--minutes`; then the call ends with its work saved. Running it again goes on with an
unfinished run (in runs/, not under version control), measures a finished one and skips an entry whose result is there. A result goes
to benchmarks/results/learn-<method>-<data>-<budget>.json, a picture of what the network says beside it; `evidence.py` makes the page.

Every method gets the same pictures, network, epochs and batch, the ground's rate, and, on a CPU, the sizes and rates of `grounds.OWN`;
everything else is its paper's. `--dry` does all of it on five pictures a class and two steps: it shows that the long run will start, and proves nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from grounds import NEEDS, Entry, Ground, chosen, ground, queue, unfinished
from record import RESULTS, ROOT, keep, machine
from safetensors import safe_open
from transfer import Part, runs

import unmask
from unmask.data.loader import Pictures
from unmask.evaluation.features import FeatureTable, extract, pixel_statistics, tabulate
from unmask.evaluation.knn import knn
from unmask.evaluation.metrics import right, wilson
from unmask.evaluation.probe import linear
from unmask.interchange.encoder import load_encoder
from unmask.methods import TOKENIZERS

Row = tuple[str, FeatureTable, FeatureTable]

FINETUNE = Part("finetune", 0.1, 1, {"epochs": 15})  # of a tenth of the labels
TRAINED_FURTHER = {  # by budget: what is done with labels beyond frozen features
    "small": (),  # kNN and the linear probe alone, but for --finetune
    "cpu": (FINETUNE,),
    "gpu": (Part("finetune", 0.01, 1, {"epochs": 100}), Part("finetune", 0.1, 1, {"epochs": 100}), Part("finetune", 1.0, 1, {"epochs": 100}), Part("attentive", 1.0, 1, {"epochs": 20})),
}
DRY = (Part("finetune", 0.5, 1, {"steps": 2, "batch_size": 4}),)
COLOUR = "channel means and deviations"
SHOWN = 12  # pictures in the drawing: the same ones for every method
PACE = 8  # steps on which an entry's pace is measured, the first half of which does not count


def encoders(ground: Ground, run: Path, random_seeds: int) -> Iterator[Row]:
    """Name, and feature tables to learn from and to judge by, of the trained encoder and the random ones."""
    taken = [("trained encoder", load_encoder(run))]
    taken += [(f"random encoder, seed {seed}", load_encoder(run, random=True, seed=seed)) for seed in range(random_seeds)]
    for name, encoder in taken:
        learn, judge = (extract(encoder, *half, workers=ground.workers, device=ground.device, title=name) for half in ground.halves)
        yield name, learn, judge


def colours(ground: Ground) -> Iterator[Row]:
    """The same of what needs no network."""
    yield COLOUR, *standard(*(pixel_statistics(*half, workers=ground.workers) for half in ground.halves))
    yield "raw pixels", *standard(*(raw_pixels(*half, ground.workers) for half in ground.halves))


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


def frozen(name: str, learn: FeatureTable, judge: FeatureTable, seed: int) -> Iterator[dict[str, Any]]:
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


def network(run: Path) -> str:
    """What a run's encoder is, its weights apart, as files are called."""
    with safe_open(run / "encoder.safetensors", framework="pt") as file:
        words = file.metadata()
    return f"{words['model']}-{zlib.crc32(words['kwargs'].encode()):08x}"


def further(entry: Entry, ground: Ground, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """The encoder trained further with labels, and the same network from scratch, whose runs are shared by the methods of one network."""
    common = {"val": str(ground.val)} if ground.val else {}
    for part in parts:
        for scratch in (False, True) if part.protocol == "finetune" else (False,):
            name = f"scratch-{network(ground.run(entry))}-{ground.data}-{ground.budget}" + "-dry" * ground.dry
            folder = ground.runs / f"{part.name}-{name if scratch else entry.name(ground.name)}"
            said = common | {"seed": entry.seed, "workers": ground.workers, "share": part.share}
            row = runs(part, ground.run(entry), ground.train, folder, said, scratch)
            taken = {key: row[key] for key in ("top1", "interval", "n_train", "n_val")}
            yield {"features": "from scratch" if scratch else "trained encoder", "protocol": part.name, "pooling": row.get("pooling") or ""} | taken


def curve(run: Path, points: int = 40) -> dict[str, Any]:
    """The loss over the run, thinned, its mean over the last steps, kNN while it trained, and everything else that the run measured last."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "step" in row and "loss" in row]
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    tail = [row["loss"] for row in steps[-max(1, len(steps) // 20) :]]
    thin = [[row["step"], round(row["loss"], 4)] for row in steps[:: max(1, len(steps) // points)]]
    looks = {key: [[row["step"], round(row[key], 3)] for row in rows if key in row] for key in ("knn", "rank")}
    return {"steps": steps[-1]["step"], "loss_last_20th": sum(tail) / len(tail), "measured_last": last, "curve": thin} | looks


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        low, high = row["interval"]
        print(f"  {row['features']:30s} {row['protocol']:11s} {row['pooling']:8s} {row['top1']:5.1f} % (95 % {low:.1f} to {high:.1f})")


def learn(entry: Entry, ground: Ground, beside: list[dict[str, Any]], random_seeds: int, parts: Sequence[Part], out: Path) -> list[dict[str, Any]]:
    """Train, measure, draw, write; the rows of what needs no network, which the next entry can share."""
    name, run = entry.name(ground.name), ground.run(entry)
    settings, trained = ground.pretrain(entry)
    start = time.perf_counter()
    rows = [row for found in encoders(ground, run, random_seeds) for row in frozen(*found, entry.seed)]
    beside = beside or [row for found in colours(ground) for row in frozen(*found, entry.seed)]
    if not entry.question:
        rows += further(entry, ground, parts)
    out.mkdir(parents=True, exist_ok=True)
    with suppress(unmask.Refused):  # what tells views apart has nothing to draw
        unmask.reconstruct(run, str(ground.val or ground.train), out=str(out / f"{name}.png"), count=SHOWN if max(ground.settings["img_size"]) <= 32 else 4)
    print(f"{name}:")
    show(rows + beside)
    said = {key: list(value) if isinstance(value, tuple) else Path(value).name if str(value).startswith(str(ground.runs)) else value for key, value in settings.items()}
    which = {"entry": {"method": entry.method, "variant": entry.variant, "question": entry.question, "data": ground.data, "budget": ground.budget + ground.longer, "seed": entry.seed}}
    seconds = {"pretraining_seconds": round(trained, 1), "evaluation_seconds": round(time.perf_counter() - start, 1)}
    result = which | {"settings": said, "machine": machine(ground.device)} | seconds | {"evaluations": rows + beside, "loss": curve(run)}
    source = NEEDS.get(entry.method, ("", ""))[1]
    if source in TOKENIZERS:  # how good the words are that it learned to name
        words = Entry(source, seed=entry.seed)
        result["tokenizer"] = {"method": source, "settings": ground.planned(words), "measured_last": curve(ground.run(words))["measured_last"]}
    print(keep(name, result, out), flush=True)
    return beside


def pace(entry: Entry, ground: Ground) -> tuple[float, float]:
    """The minutes that pre-training will take here (what it learns from included where it is not there yet), and its steps a second."""
    with tempfile.TemporaryDirectory() as folder:
        short = {key: value for key, value in ground.settings.items() if key != "epochs"} | {"steps": PACE, "compile": "no"}
        ground_of_few = replace(ground, settings=short, runs=Path(folder))
        ground_of_few.pretrain(replace(entry, changes={key: value for key, value in entry.changes.items() if key != "epochs"}))
        rows = [json.loads(line) for line in (ground_of_few.run(entry) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    images = statistics.median([row["images_per_second"] for row in rows if "images_per_second" in row][PACE // 2 :])
    settings = ground.planned(entry)
    pictures = settings["steps"] * settings["batch_size"] if "steps" in settings else settings["epochs"] * ground.count
    return pictures / images / 60, images


def forecast(entries: list[Entry], ground: Ground, minutes: float | None) -> None:
    """Print what each entry will cost on this device, and which will fit."""
    total = 0.0
    for entry in entries:
        needed, images = pace(entry, ground)
        total += needed
        fits = "" if minutes is None else "   fits" if total <= minutes else "   in a later call"
        print(f"  {entry.name(ground.name):50s} {needed:7.1f} min ({images:,.0f} images/s), all so far {total:7.1f} min{fits}", flush=True)
    print("  (pre-training alone, from a few steps; measuring comes on top)")


def end_after(minutes: float) -> None:
    """Ask this process to stop in so many minutes, as a job scheduler would: the loop saves, everything else is done again."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(75)

    signal.signal(signal.SIGTERM, stop)
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="not given: all")
    parser.add_argument("--data", default="cifar10", help="cifar10, imagenette, or a folder of class folders (with train/ and val/, or without)")
    parser.add_argument("--budget", choices=("small", "cpu", "gpu"), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seeds", type=int, default=1, help="how many: 0, 1, …")
    parser.add_argument("--experiments", action="store_true", help="also the methods named with one setting changed at a time")
    parser.add_argument("--minutes", type=float, help="stop, with the work saved, after so many")
    parser.add_argument("--forecast", action="store_true", help="only say what each entry will cost here")
    parser.add_argument("--dry", action="store_true", help="five pictures a class, two steps")
    parser.add_argument("--finetune", action="store_true", help="on the small budget too: fine-tune with a tenth of the labels, beside from scratch")
    parser.add_argument("--random_seeds", type=int, default=2, help="how many random encoders stand beside")
    parser.add_argument("--epochs", type=float, help="another length than the planned one")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--threads", type=int, help="CPU threads; not given: torch's choice")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders are made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the result goes")
    words = parser.parse_args()
    if words.threads:
        torch.set_num_threads(words.threads)
    if words.minutes:
        end_after(words.minutes)
    place = ground(words.data, words.budget, words.runs.resolve(), workers=words.workers, epochs=words.epochs, dry=words.dry)
    entries = list(unfinished(queue(chosen(words.methods), words.seeds, words.experiments), place, words.out))
    if words.forecast or (words.minutes and not words.dry):
        forecast(entries, place, words.minutes)
    parts = DRY if words.dry else TRAINED_FURTHER[words.budget] or (FINETUNE,) * words.finetune
    beside: list[dict[str, Any]] = []
    for entry in [] if words.forecast else entries:
        beside = learn(entry, place, beside, words.random_seeds, parts, words.out)


if __name__ == "__main__":
    main()
