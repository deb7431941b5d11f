"""Low-shot: what an encoder is worth with a few labels, on several subsets of the pictures that teach.

On frozen features a logistic regression as in MSN (Assran et al. 2022, arXiv:2204.07141, logistic_eval.py): every feature vector centred
and scaled to length 1, no bias, a penalty of l2 / n. Or every subset trains the encoder further, in a run of its own (`api/transfer.py`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.data.loader import Pictures
from unmask.data.splits import parts
from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable, extract
from unmask.evaluation.metrics import METRIC, RANGE, score
from unmask.evaluation.paired import student
from unmask.evaluation.probe import ridge
from unmask.interchange.timm import Encoder
from unmask.transfer.supervised import few

FEW = 3  # subsets below which their spread is hardly known
ROUNDS = 1000  # iterations of L-BFGS at most


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
    shots: int | None = None,
    share: float | None = None,
    seeds: int = 5,
    pooling: str = "auto",
    l2: float = 0.0025,
    **_: Any,
) -> dict[str, Any]:
    """The figures of logistic regression (of numbers: ridge regression) on `seeds` subsets: mean, 95 % interval over the subsets, each of them."""
    start = time.perf_counter()
    pictures, teach, judging, judge, chosen = parts(pictures, val, name, seed)
    labels = pictures.labels
    assert labels is not None  # `parts` has refused it
    subsets = [few(labels, teach, shots, share, seed, number) for number in range(seeds)]
    print("\n".join(labels.rows(teach).said()))
    print(f"{seeds} subsets of {len(subsets[0]):,} of {len(teach):,} pictures; judged by {len(judge):,}: {chosen}")
    union = sorted(set().union(*subsets))
    train = extract(encoder, pictures, union, batch_size, workers, device, title="pictures to learn from")
    test = extract(encoder, judging, judge, batch_size, workers, device, title="pictures to judge by")
    pooling = train.poolings[0] if pooling == "auto" else pooling
    assert train.ids is not None
    place = {number: row for row, number in enumerate(train.ids.tolist())}
    rows = []
    for subset in subsets:
        own = train.rows(torch.tensor([place[number] for number in subset if number in place]))
        answers = answered(own, test, len(labels.names), pooling, l2, seed)
        rows.append(score(test.kind, answers, test.truth(), seed, test.groups, labels.names))
    fit = {"classifier": "ridge regression"} if train.kind == "numbers" else {"classifier": "logistic regression", "l2": l2}
    row = {"protocol": "lowshot", "kind": test.kind, **together(rows), **fit, "pooling": pooling, "img_size": list(encoder.img_size), "seed": seed}
    row |= {"shots": shots, "share": share, "n_train": len(subsets[0]), "n_val": len(test), "val": chosen, "model": encoder.name, **labels.rows(teach).balance()}
    return row | {"skipped": train.skipped + test.skipped, "seconds": round(time.perf_counter() - start, 2)}


def answered(train: FeatureTable, test: FeatureTable, outputs: int, pooling: str, l2: float, seed: int) -> Tensor:
    """The answers (m, outputs) to the pictures of `test` of what was learnt from `train`."""
    if train.kind == "numbers":
        return ridge(train, (pooling,), seed)(test.of(pooling))
    truth = train.truth()
    targets = F.one_hot(truth, outputs).double() if train.kind == "classes" else truth.double()
    return (on_sphere(test.of(pooling)) @ logistic(on_sphere(train.of(pooling)), targets, l2, train.kind == "classes")).float()


def on_sphere(x: Tensor) -> Tensor:
    """Each row (n, D) without its mean, scaled to length 1, in float64 (cyanure's `preprocess` of rows, which MSN uses)."""
    x = x.double()
    return F.normalize(x - x.mean(dim=1, keepdim=True), dim=1)


def logistic(x: Tensor, targets: Tensor, l2: float, one_of: bool = True, tolerance: float = 1e-7) -> Tensor:
    """The weights (D, K) that minimise mean cross entropy + l2 / (2 n) · |weights|², without a bias: L-BFGS from 0.

    `x` (n, D), `targets` (n, K); `one_of`: one class a picture (softmax), else tags (sigmoid), of which NaN are left out.
    scikit-learn's C is 1 / l2.
    """
    weight = torch.zeros(x.shape[1], targets.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    known = ~targets.isnan()
    targets = torch.where(known, targets, 0.0).to(x)
    optimizer = torch.optim.LBFGS([weight], max_iter=ROUNDS, max_eval=2 * ROUNDS, tolerance_grad=tolerance, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        outputs = x @ weight
        if one_of:
            loss = -(targets * outputs.log_softmax(dim=1)).sum() / len(x)
        else:
            loss = (F.binary_cross_entropy_with_logits(outputs, targets, reduction="none") * known).sum() / len(x)
        loss = loss + l2 / (2 * len(x)) * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach()


def interval(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """The 95 % interval of the mean of what several subsets gave: Student's t, cut to the values that are possible."""
    half = student(0.95, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return max(low, statistics.fmean(values) - half), min(high, statistics.fmean(values) + half)


def together(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of several subsets': `metric`, its mean under that name, its interval over the subsets (of one: over the pictures), each value."""
    metric = rows[0]["metric"]
    values = [row[metric] for row in rows]
    if any(value is None for value in values):
        raise Refused(f"{metric} cannot be computed on these pictures: they have one value only")
    mean = round(statistics.fmean(values), 4)
    said: dict[str, Any] = {"seeds": len(rows), "each": values}
    if len(rows) == 1:
        ends, over, doubt = rows[0]["interval"], rows[0]["interval_over"], rows[0].get("interval_doubt")
    else:
        low, high = RANGE[metric]
        ends, over = [round(end, 2 if metric == METRIC["classes"] else 4) for end in interval(values, low, high)], f"{len(rows)} subsets"
        doubt = f"{len(rows)} subsets are too few to tell how far they spread" if len(rows) < FEW else None
    others = {name: _mean([row[name] for row in rows]) for name in ("top5", "balanced_accuracy", "map", "mae", "mae_of_median") if name in rows[0]}
    same = {name: rows[0][name] for name in ("classes", "chance", "majority") if name in rows[0]}
    said |= {"interval_doubt": doubt} if doubt else {}
    return {"metric": metric, metric: mean, "interval": ends, "interval_over": over, **said, **others, **same}


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None where one of them could not be computed."""
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 4) if len(known) == len(values) else None
