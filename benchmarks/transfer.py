"""What does masked pre-training save in labels? Few labels and fine-tuning, from a masked encoder, a random one and from scratch.

The encoder is the run of learn.py (made here if it is not there, or given by --encoder). With 1 % and 10 % of the labels, stratified:
logistic regression on frozen features beside the same network with random weights; fine-tuning the whole encoder beside the same network
from scratch with the same settings; and an attentive probe. Every figure is the mean over several subsets with Student's 95 % interval,
or, for one subset, with Wilson's over the test pictures; gains are of pairs on the same subsets.

    python benchmarks/transfer.py [--data cifar10|imagenette|FOLDER] [--budget cpu|gpu] [--encoder RUN] [--dry]

Running it again goes on with what is unfinished (in runs/, not under version control). The result goes to
benchmarks/results/transfer-<data>-<budget>.json. `--dry` does all of it on five pictures a class and two steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from grounds import Entry, ground
from record import RESULTS, ROOT, keep, machine

import unmask
from unmask.transfer.lowshot import interval


@dataclass(frozen=True)
class Part:
    """One comparison: a protocol, how many labels, how many subsets, and its settings."""

    protocol: str  # lowshot, finetune or attentive
    share: float  # of the labels of each class
    subsets: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.protocol}-{100 * self.share:g}"


PLANS = {
    "cpu": (
        Part("lowshot", 0.01, 5, {}),
        Part("lowshot", 0.1, 5, {}),
        Part("finetune", 0.01, 3, {"epochs": 40}),
        Part("finetune", 0.1, 2, {"epochs": 10}),
        Part("attentive", 0.1, 1, {"epochs": 10}),
    ),
    "gpu": (
        Part("lowshot", 0.01, 5, {}),
        Part("lowshot", 0.1, 5, {}),
        Part("finetune", 0.01, 5, {"epochs": 100}),
        Part("finetune", 0.1, 5, {"epochs": 100}),
        Part("finetune", 1.0, 3, {"epochs": 100}),
        Part("attentive", 0.1, 3, {"epochs": 50}),
        Part("attentive", 1.0, 1, {"epochs": 20}),
    ),
}
DRY = (Part("lowshot", 0.5, 2, {}), Part("finetune", 0.5, 2, {"steps": 2, "batch_size": 4}), Part("attentive", 0.5, 1, {"steps": 2, "batch_size": 4}))


def measured(part: Part, encoder: Path, train: Path, val: Path | None, folder: Path, words: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one comparison: the masked encoder, and what stands beside it."""
    common: dict[str, Any] = {"val": str(val)} if val else {}
    common |= {"seed": words.seed, "workers": words.workers, "share": part.share}
    for beside in (False, True):
        if part.protocol == "lowshot":
            row = unmask.evaluate("lowshot", encoder, str(train), seeds=part.subsets, random=beside, **common)
        else:
            row = runs(part, encoder, train, folder / (part.name + "-scratch" * beside), common, beside)
        start = "masked" if not beside else "from scratch" if part.protocol == "finetune" else "random, frozen"
        yield {"protocol": part.protocol, "share": part.share, "start": start} | {key: row.get(key) for key in ("top1", "interval", "interval_over", "each", "n_train", "n_val", "pooling")}


def runs(part: Part, encoder: Path, train: Path, folder: Path, common: dict[str, Any], scratch: bool) -> dict[str, Any]:
    """A run for each subset, made or gone on with; the row of all of them."""
    rows = []
    for number in range(part.subsets):
        out = folder / f"subset-{number}"
        if not (out / "config.yaml").is_file():
            unmask.evaluate(part.protocol, encoder, str(train), out=out, scratch=scratch, subset=number, **common, **part.settings)
        elif not (out / "evaluations.jsonl").is_file():
            unmask.resume(out)
        rows.append(json.loads((out / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()[0]))
    each = [row["top1"] for row in rows]
    if len(each) == 1:
        return rows[0] | {"each": each}
    return rows[0] | {"top1": sum(each) / len(each), "interval": list(interval(each)), "interval_over": f"{len(each)} subsets", "each": each}


def gain(masked: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """How many points the masked encoder is above, on the same subsets; the interval of their pairs, where there are several."""
    pairs = [a - b for a, b in zip(masked["each"], other["each"])]
    ends = [round(end, 2) for end in interval(pairs)] if len(pairs) > 1 else None
    return {"over": other["start"], "protocol": masked["protocol"], "share": masked["share"], "points": round(sum(pairs) / len(pairs), 2), "interval": ends}


def show(rows: list[dict[str, Any]], gains: list[dict[str, Any]]) -> None:
    for row in rows:
        low, high = row["interval"]
        print(f"  {row['protocol']:10s}{100 * row['share']:5g} % of the labels ({row['n_train']:,}), {row['start']:14s} {row['top1']:5.1f} % (95 % {low:.1f} to {high:.1f}, over {row['interval_over']})")
    for row in gains:
        ends = f" (95 % {row['interval'][0]:.1f} to {row['interval'][1]:.1f})" if row["interval"] else " (one subset)"
        print(f"  {row['protocol']:10s}{100 * row['share']:5g} %: masked is {row['points']:+.1f} points over {row['over']}{ends}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="cifar10, imagenette, or a folder of class folders (with train/ and val/, or without)")
    parser.add_argument("--budget", choices=("cpu", "gpu"), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--encoder", type=Path, help="a run of masked pre-training on that data; not given: made as learn.py makes it")
    parser.add_argument("--dry", action="store_true", help="five pictures a class, two steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--threads", type=int, help="CPU threads; not given: torch's choice")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders are made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the result goes")
    words = parser.parse_args()
    if words.threads:
        torch.set_num_threads(words.threads)
    place = ground(words.data, words.budget, words.runs.resolve(), seed=words.seed, workers=words.workers, dry=words.dry)
    mae = Entry("mae", seed=words.seed)
    name = mae.name(place.name).removeprefix("learn-mae-")
    encoder, settings = words.encoder or place.run(mae), place.planned(mae)
    if words.encoder is None:
        place.pretrain(mae)
    rows: list[dict[str, Any]] = []
    gains: list[dict[str, Any]] = []
    for part in DRY if words.dry else PLANS[words.budget]:
        rows += measured(part, encoder, place.train, place.val, words.runs / f"transfer-{name}", words)
        gains.append(gain(*rows[-2:]))
        found = {"encoder": {"method": "mae", "data": words.data} | {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}, "figures": rows, "gains": gains}
        path = keep(f"transfer-{name}", found | {"machine": machine("cuda" if torch.cuda.is_available() else "cpu")}, words.out)
        show(rows[-2:], gains[-1:])
    print(path)


if __name__ == "__main__":
    main()
