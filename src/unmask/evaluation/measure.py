"""One protocol on one frozen encoder: the row of figures that `unmask evaluate` prints, with everything needed to read it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from unmask.data.loader import Pictures
from unmask.data.splits import parts
from unmask.evaluation.features import FeatureTable, extract
from unmask.evaluation.knn import knn
from unmask.evaluation.metrics import rank_me, right, wilson
from unmask.evaluation.probe import lars, linear
from unmask.interchange.timm import Encoder


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
    classes = len(pictures.labels.names) if pictures.labels is not None else 0
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
