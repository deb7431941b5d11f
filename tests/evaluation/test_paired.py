"""Paired differences against independent computations, and their intervals against simulation."""

import itertools
import math

import numpy as np
import pytest

from unmask.evaluation.paired import (
    Judged,
    bonett_price,
    difference,
    explained,
    mcnemar,
    mean_auroc,
    share_right,
    spread,
    student,
)


def votes(right, truth, classes=4):
    """Answers that are right where they should be."""
    found = np.zeros((len(truth), classes))
    found[np.arange(len(truth)), np.where(right, truth, (truth + 1) % classes)] = 1
    return found


def bootstrap(figure, one, two, groups, draws=2000):
    """The standard error of a difference by the plain way: draw pictures, or whole groups, again and again."""
    rng, names = np.random.default_rng(0), np.unique(groups)
    rows = {name: np.flatnonzero(groups == name) for name in names}
    found = []
    for _ in range(draws):
        drawn = np.concatenate([rows[name] for name in rng.choice(names, len(names))])
        found.append(figure(one[drawn], drawn) - figure(two[drawn], drawn))
    return float(np.std(found))


@pytest.mark.parametrize(("level", "freedom"), [(0.95, 1), (0.95, 2), (0.99, 3), (0.95, 19), (0.9999, 30), (0.95, 500), (0.95, 5000)])
def test_students_t_against_scipy(level, freedom):
    stats = pytest.importorskip("scipy.stats")
    assert student(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-3)


@pytest.mark.parametrize(("b", "c"), [(10, 3), (0, 5), (1, 0), (40, 61), (7, 7), (3000, 2800)])
def test_mcnemar_against_scipy(b, c):
    stats = pytest.importorskip("scipy.stats")
    exact = stats.binomtest(b, b + c).pvalue
    p = mcnemar(b, c)
    assert p == mcnemar(c, b) <= exact + 1e-9
    assert p == pytest.approx(exact - stats.binom.pmf(min(b, c), b + c, 0.5), abs=1e-9) or b == c


def test_mcnemar_by_counting_every_outcome():
    """Nine disagreements: all 512 ways to deal them out, those as uneven as (2, 7) counted half and those more uneven whole."""
    uneven = [abs(2 * sum(way) - 9) for way in itertools.product((0, 1), repeat=9)]
    assert mcnemar(2, 7) == pytest.approx(sum(1.0 if gap > 5 else 0.5 if gap == 5 else 0.0 for gap in uneven) / 512)


def test_classes_by_counting():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 300)
    one, two = rng.random(300) < 0.8, rng.random(300) < 0.7
    found = difference(share_right(votes(one, truth), truth), share_right(votes(two, truth), truth))
    assert (found.only_first, found.only_second) == (int((one & ~two).sum()), int((two & ~one).sum()))
    assert found.value == pytest.approx(100 * (one.mean() - two.mean()))
    plain = 100 * 1.96 * math.sqrt(((one.astype(int) - two) ** 2).mean() - (one.mean() - two.mean()) ** 2) / math.sqrt(300)
    assert plain < found.half < 1.08 * plain  # the textbook's interval, a little wider
    assert found.better == (1 if found.value > found.half else 0)


