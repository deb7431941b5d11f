"""The figures are those of the libraries that everybody trusts."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
import torchmetrics.functional as official
from sklearn import metrics as sklearn

from unmask.evaluation.metrics import METRIC, feature_std, rank_me, resamples, right, score, shown, wilson, worth

nan = math.nan


def test_right_answers_equal_scikit_learn():
    torch.manual_seed(0)
    votes, labels = torch.randn(300, 12), torch.randint(12, (300,))
    for k in (1, 5):
        wanted = sklearn.top_k_accuracy_score(labels.numpy(), votes.numpy(), k=k, labels=range(12))
        assert right(votes, labels, k) / 300 == pytest.approx(float(wanted))
    assert right(votes[:, :3], labels.clamp_max(2), 5) == 300
    assert right(votes, torch.full((300,), -1)) == 0


def test_wilson_interval():
    assert wilson(0, 0) == (0.0, 100.0)
    assert wilson(81, 263) == pytest.approx((25.53, 36.62), abs=0.02)  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    low, high = wilson(20, 20)
    assert 80 < low < 90 and high == 100.0
    torch.manual_seed(0)
    draws = torch.distributions.Binomial(40, torch.tensor(0.9)).sample((2000,)).int().tolist()
    held = sum(low <= 90 <= high for low, high in (wilson(n, 40) for n in draws)) / 2000
    assert 0.92 < held < 0.98


def test_rank_and_spread_tell_a_collapse():
    torch.manual_seed(0)
    spread = torch.randn(2000, 32)
    assert rank_me(spread) == pytest.approx(32, abs=0.3) and feature_std(spread) == pytest.approx(1, abs=0.05)
    line = torch.randn(2000, 1) * torch.randn(1, 32)
    assert rank_me(line) == pytest.approx(1, abs=0.01)
    assert feature_std(torch.ones(100, 8)) == pytest.approx(0, abs=1e-6)
    assert rank_me(torch.cat([torch.eye(4)] * 3)) == pytest.approx(4, abs=1e-3)


def drawn(kind: str, seed: int = 0, m: int = 200):
    """Answers of middling worth and the truth."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "classes":
        truth = torch.multinomial(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02]), m, replacement=True, generator=generator)
        return torch.randn(m, 7, generator=generator) + 1.5 * torch.nn.functional.one_hot(truth, 7), truth
    if kind == "tags":
        truth = (torch.rand(m, 4, generator=generator) < torch.tensor([0.5, 0.2, 0.05, 0.02])).float()
        scores = torch.randn(m, 4, generator=generator) + truth * torch.tensor([2.0, 1.0, 0.5, -0.5])
        return (scores * 3).round() / 3, truth  # with ties
    truth = torch.randn(m, 2, generator=generator) * torch.tensor([1.0, 30.0]) + torch.tensor([100.0, -5.0])
    return truth + torch.randn(m, 2, generator=generator) * torch.tensor([0.5, 40.0]), truth


@pytest.mark.parametrize("seed", range(4))
def test_classes_equal_scikit_learn_and_torchmetrics(seed):
    votes, truth = drawn("classes", seed)
    row = score("classes", votes, truth)
    assert row["metric"] == "top1" and row["top1"] == pytest.approx(100 * sklearn.accuracy_score(truth, votes.argmax(1)), abs=1e-4)
    assert row["balanced_accuracy"] == pytest.approx(100 * sklearn.balanced_accuracy_score(truth, votes.argmax(1)), abs=1e-3)
    there = truth.unique()
    recalls = official.classification.multiclass_recall(votes, truth, num_classes=7, average="none")[there]
    assert row["balanced_accuracy"] == pytest.approx(100 * float(recalls.mean()), abs=1e-3)
    assert row["top5"] == pytest.approx(100 * float(official.classification.multiclass_accuracy(votes, truth, num_classes=7, top_k=5, average="micro")), abs=1e-3)
    assert row["majority"] == pytest.approx(100 * float(truth.bincount().max()) / 200) and row["chance"] == pytest.approx(100 / 7, abs=1e-3)
    assert row["interval"] == [round(end, 2) for end in wilson(right(votes, truth), 200)]


