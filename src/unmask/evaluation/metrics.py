"""Numbers that judge: figures of each kind of label with their intervals, and how much of the feature space is in use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unmask import seeds

ROUNDS = 1000  # resamples of an interval: its ends then move by about a twentieth of its width from seed to seed
WORK = 2e9  # numbers that an interval may cost; beyond it takes fewer rounds, at least 200
MEMORY = 2e7  # numbers of resamples kept at once
METRIC = {"classes": "top1", "tags": "auroc", "numbers": "r2"}
RANGE = {"top1": (0.0, 100.0), "auroc": (0.0, 1.0), "r2": (-math.inf, 1.0)}
FEW = 10  # groups below which an interval over groups rests on little
PERCENT = {"top1", "top5", "balanced_accuracy"}  # shares of pictures; auroc, map and r2 are at most 1, mae and rmse in the quantity's unit


def score(kind: str, answers: Tensor, truth: Tensor, seed: int = 0, groups: Tensor | None = None, names: Sequence[str] | None = None) -> dict[str, Any]:
    """What `answers` are worth beside the `truth`: `metric`, the value under that name, its 95 % `interval`, and the kind's other figures.

    classes: votes (m, K), truth (m,) · tags: scores (m, K) that need no scale, truth (m, K) of 0, 1 and NaN (unknown) · numbers:
    (m, T), truth (m, T) with NaN. Shares of pictures are in percent, areas between 0 and 1. top1 and top5 have Wilson's interval,
    everything else the 2.5 and 97.5 percentiles over resampled pictures; with `groups` (m,), whose pictures are alike, groups are
    resampled, for all figures. What cannot be computed (a tag with one value only, a constant quantity) is left out of the means
    and named in `left_out`; a figure of nothing is None, and so is its interval. Of few groups `interval_doubt` says what it is worth.
    """
    answers, truth = answers.detach().float().cpu(), truth.detach().cpu()
    figures, more = {"classes": _classes, "tags": _tags, "numbers": _numbers}[kind](answers, truth, list(names or ()))
    ids = None if groups is None else groups.cpu().unique(return_inverse=True)[1]
    if ids is not None and int(ids.max()) + 1 < 2:
        ids = None  # one group says nothing about others: resampled pictures are all there is
    found, intervals = estimated(figures, resamples(len(truth), ids, seed, each=truth.shape[1] if truth.ndim > 1 else 1))
    if kind == "classes" and ids is None:
        for name, k in (("top1", 1), ("top5", 5)):
            if name in found:
                intervals[name] = [round(end, 2) for end in wilson(right(answers, truth, k), len(truth))]
    metric = METRIC[kind]
    row = {"metric": metric, metric: found.pop(metric), "interval": intervals[metric], **found, **more, "intervals": intervals}
    count = 0 if ids is None else int(ids.max()) + 1
    row |= {"interval_over": f"{count} groups" if count else "pictures"}
    return row | ({"interval_doubt": f"{count} groups are too few to tell how far they spread"} if 0 < count < FEW else {})


def worth(kind: str, answers: Tensor, truth: Tensor) -> float:
    """The kind's metric alone, without an interval; NaN where it cannot be computed."""
    figures, _ = {"classes": _classes, "tags": _tags, "numbers": _numbers}[kind](answers.detach().float().cpu(), truth.detach().cpu(), [])
    return float(figures(torch.ones(1, len(truth)))[METRIC[kind]][0])


def shown(row: dict[str, Any]) -> str:
    """The metric of a row of figures with its interval, in words."""
    metric, value, interval = row["metric"], row[row["metric"]], row["interval"]
    if value is None or interval is None:
        return f"{metric} cannot be computed on these pictures"
    name, form, unit = {"top1": ("", "{:.1f}", " %"), "auroc": ("AUROC ", "{:.3f}", ""), "r2": ("R² ", "{:.3f}", ""), "mean_recall": ("mean recall ", "{:.1f}", " %")}[metric]
    doubt = f"; trust it little: {row['interval_doubt']}" if row.get("interval_doubt") else ""
    return f"{name}{form.format(value)}{unit} (95 % interval {form.format(interval[0])} to {form.format(interval[1])}{doubt})"


Figures = Callable[[Tensor], dict[str, Tensor]]  # weights (b, m) of the pictures -> figures (b,)


