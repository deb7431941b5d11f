"""One protocol on one frozen encoder: the row of figures that `unmask evaluate` prints, with everything needed to read it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from unmask.data.loader import Pictures
from unmask.data.sources import aligned
from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable, extract, split
from unmask.evaluation.knn import knn
from unmask.evaluation.metrics import rank_me, right, wilson
from unmask.evaluation.probe import lars, linear
from unmask.interchange.timm import Encoder

HELD_OUT = 0.2  # of DATA's labelled pictures, where there are none to judge by
TRAIN, VAL = ("train", "training"), ("val", "valid", "validation", "test", "testing")


def labelled(pictures: Pictures, name: str) -> list[int]:
    """The numbers of the pictures that have a label; Refused where there are none."""
    if pictures.labels is None or not bool((pictures.labels >= 0).any()):
        raise Refused(f"{name} has no labels: put each class in a folder of its own, or give --labels FILE.csv (columns path and label)")
    return np.flatnonzero(pictures.labels >= 0).tolist()


def parts(pictures: Pictures, val: Pictures | None, name: str, seed: int) -> tuple[list[int], Pictures, list[int], str]:
    """Which pictures teach and which judge: (numbers in `pictures`, the judging pictures, numbers in them, how they were chosen)."""
    known = labelled(pictures, name)
    if val is not None:
        if val.labels is None or val.classes is None or pictures.classes is None:
            raise Refused("the pictures to judge by (--val) have no labels: put each class in a folder of its own, or give --labels FILE.csv")
        val.labels = aligned(val.source, pictures.classes)
        unknown = int((val.source.labels >= 0).sum() - (val.labels >= 0).sum())  # type: ignore[operator, union-attr]
        if unknown:
            print(f"warning: {unknown:,} pictures of --val are of classes that {name} does not have: they are left out")
        judged = np.flatnonzero(val.labels >= 0).tolist()
        if not judged:
            raise Refused(f"DATA and --val have no class in common: {', '.join(pictures.classes[:3])} … and {', '.join(val.classes[:3])} …")
        return known, val, judged, "--val"
    numbers, have = pictures.source.splits, set(known)
    teach, judge = (next((numbers[word] for word in words if word in numbers), None) for words in (TRAIN, VAL))
    if teach is not None and judge is not None:
        return [i for i in teach.tolist() if i in have], pictures, [i for i in judge.tolist() if i in have], "DATA's own folders"
    kept, held = split(torch.from_numpy(pictures.labels[known]), HELD_OUT, seed)  # type: ignore[index]
    if not len(held):
        raise Refused(f"{name} has too few labelled pictures to keep some apart: give others to judge by with --val")
    return [known[i] for i in kept.tolist()], pictures, [known[i] for i in held.tolist()], f"{HELD_OUT:.0%} of DATA, kept apart"


def measure(
    protocol: str,
    encoder: Encoder,
    pictures: Pictures,
    val: Pictures | None,
    *,
    name: str,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    pooling: str = "auto",
    **more: Any,
) -> dict[str, Any]:
    """The figures of `protocol` (knn: k, temperature; linear: lars, epochs), percentages with their 95 % interval."""
    start = time.perf_counter()
    teach, judging, judge, chosen = parts(pictures, val, name, seed)
    train = extract(encoder, pictures, teach, batch_size, workers, device, title="pictures to learn from")
    test = extract(encoder, judging, judge, batch_size, workers, device, title="pictures to judge by")
    classes = len(pictures.classes or ())
    votes, said = {"knn": _knn, "linear": _linear}[protocol](train, test, classes, pooling, seed, **more)
    labels = test.classes_of()
    hits = right(votes, labels)
    low, high = wilson(hits, len(labels))
    most = int(torch.bincount(labels).max())
    row = {
        "protocol": said.pop("protocol"),
        "top1": round(100 * hits / len(labels), 4),
        "interval": [round(low, 2), round(high, 2)],
        **({"top5": round(100 * right(votes, labels, 5) / len(labels), 4)} if classes > 5 else {}),
        **said,
        "img_size": list(encoder.img_size),
        "seed": seed,
        "n_train": len(train),
        "n_val": len(test),
        "val": chosen,
        "classes": classes,
        "chance": round(100 / classes, 4),
        "majority": round(100 * most / len(labels), 4),  # top1 of always answering the largest class
        "skipped": train.skipped + test.skipped,
        "rank": round(rank_me(train.of(said["pooling"])[:: max(1, len(train) // 4096)]), 2),
        "model": encoder.name,
    }
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def _knn(train: FeatureTable, test: FeatureTable, classes: int, pooling: str, seed: int, k: int = 20, temperature: float = 0.07):
    pooling = train.poolings[0] if pooling == "auto" else pooling
    votes = knn(train.of(pooling), train.classes_of(), test.of(pooling), classes, k, temperature)
    return votes, {"protocol": "knn", "pooling": pooling, "k": min(k, len(train)), "temperature": temperature, "epochs": 0}


def _linear(train: FeatureTable, test: FeatureTable, classes: int, pooling: str, seed: int, paper: bool = False, epochs: int | None = None):
    if paper:
        probe = lars(train, classes, None if pooling == "auto" else pooling, epochs or 90, seed=seed)
    else:
        poolings: Sequence[str] | None = None if pooling == "auto" else (pooling,)
        probe = linear(train, classes, poolings, epochs or 100, seed=seed)  # type: ignore[arg-type]
    said = {"protocol": "linear-lars" if paper else "linear", "pooling": probe.pooling, "lr": probe.lr, "batch_size": probe.batch_size, "epochs": probe.epochs}
    if paper:
        said["augmentation"] = "none: the paper's random crops are left out"
    return probe(test.of(probe.pooling)), said