@pytest.mark.parametrize("seed", range(4))
def test_tags_equal_scikit_learn_and_torchmetrics(seed):
    scores, truth = drawn("tags", seed)
    row = score("tags", scores, truth, names=list("abcd"))
    judged = [k for k in range(4) if 0 < truth[:, k].sum() < 200]
    assert row["auroc"] == pytest.approx(sklearn.roc_auc_score(truth[:, judged], scores[:, judged]), abs=1e-4)
    assert row["map"] == pytest.approx(sklearn.average_precision_score(truth[:, judged], scores[:, judged]), abs=1e-4)
    for k in judged:
        tag = row["per_tag"]["abcd"[k]]
        assert tag["auroc"] == pytest.approx(float(official.classification.binary_auroc(scores[:, k], truth[:, k].long())), abs=1e-4)
        assert tag["ap"] == pytest.approx(float(official.classification.binary_average_precision(scores[:, k], truth[:, k].long())), abs=1e-4)
        assert tag["pictures"] == truth[:, k].sum()
    assert row["interval"][0] < row["auroc"] < row["interval"][1] and row["left_out"] == ["abcd"[k] for k in range(4) if k not in judged]


@pytest.mark.parametrize("seed", range(4))
def test_numbers_equal_scikit_learn_and_torchmetrics(seed):
    answers, truth = drawn("numbers", seed)
    row = score("numbers", answers, truth, names=["a", "b"])
    assert row["r2"] == pytest.approx(sklearn.r2_score(truth, answers), abs=1e-4)
    assert row["r2"] == pytest.approx(float(official.r2_score(answers, truth)), abs=1e-3)
    assert row["mae"] == pytest.approx(sklearn.mean_absolute_error(truth, answers), abs=1e-3)
    assert row["rmse"] == pytest.approx(float(np.mean(sklearn.root_mean_squared_error(truth, answers, multioutput="raw_values"))), abs=1e-3)
    assert row["per_number"]["b"]["r2"] == pytest.approx(sklearn.r2_score(truth[:, 1], answers[:, 1]), abs=1e-4)
    assert row["per_number"]["a"]["mae"] == pytest.approx(float(official.mean_absolute_error(answers[:, 0].contiguous(), truth[:, 0].contiguous())), abs=1e-3)


def test_what_is_unknown_or_of_one_value_is_left_out():
    scores, truth = drawn("tags")
    truth[:, 3], truth[:50, 0] = 0, nan
    row = score("tags", scores, truth, names=list("abcd"))
    known = truth[50:, 0]
    assert row["left_out"] == ["d"] and row["per_tag"]["a"]["auroc"] == pytest.approx(sklearn.roc_auc_score(known, scores[50:, 0]), abs=1e-4)
    assert row["auroc"] == pytest.approx(np.mean([tag["auroc"] for tag in row["per_tag"].values()]), abs=1e-4) and len(row["per_tag"]) == 3
    answers, truth = drawn("numbers")
    truth[:, 1], truth[:50, 0] = 7, nan
    row = score("numbers", answers, truth, names=["a", "b"])
    assert row["left_out"] == ["b"] and row["r2"] == pytest.approx(sklearn.r2_score(truth[50:, 0], answers[50:, 0]), abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "answers", "truth"),
    [("tags", torch.zeros(3, 1), torch.ones(3, 1)), ("numbers", torch.zeros(3, 1), torch.ones(3, 1)), ("numbers", torch.zeros(1, 1), torch.ones(1, 1))],
)
def test_a_figure_of_nothing_is_none(kind, answers, truth):
    row = score(kind, answers, truth)
    assert row[METRIC[kind]] is None and row["interval"] is None and "cannot be computed" in shown(row) and math.isnan(worth(kind, answers, truth))


def test_perfect_and_reversed_and_equal_scores():
    truth = torch.tensor([[0.0], [1], [1], [0]])
    assert [score("tags", sign * truth, truth)["auroc"] for sign in (1, -1, 0)] == [1.0, 0.0, 0.5]
    assert [score("tags", sign * truth, truth)["map"] for sign in (1, 0)] == [1.0, 0.5]
    assert score("numbers", truth, truth)["r2"] == 1.0 and score("numbers", truth * 0 + 0.5, truth)["r2"] == 0.0
    assert score("classes", torch.eye(3), torch.tensor([0, 1, 2]))["top1"] == 100.0


