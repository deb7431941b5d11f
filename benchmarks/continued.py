"""Does what an encoder knows survive the first steps of being pre-trained further (`--init`), at other sizes, channels and patches?

A source is pre-trained on CIFAR-10 once; then runs on a small part of the pictures begin with it, with the settings that `unmask pretrain`
chooses, and nearest neighbours are measured at checkpoints on pictures that no run has seen. Beside them stand the source
itself at that size, the same network with random weights, and the same run with the encoder at the full learning rate.

    python benchmarks/continued.py [--source RUN] [--steps 150] [--encoder_rates 0.1 1] [--cases same alone larger grey patches]

Running it again goes on with what is missing (in runs/, not under version control). The result goes to
benchmarks/results/continued-cifar10-cpu.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import RESULTS, ROOT, keep, machine

import unmask
from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.statistics import Format
from unmask.evaluation.features import extract
from unmask.evaluation.knn import knn
from unmask.evaluation.metrics import right, wilson
from unmask.interchange.encoder import Encoder, load_encoder
from unmask.settings import Views

SHARED = Path(os.environ.get("UNMASK_DATA", ROOT.parent / "shared" / "data"))
TRAIN, TEST = SHARED / "cifar10-train.parquet", SHARED / "cifar10-test.parquet"
NETWORK = {"model": "vit_tiny_patch16_224", "width": 96, "depth": 4, "heads": 3, "patch_size": 4, "img_size": (32, 32)}
DECODER = {"method.decoder_width": 64, "method.decoder_depth": 1}
SOURCE = NETWORK | DECODER | {"epochs": 4, "batch_size": 128, "lr": 1.5e-3, "workers": 0, "accelerator": "cpu", "monitor_every": 1_000_000}  # as learn.py's
CASES: dict[str, dict[str, Any]] = {
    "same": {"img_size": (32, 32)},
    "alone": {"img_size": (32, 32)} | DECODER,  # from the encoder's file: the decoder begins anew
    "larger": {"img_size": (48, 48)},
    "grey": {"img_size": (32, 32), "in_chans": 1},
    "patches": {"img_size": (64, 64), "patch_size": 8},
}
SMALL = 2500  # pictures that a continued run has
TEACH, JUDGE = 2000, 2000  # labelled pictures for nearest neighbours, all from the test set
AT = (25, 50, 100, 150)  # steps at which the encoder is looked at


def part(folder: Path) -> Path:
    """The first pictures of the training set, as arrays."""
    path = folder / f"cifar10-{SMALL}.npz"
    if not path.is_file():
        source = open_source(str(TRAIN))
        order = np.random.default_rng(0).permutation(len(source))[:SMALL]
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=np.stack([source.read(int(i)) for i in order]))
    return path


@torch.no_grad()
def neighbours(encoder: Encoder) -> dict[str, Any]:
    """Top-1 of nearest neighbours by the mean of the patches, with its interval."""
    low, high = (value * encoder.in_chans if len(value) == 1 else value for value in (encoder.low, encoder.high))
    form = Format(encoder.in_chans, low, high, encoder.mean, encoder.std)
    pictures = Pictures(open_source(str(TEST)), form, Views(), encoder.img_size, 0)
    order = np.random.default_rng(1).permutation(len(pictures))[: TEACH + JUDGE].tolist()
    teach, judge = (extract(encoder, pictures, ids) for ids in (order[:TEACH], order[TEACH:]))
    labels = teach.classes_of()
    hits = right(knn(teach.of("avg"), labels, judge.of("avg"), int(labels.max()) + 1), judge.classes_of())
    return {"top1": round(100 * hits / JUDGE, 2), "interval": [round(end, 2) for end in wilson(hits, JUDGE)]}


def start(case: str, source: Path, runs: Path) -> Path:
    """What a case begins with: the run, or its encoder by itself."""
    if case != "alone":
        return source
    alone = runs / "continued-encoder" / "encoder.safetensors"
    alone.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "encoder.safetensors", alone)
    return alone


def continued(case: str, rate: float, source: Path, data: Path, steps: int, runs: Path) -> list[dict[str, Any]]:
    """One run that begins with the source, and its neighbours at each checkpoint; `rate`: the encoder's, beside the decoder's."""
    run = runs / f"continued-{case}-{rate:g}"
    settings = {"init": str(start(case, source, runs)), "encoder_rate": rate, "steps": steps, "batch_size": 64, "checkpoint_every": 5, "keep": 1000}
    if not (run / "encoder.safetensors").is_file():
        unmask.pretrain("mae", str(data), run, workers=0, accelerator="cpu", monitor_every=1_000_000, **settings, **CASES[case])
    rows = []
    for step in [step for step in AT if step <= steps]:
        file = run / "checkpoints" / f"step-{step:08d}" / "model.safetensors"
        rows.append({"step": step} | neighbours(load_encoder(file)))
    return rows


def beside(case: str, source: Path, data: Path, runs: Path) -> dict[str, Any]:
    """The source as it is, what a run begins with, and the network of that run with random weights."""
    run = runs / f"continued-{case}-begun"
    if not (run / "encoder.safetensors").is_file():  # a rate at which nothing moves
        settings = {"init": str(start(case, source, runs)), "lr": 1e-30, "steps": 1, "batch_size": 64, "workers": 0, "accelerator": "cpu", "monitor_every": 1_000_000}
        unmask.pretrain("mae", str(data), run, **settings, **CASES[case])
    encoders = {"source": load_encoder(source), "step 0": load_encoder(run), "random": load_encoder(run, random=True)}
    return {name: neighbours(encoder) for name, encoder in encoders.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders are made")
    parser.add_argument("--source", type=Path, help="the run that others begin with; not given: made in --runs")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--encoder_rates", type=float, nargs="+", default=[0.1, 1.0], help="the encoder's learning rate beside the decoder's; .1 is the default of a run")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the result goes")
    words = parser.parse_args()
    torch.set_num_threads(1)
    source = words.source or words.runs / "continued-source"
    if not (source / "encoder.safetensors").is_file():
        unmask.pretrain("mae", str(TRAIN), source, **SOURCE)
    data, found = part(words.runs), []
    for case in words.cases:
        reference = beside(case, source, data, words.runs)
        for rate in words.encoder_rates:
            rows = continued(case, rate, source, data, words.steps, words.runs)
            found.append({"case": case, "settings": CASES[case], "encoder_rate": rate, "rows": rows} | reference)
            curve = "  ".join(f"{row['step']}: {row['top1']}" for row in rows)
            known = ", ".join(f"{name} {row['top1']}" for name, row in reference.items())
            print(f"{case} at {rate:g}: {known}; {curve}", flush=True)
    facts = {"source": SOURCE, "pictures": SMALL, "batch_size": 64, "steps": words.steps, "neighbours": {"teach": TEACH, "judge": JUDGE, "k": 20}}
    print(keep("continued-cifar10-cpu", {"settings": facts, "machine": machine("cpu"), "cases": found}, words.out))


if __name__ == "__main__":
    main()
