"""One protocol on one frozen encoder: the row of figures that `unmask evaluate` prints, with everything needed to read it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unmask.data.labels import Labels
from unmask.data.loader import Pictures
from unmask.data.splits import parts
from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable, extract
from unmask.evaluation.knn import knn, mean_of_nearest
from unmask.evaluation.metrics import rank_me, score
from unmask.evaluation.probe import Probe, lars, linear, ridge
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
    **more: Any,
) -> dict[str, Any]:
    """The figures of `protocol` (knn: k, temperature, pooling; linear: paper, epochs, pooling) with their 95 % intervals."""
    start = time.perf_counter()
    pictures, teach, judging, judge, chosen = parts(pictures, val, name, seed)
    labels = pictures.labels
    assert labels is not None  # `parts` has refused it
    if more.get("paper") and labels.kind != "classes":
        raise Refused(f"--paper is MAE's protocol for classes, and these labels are {labels.kind}: without it the probe fits them")
    print("\n".join([*labels.rows(teach).said(), f"judged by {len(judge):,} pictures: {chosen}"]))
    train = extract(encoder, pictures, teach, batch_size, workers, device, title="pictures to learn from")
    test = extract(encoder, judging, judge, batch_size, workers, device, title="pictures to judge by")
    if train.skipped + test.skipped:
        print(f"{train.skipped + test.skipped:,} pictures cannot be read and are left out: {len(train):,} teach, {len(test):,} judge")
    answers, said = {"knn": by_knn, "linear": by_linear}[protocol](train, test, len(labels.names), seed=seed, **more)
    row = {"protocol": said.pop("protocol")} | figures(answers, test, labels, seed) | said
    row |= circumstances(encoder, train, test, chosen, seed, train.of(said["pooling"])) | labels.rows(teach).balance()
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def circumstances(encoder: Encoder, train: FeatureTable, test: FeatureTable, chosen: str, seed: int, features: Tensor) -> dict[str, Any]:
    """What has to be known to read a figure; `features` (n, D): those it rests on."""
    sizes = {"img_size": list(encoder.img_size), "seed": seed, "n_train": len(train), "n_val": len(test), "val": chosen}
    rank = round(rank_me(features[:: max(1, len(train) // 4096)]), 2)
    return sizes | {"skipped": train.skipped + test.skipped, "rank": rank, "model": encoder.name}


def figures(answers: Tensor, test: FeatureTable, labels: Labels, seed: int) -> dict[str, Any]:
    """`kind`, `metric`, its value under that name, `interval` and the kind's other figures: see `metrics.score`."""
    return {"kind": test.kind} | score(test.kind, answers, test.truth(), seed, test.groups, labels.names)


def by_knn(
    train: FeatureTable, test: FeatureTable, outputs: int, pooling: str = "auto", seed: int = 0, k: int = 20, temperature: float = 0.07
) -> tuple[Tensor, dict[str, Any]]:
    """(votes, or weighted means of tags or numbers, for each picture of `test`; the settings that led to them)."""
    pooling = train.poolings[0] if pooling == "auto" else pooling
    if train.kind == "classes":
        answers = knn(train.of(pooling), train.classes_of(), test.of(pooling), outputs, k, temperature)
    else:
        answers = mean_of_nearest(train.of(pooling), train.truth(), test.of(pooling), k, temperature)
    return answers, {"protocol": "knn", "pooling": pooling, "k": min(k, len(train)), "temperature": temperature, "epochs": 0}


def by_linear(
    train: FeatureTable, test: FeatureTable, outputs: int, pooling: str = "auto", seed: int = 0, paper: bool = False, epochs: int | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """(logits, or numbers, for each picture of `test`; the settings that led to them)."""
    probe = fitted(train, outputs, pooling, seed, paper, epochs)
    said: dict[str, Any] = {"protocol": "linear-lars" if paper else "linear", "pooling": probe.pooling}
    if train.kind == "numbers":
        said |= {"fit": "ridge", "l2": probe.l2, "epochs": 0}
    else:
        said |= {"lr": probe.lr, "batch_size": probe.batch_size, "epochs": probe.epochs}
    if paper:
        said["augmentation"] = "none: the paper's random crops are left out"
    return probe(test.of(probe.pooling)), said


def fitted(train: FeatureTable, outputs: int, pooling: str = "auto", seed: int = 0, paper: bool = False, epochs: int | None = None) -> Probe:
    """The linear probe that fits the kind of labels: cross entropy, binary cross entropy for each tag, or ridge regression."""
    poolings: Sequence[str] | None = None if pooling == "auto" else (pooling,)
    if paper:
        return lars(train, outputs, poolings[0] if poolings else None, epochs or 90, seed=seed)
    if train.kind == "numbers":
        return ridge(train, poolings, seed)
    return linear(train, outputs, poolings, epochs or 100, seed=seed)