@pytest.mark.parametrize("kind", ["classes", "tags", "numbers"])
def test_a_resample_is_the_figure_of_the_pictures_drawn(kind):
    """Weights are as good as repeating pictures: what the interval is made of equals scikit-learn on the repeated rows."""
    answers, truth = drawn(kind, m=60)
    _, weights = next(resamples(60)), list(resamples(60, seed=3, rounds=200))[1][:5]
    from unmask.evaluation import metrics

    figures, _ = getattr(metrics, f"_{kind}")(answers, truth, [])
    found = figures(weights)
    for row, weight in enumerate(weights):
        assert weight.sum() == 60
        ids = torch.arange(60).repeat_interleave(weight.long())
        said, true = answers[ids].numpy(), truth[ids].numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "classes":
                wanted = {"balanced_accuracy": 100 * sklearn.balanced_accuracy_score(true, said.argmax(1))}
            elif kind == "tags":
                judged = [k for k in range(4) if 0 < true[:, k].sum() < 60]
                wanted = {"auroc": sklearn.roc_auc_score(true[:, judged], said[:, judged]), "map": sklearn.average_precision_score(true[:, judged], said[:, judged])}
            else:
                wanted = {"r2": sklearn.r2_score(true, said), "mae": sklearn.mean_absolute_error(true, said)}
        for name, value in wanted.items():
            assert float(found[name][row]) == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize(("kind", "names"), [("tags", ["auroc", "map"]), ("numbers", ["r2", "mae"]), ("classes", ["balanced_accuracy", "top1"])])
def test_intervals_hold_the_truth_about_as_often_as_they_say(kind, names):
    """The figure on 9,000 pictures lies in the interval of 150 of them about 95 times in 100; not that of tags that three of them have."""
    answers, truth = drawn(kind, seed=99, m=9000)
    if kind == "tags":
        answers, truth = answers[:, :2], truth[:, :2]
    wanted, inside = score(kind, answers, truth), dict.fromkeys(names, 0)
    for i in range(60):
        rows = slice(i * 150, i * 150 + 150)
        found = score(kind, answers[rows], truth[rows], seed=i)["intervals"]
        for name in names:
            inside[name] += found[name][0] <= wanted[name] <= found[name][1]
    assert min(inside.values()) >= 48, inside


def test_groups_widen_the_interval_where_their_pictures_are_alike():
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(20).repeat_interleave(30)
    hard = torch.rand(20, generator=generator)[groups]  # a group is easy or hard as a whole
    truth = torch.randint(2, (600,), generator=generator)
    votes = torch.nn.functional.one_hot(torch.where(torch.rand(600, generator=generator) < hard, truth, 1 - truth), 2)
    plain, grouped = (score("classes", votes, truth, groups=ids) for ids in (None, groups * 7 - 3))
    width = [row["interval"][1] - row["interval"][0] for row in (plain, grouped)]
    assert width[1] > 2 * width[0] and plain["top1"] == grouped["top1"]
    assert (plain["interval_over"], grouped["interval_over"]) == ("pictures", "20 groups")
    assert score("classes", votes, truth, groups=torch.zeros(600))["interval_over"] == "pictures", "of one group no other can be drawn"


def test_few_groups_are_said():
    votes, truth = torch.eye(2)[torch.arange(60) % 2], torch.arange(60) // 30
    row = score("classes", votes, truth, groups=torch.arange(60) // 30)
    assert row["interval_doubt"].startswith("2 groups are too few") and "trust it little" in shown(row)
    assert "interval_doubt" not in score("classes", votes, truth, groups=torch.arange(60) // 6)


def test_the_interval_is_of_the_seed():
    answers, truth = drawn("tags")
    one, same, other = (score("tags", answers, truth, seed=seed)["interval"] for seed in (1, 1, 2))
    assert one == same != other