def estimated(figures: Figures, rounds: Iterator[Tensor]) -> tuple[dict[str, Any], dict[str, list[float] | None]]:
    """Every figure of the pictures as they are, and its 95 % interval over resamples; the first round draws every picture once."""
    plain = {name: float(value[0]) for name, value in figures(next(rounds)).items()}
    drawn: dict[str, list[Tensor]] = {name: [] for name in plain}
    for weights in rounds:
        for name, value in figures(weights).items():
            drawn[name].append(value)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    intervals: dict[str, list[float] | None] = {}
    for name, parts in drawn.items():
        values = torch.cat(parts).double()
        values = values[~values.isnan()]
        intervals[name] = [round(end, 4 if name not in PERCENT else 2) for end in values.quantile(ends).tolist()] if len(values) else None
    return {name: None if math.isnan(value) else round(value, 4) for name, value in plain.items()}, intervals


def resamples(m: int, groups: Tensor | None = None, seed: int = 0, rounds: int = ROUNDS, each: int = 1) -> Iterator[Tensor]:
    """Weights (b, m): first ones, then how often each of m pictures, or each group with all its pictures (`groups` 0, 1, …), is drawn.

    The bootstrap, Efron, Ann. Statist. 7 (1979). `each`: numbers that one picture costs in a round.
    """
    yield torch.ones(1, m)
    units = m if groups is None else int(groups.max()) + 1
    generator = torch.Generator().manual_seed(seeds.key(seed, "bootstrap"))
    rounds = max(200, min(rounds, int(WORK / max(1, m * each))))
    step = max(1, int(MEMORY / max(1, m)))
    for start in range(0, rounds, step):
        count = min(step, rounds - start)
        drawn = torch.randint(units, (count, units), generator=generator)
        weights = torch.zeros(count, units).scatter_add_(1, drawn, torch.ones(count, units))
        yield weights if groups is None else weights[:, groups]


def _classes(votes: Tensor, truth: Tensor, names: list[str]) -> tuple[Figures, dict[str, Any]]:
    classes, counts = votes.shape[1], truth.bincount(minlength=votes.shape[1])
    hits = {"top1": _hits(votes, truth, 1)} | ({"top5": _hits(votes, truth, 5)} if classes > 5 else {})

    def figures(weights: Tensor) -> dict[str, Tensor]:
        total = weights.sum(dim=1)
        found = {name: 100 * (weights @ hit) / total for name, hit in hits.items()}
        empty = weights.new_zeros(len(weights), classes)
        seen, good = (empty.index_add(1, truth, w) for w in (weights, weights * hits["top1"]))  # (b, K)
        return found | {"balanced_accuracy": 100 * (good / seen).nanmean(dim=1)}  # of the classes that are there

    return figures, {"classes": classes, "chance": round(100 / classes, 4), "majority": round(100 * int(counts.max()) / len(truth), 4)}


def _hits(votes: Tensor, truth: Tensor, k: int) -> Tensor:
    """(m,) 1.0 where the right class is among the k largest votes."""
    best = votes.topk(min(k, votes.shape[1]), dim=1).indices  # (m, k)
    return (best == truth[:, None]).any(dim=1).float()


def right(votes: Tensor, labels: Tensor, k: int = 1) -> int:
    """How many rows of `votes (m, classes)` have the right class among their k largest; a label of -1 is never right."""
    return int(_hits(votes, labels, k).sum())


def _tags(scores: Tensor, truth: Tensor, names: list[str]) -> tuple[Figures, dict[str, Any]]:
    names = names or [str(number) for number in range(scores.shape[1])]
    rows = [(~column.isnan()).nonzero().flatten() for column in truth.T]
    counts = [int(truth[known, k].sum()) for k, known in enumerate(rows)]
    judged = [k for k, known in enumerate(rows) if 0 < counts[k] < len(known)]
    curves = [Curve(scores[rows[k], k], truth[rows[k], k]) for k in judged]

    def figures(weights: Tensor) -> dict[str, Tensor]:
        if not curves:
            return {name: weights.new_full((len(weights),), math.nan) for name in ("auroc", "map")}
        both = torch.stack([torch.stack(curve(weights[:, rows[k]])) for k, curve in zip(judged, curves)])  # (K, 2, b)
        return {"auroc": both[:, 0].nanmean(dim=0), "map": both[:, 1].nanmean(dim=0)}

    each = {}
    for k, curve in zip(judged, curves):
        area, precision = (float(value) for value in curve(torch.ones(1, len(rows[k]))))
        each[names[k]] = {"auroc": round(area, 4), "ap": round(precision, 4), "pictures": counts[k]}
    prevalence = [counts[k] / len(rows[k]) for k in judged]
    more = {"tags": len(names), "chance": 0.5, "map_chance": round(sum(prevalence) / len(prevalence), 4) if prevalence else None, "per_tag": each}
    return figures, more | {"left_out": [name for k, name in enumerate(names) if k not in judged]}


