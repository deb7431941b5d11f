"""Two encoders judged on the same pictures: how far apart are they, and how sure is that?

Most pictures are easy or hard for both, so the difference is known better than either figure: what counts are the pictures on
which they disagree. Each picture's influence on a figure (the infinitesimal jackknife; for AUROC: DeLong et al., Biometrics
44, 1988) gives the variance of any difference without drawing samples; pictures of one group (a patient, a scene) enter
as one, as a bootstrap over groups would have them (the cluster-robust variance, Liang and Zeger, Biometrika 73, 1986).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Judged:
    """One figure, and how much each of the n judging pictures pulls it up or down.

    `pulls (n,)` sum to 0; their squares sum to the figure's variance. `right (n,)`: for classes, which answers are right.
    """

    value: float
    pulls: np.ndarray
    right: np.ndarray | None = None


@dataclass(frozen=True)
class Difference:
    """First minus second: `value` ± `half` at `level`; for classes also on how many pictures only one of them is right."""

    value: float
    half: float
    level: float
    only_first: int | None = None
    only_second: int | None = None
    p: float | None = None  # McNemar's, of two sides; None where pictures come in groups

    @property
    def better(self) -> int:
        """1: the first is better; -1: the second is; 0: they cannot be told apart."""
        return 0 if abs(self.value) <= self.half else 1 if self.value > 0 else -1


def share_right(answers: np.ndarray, truth: np.ndarray) -> Judged:
    """Right answers in percent, of votes or logits (n, classes) and class numbers (n,)."""
    right = answers.argmax(axis=1) == truth  # (n,)
    return Judged(100 * float(right.mean()), 100 * (right - right.mean()) / len(right), right)


def mean_auroc(scores: np.ndarray, truth: np.ndarray) -> Judged:
    """The area under the ROC curve, averaged over the tags that some pictures have and others lack; (n, K) of 0, 1, NaN: unknown.

    A picture's pull on a tag's area: the share of the other side that it is ordered rightly against, less the area.
    """
    found: list[tuple[float, np.ndarray]] = []
    for score, tag in zip(scores.T, truth.T):
        have, lack = np.flatnonzero(tag == 1), np.flatnonzero(tag == 0)
        if not len(have) or not len(lack):
            continue
        above: np.ndarray = _placed(score[have], score[lack])
        below: np.ndarray = 1 - _placed(score[lack], score[have])
        area, pulls = float(above.mean()), np.zeros(len(score))
        pulls[have], pulls[lack] = (above - area) / len(have), (below - area) / len(lack)
        found.append((area, pulls))
    if not found:
        return Judged(math.nan, np.zeros(len(scores)))
    return Judged(float(np.mean([area for area, _ in found])), np.mean([pulls for _, pulls in found], axis=0))


def _placed(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each value the share of `others` below it, equal ones counted half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))


def explained(answers: np.ndarray, truth: np.ndarray) -> Judged:
    """R², averaged over the numbers that vary; answers and truth (n, T), NaN: unknown."""
    found: list[tuple[float, np.ndarray]] = []
    for answer, true in zip(answers.astype(np.float64).T, truth.astype(np.float64).T):
        known = np.isfinite(true)
        spread = (true[known] - true[known].mean()) ** 2 if known.any() else np.zeros(1)
        if not spread.sum() > 0:
            continue
        missed = (true[known] - answer[known]) ** 2
        unexplained, pulls = float(missed.sum() / spread.sum()), np.zeros(len(true))
        pulls[known] = (unexplained * spread - missed) / spread.sum()
        found.append((1 - unexplained, pulls))
    if not found:
        return Judged(math.nan, np.zeros(len(answers)))
    return Judged(float(np.mean([value for value, _ in found])), np.mean([pulls for _, pulls in found], axis=0))


def difference(first: Judged, second: Judged, groups: np.ndarray | None = None, level: float = LEVEL) -> Difference:
    """First minus second on the same pictures, with the half width of its interval.

    Classes without groups: Bonett and Price (Statistics in Medicine 31, 2012), a picture added to each kind of disagreement, so
    that it is true for few pictures too. Else the variance of the pulls by group, and Student's t with groups - 1 degrees.
    """
    value, pulls = first.value - second.value, first.pulls - second.pulls
    if first.right is None or second.right is None:
        return Difference(value, spread(pulls, groups, level), level)
    only_first, only_second = int((first.right & ~second.right).sum()), int((second.right & ~first.right).sum())
    half = bonett_price(only_first, only_second, len(pulls), level)
    if groups is not None:
        return Difference(value, max(half, spread(pulls, groups, level)), level, only_first, only_second)
    return Difference(value, half, level, only_first, only_second, mcnemar(only_first, only_second))


def spread(pulls: np.ndarray, groups: np.ndarray | None = None, level: float = LEVEL) -> float:
    """Half the width of the interval of a figure or difference whose pictures pull like this; infinite where there is one group only."""
    if groups is not None:
        pulls = np.bincount(np.unique(groups, return_inverse=True)[1], weights=pulls)  # (groups,)
    count = len(pulls)
    if count < 2:
        return math.inf
    return student(level, count - 1) * math.sqrt(count / (count - 1) * float((pulls**2).sum()))


def bonett_price(only_first: int, only_second: int, count: int, level: float = LEVEL) -> float:
    """Half the width, in percent, of an interval around the plain difference that covers Bonett and Price's."""
    one, two = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((one + two - (one - two) ** 2) / (count + 2))
    return 100 * (half + abs((only_first - only_second) / count - (one - two)))


def mcnemar(only_first: int, only_second: int) -> float:
    """How often chance alone would make two equal encoders disagree as unevenly: McNemar's test, mid-p (Fagerland et al., 2013)."""
    count, few = only_first + only_second, min(only_first, only_second)
    terms = [math.exp(math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) - count * math.log(2)) for i in range(few + 1)]
    return 1.0 if only_first == only_second else min(1.0, 2 * sum(terms) - terms[-1])


def student(level: float, freedom: int) -> float:
    """How many standard errors an interval reaches to each side: Student's t, by its own integral, for `freedom` degrees."""
    if freedom > 1000:
        return NormalDist().inv_cdf((1 + level) / 2)
    angle = np.linspace(0, math.pi / 2, 100_001)  # t = sqrt(freedom) tan(angle) has the density cos(angle)^(freedom - 1)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, below / below[-1], angle)))