def test_auroc_and_its_pulls_against_delong_and_scikit_learn():
    """The area is scikit-learn's; the variance of a difference is DeLong's, written out pair by pair."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    truth = (rng.random((120, 1)) < 0.3).astype(np.float32)
    scores = [(truth + rng.normal(0, width, truth.shape)).round(1) for width in (0.8, 1.5)]  # rounded: ties
    judged = [mean_auroc(score, truth) for score in scores]
    have, lack = truth[:, 0] == 1, truth[:, 0] == 0
    kernels = [(s[have] > s[lack].T) + 0.5 * (s[have] == s[lack].T) for s in scores]  # (P, N)
    for figure, score in zip(judged, scores):
        assert figure.value == pytest.approx(metrics.roc_auc_score(truth, score)) and figure.pulls.sum() == pytest.approx(0, abs=1e-12)
    gap = kernels[0] - kernels[1]
    delong = gap.mean(1).var(ddof=1) / have.sum() + gap.mean(0).var(ddof=1) / lack.sum()
    ours = ((judged[0].pulls - judged[1].pulls) ** 2).sum()
    assert ours == pytest.approx(delong, rel=0.04)  # theirs divides by count - 1


def test_several_tags_and_unknown_ones():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    truth = (rng.random((200, 4)) < [0.5, 0.1, 0.0, 0.3]).astype(np.float32)  # nobody has the third
    truth[rng.random((200, 4)) < 0.2] = np.nan
    scores = rng.normal(size=(200, 4)) + np.nan_to_num(truth)
    known = ~np.isnan(truth)
    wanted = np.mean([metrics.roc_auc_score(truth[known[:, k], k], scores[known[:, k], k]) for k in (0, 1, 3)])
    assert mean_auroc(scores, truth).value == pytest.approx(wanted)
    assert math.isnan(mean_auroc(scores, np.zeros((200, 4))).value)


def test_r2_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    truth = rng.normal(size=(80, 2)).astype(np.float32)
    answers = truth + rng.normal(0, 0.5, truth.shape)
    assert explained(answers, truth).value == pytest.approx(metrics.r2_score(truth, answers), abs=1e-6)
    truth[3, 0] = np.nan
    rows = ~np.isnan(truth[:, 0])
    wanted = (metrics.r2_score(truth[rows, 0], answers[rows, 0]) + metrics.r2_score(truth[:, 1], answers[:, 1])) / 2
    found = explained(answers, truth)
    assert found.value == pytest.approx(wanted, abs=1e-6) and found.pulls.sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["classes", "tags", "numbers"])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_spread_is_the_bootstraps(kind, grouped):
    rng, n = np.random.default_rng(5), 400
    groups = np.repeat(np.arange(40), 10) if grouped else np.arange(n)
    shared = rng.normal(size=(40, 1))[np.arange(n) // 10]  # what pictures of a group have in common
    common = np.repeat(rng.random((40, 1)), 10, axis=0) if grouped else rng.random((n, 1))  # as a patient's diagnosis is that of all his pictures
    noise = [rng.normal(size=(n, 1)) + shared, 1.5 * rng.normal(size=(n, 1)) - shared]
    if kind == "classes":
        truth = rng.integers(0, 4, n)
        answers = [votes(noise[0][:, 0] < 0.7, truth), votes(noise[1][:, 0] < 0.2, truth)]
        judge, figure = share_right, lambda rows, drawn: 100 * float((rows.argmax(1) == truth[drawn]).mean())
    elif kind == "tags":
        truth = (common < 0.4).astype(np.float32)
        answers, judge = [truth + each for each in noise], mean_auroc
        figure = lambda rows, drawn: mean_auroc(rows, truth[drawn]).value  # noqa: E731
    else:
        truth = 3 * common
        answers, judge = [truth + 0.5 * each for each in noise], explained
        figure = lambda rows, drawn: explained(rows, truth[drawn]).value  # noqa: E731
    one, two = (judge(answer, truth) for answer in answers)
    wanted = bootstrap(figure, *answers, groups, draws=800)
    count = len(np.unique(groups))
    ours = difference(one, two, groups if grouped else None).half / student(0.95, count - 1)
    assert ours == pytest.approx(wanted, rel=0.1)
    if grouped:
        assert ours > 1.1 * difference(one, two).half / 1.96, "groups did not widen the interval"


@pytest.mark.parametrize("n", [30, 100, 500])
@pytest.mark.parametrize(("p", "q"), [(0.05, 0.05), (0.3, 0.1), (0.1, 0.02)])
def test_the_interval_covers_the_truth(n, p, q):
    """Of 2,000 comparisons with a known difference at least 94 % of the intervals hold it."""
    drawn = np.random.default_rng(n).multinomial(n, [p, q, 1 - p - q], size=2000)
    held = [abs(100 * (b - c) / n - 100 * (p - q)) <= bonett_price(b, c, n) for b, c, _ in drawn.tolist()]
    assert np.mean(held) >= 0.94


@pytest.mark.parametrize("groups", [8, 40])
def test_the_interval_covers_the_truth_with_groups(groups):
    """Pictures of a group fail together; an interval that ignored it would hold the truth far too seldom."""
    rng, each, held, naive = np.random.default_rng(groups), 20, [], []
    of = np.repeat(np.arange(groups), each)
    for _ in range(600):
        chance = np.clip(rng.normal(0.5, 0.25, (groups, 2)), 0, 1)[of]  # symmetric: the true difference is 0
        one, two = (rng.random((groups * each, 2)) < chance).T
        figures = [Judged(100 * r.mean(), 100 * (r - r.mean()) / len(r), r) for r in (one, two)]
        held.append(not difference(*figures, of).better)
        naive.append(not difference(*figures).better)
    assert np.mean(held) >= 0.93 and np.mean(naive) < 0.85


@pytest.mark.parametrize("kind", ["tags", "numbers"])
def test_the_interval_covers_the_truth_for_tags_and_numbers(kind):
    rng, held = np.random.default_rng(6), []
    for _ in range(600):
        truth = (rng.random((100, 1)) < 0.4).astype(float) if kind == "tags" else rng.normal(size=(100, 1))
        common = rng.normal(size=truth.shape)
        figures = [(mean_auroc if kind == "tags" else explained)(truth + 0.5 * common + 0.5 * rng.normal(size=truth.shape), truth) for _ in range(2)]
        held.append(not difference(*figures).better)
    assert 0.93 <= np.mean(held) <= 0.975


def test_what_cannot_be_known():
    truth = np.arange(20) % 4
    same = share_right(votes(truth < 3, truth), truth)
    assert difference(same, same).better == 0 and difference(same, same).p == 1.0
    other = share_right(votes(truth < 1, truth), truth)
    assert difference(same, other, np.zeros(20)).half == math.inf and difference(same, other, np.zeros(20)).better == 0
    assert spread(np.array([0.0]), None) == math.inf
    assert bonett_price(0, 0, 20) > 5, "twenty pictures without a disagreement do not prove that two encoders are equal"