class Curve:
    """Scores (m,) beside 0 and 1 (m,), sorted once: areas under both curves for any weights of the pictures. Equal scores are one step."""

    def __init__(self, scores: Tensor, truth: Tensor):
        self.order = scores.argsort(descending=True)
        ranked = scores[self.order]
        self.truth = truth[self.order].float()
        self.ends = torch.cat([(ranked[1:] != ranked[:-1]).nonzero().flatten(), torch.tensor([len(ranked) - 1])])  # (steps,)

    def __call__(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(area under the receiver operating characteristic, average precision), each (b,), in 0..1; NaN where one value is not drawn.

        The first counts pairs in the right order, equal scores half; the second is the sum of precision times the step in recall,
        without interpolation (scikit-learn's `average_precision_score`).
        """
        weights = weights[:, self.order].double()
        hits, misses = ((weights * part).cumsum(dim=1)[:, self.ends] for part in (self.truth, 1 - self.truth))  # (b, steps)
        step, before = hits.diff(dim=1, prepend=hits.new_zeros(len(hits), 1)), misses - misses.diff(dim=1, prepend=misses.new_zeros(len(misses), 1)) / 2
        positive, negative = hits[:, -1], misses[:, -1]
        area = 1 - (step * before).sum(dim=1) / (positive * negative)
        precision = (step * hits / (hits + misses).clamp_min(1e-12)).sum(dim=1) / positive
        none = (positive == 0) | (negative == 0)
        return area.masked_fill(none, math.nan), precision.masked_fill(none, math.nan)


def _numbers(answers: Tensor, truth: Tensor, names: list[str]) -> tuple[Figures, dict[str, Any]]:
    names = names or [str(number) for number in range(truth.shape[1])]
    rows = [(~column.isnan()).nonzero().flatten() for column in truth.T]
    columns = [(answers[known, t].double(), truth[known, t].double()) for t, known in enumerate(rows)]

    def each(weights: Tensor, t: int) -> Tensor:
        """(3, b): mean absolute error, root mean square error, R² of one quantity (NaN where it does not vary)."""
        said, true = columns[t]
        w, centred = weights[:, rows[t]].double(), true - true.mean()
        total = w.sum(dim=1).masked_fill(w.sum(dim=1) == 0, math.nan)
        error = said - true
        square = w @ error.square() / total
        spread = w @ centred.square() / total - (w @ centred / total).square()  # (b,) the variance
        flat = spread <= 1e-12 * centred.square().mean()
        return torch.stack([w @ error.abs() / total, square.sqrt(), (1 - square / spread).masked_fill(flat, math.nan)])

    def figures(weights: Tensor) -> dict[str, Tensor]:
        mae, rmse, r2 = torch.stack([each(weights, t) for t in range(len(names))]).nanmean(dim=0)
        return {"r2": r2, "mae": mae, "rmse": rmse}

    told = {name: [None if math.isnan(value) else round(value, 4) for value in each(torch.ones(1, len(truth)), t)[:, 0].tolist()] for t, name in enumerate(names)}
    shown = {name: dict(zip(("mae", "rmse", "r2"), values)) for name, values in told.items()}
    guess = [float((true - true.median()).abs().mean()) for _, true in columns if len(true)]
    more: dict[str, Any] = {"numbers": len(names), "chance": 0.0, "mae_of_median": round(sum(guess) / len(guess), 4) if guess else None}  # the best constant answer's
    more |= {"per_number": shown} if len(names) > 1 else {}
    return figures, more | {"left_out": [name for name, (_, _, r2) in told.items() if r2 is None]}


def wilson(successes: float, trials: float, z: float = 1.96) -> tuple[float, float]:
    """The interval, in percent, in which the true share lies with 95 % confidence, judged by the number of trials alone.

    Wilson, J. Am. Stat. Assoc. 22 (1927): unlike the normal interval it stays inside 0..100 and is true for few trials.
    It says nothing about another seed of the pre-training: that spread has to be measured by running again.
    """
    if trials == 0:
        return 0.0, 100.0
    share, square = successes / trials, z * z
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)


def rank_me(features: Tensor, eps: float = 1e-7) -> float:
    """The effective number of directions that `features (n, D)` use, between 1 (collapsed) and min(n, D).

    Exponential of the entropy of the normalised singular values: RankMe (Garrido et al., ICML 2023), equation 3.
    """
    values = torch.linalg.svdvals(features.float())  # (min(n, D),)
    share = values / values.sum().clamp_min(eps) + eps
    return float((-(share * share.log()).sum()).exp())


def feature_std(features: Tensor) -> float:
    """The spread of the l2-normalised `features (n, D)` over the samples: about 1 for spread-out features, 0 for a collapse.

    Mean over the dimensions of their standard deviation, times sqrt(D): SimSiam (Chen and He, CVPR 2021), section 4.1.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    return float(unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1]))
