"""Linear probes: as good as scikit-learn's logistic regression on the same features, honest, and the paper's own."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import roc_auc_score

from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable
from unmask.evaluation.metrics import right, worth
from unmask.evaluation.probe import descend, lars, least_squares, linear, ridge, shares


def tables(n: int = 600, m: int = 600, classes: int = 5, D: int = 24, noise: float = 3.0):
    """Two sets of the same overlapping classes, the features stretched and shifted; `avg` is the useful pooling, `cls` is noise."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(classes, D, generator=generator)
    stretch = 10 ** torch.linspace(-2, 2, D)
    made = []
    for count in (n, m):
        labels = torch.arange(count) % classes
        avg = (centres[labels] + noise * torch.randn(count, D, generator=generator)) * stretch + 3
        made.append(FeatureTable({"cls": torch.randn(count, 8, generator=generator), "avg": avg}, labels, [str(i) for i in range(count)]))
    return made


def accuracy(probe, table) -> float:
    return 100 * right(probe(table.of(probe.pooling)), table.labels) / len(table)


def test_sweep_is_as_good_as_logistic_regression_and_chooses_the_pooling():
    train, val = tables()
    probe = linear(train, 5)
    assert probe.pooling != "cls" and len(probe.sweep) == 3 * 8
    mean, std = train.of("avg").mean(0), train.of("avg").std(0)
    best = 0.0
    for C in (0.001, 0.01, 0.1, 1):
        fitted = LogisticRegression(C=C, max_iter=500).fit(((train.of("avg") - mean) / std).numpy(), train.labels.numpy())
        best = max(best, 100 * fitted.score(((val.of("avg") - mean) / std).numpy(), val.labels.numpy()))
    assert 25 < best < 90 and accuracy(probe, val) > best - 3


def test_the_choice_never_looks_at_more_than_the_training_set_and_the_seed_fixes_it():
    train, _ = tables(200, 200)
    one, same, other = (linear(train, 5, epochs=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.weight, same.weight) and one.sweep == same.sweep and not torch.equal(one.weight, other.weight)
    assert (
        max(row["held_out_top1"] for row in one.sweep)
        == next(row for row in one.sweep if row["lr"] == one.lr and row["pooling"] == one.pooling)["held_out_top1"]
    )


def test_pure_noise_gives_chance():
    train, val = tables()
    probe = linear(train, 5, poolings=("cls",), epochs=20)
    assert 13 < accuracy(probe, val) < 27


def test_the_papers_protocol_learns_and_says_its_numbers():
    train, val = tables()
    probe = lars(train, 5, pooling="avg")
    assert (probe.epochs, probe.batch_size, probe.lr) == (90, 32, 6.4)
    assert accuracy(probe, val) > accuracy(linear(train, 5, poolings=("avg",), epochs=30), val) - 6
    assert torch.equal(lars(train, 5, epochs=2).weight, lars(train, 5, epochs=2).weight)


def test_tiny_sets_do_not_fail():
    train, _ = tables(n=7, classes=3)
    for probe in (linear(train, 3, epochs=5), lars(train, 3, epochs=5), linear(train.rows(torch.tensor([0, 3])), 3, epochs=5)):
        assert torch.isfinite(probe(train.of(probe.pooling))).all()
    with pytest.raises(Refused, match="two"):
        lars(train.rows(torch.tensor([0])), 3)


def with_labels(kind: str, outputs: int = 3, n: int = 600, m: int = 600):
    """Two sets whose tags or numbers are a noisy linear map of `avg`, features stretched and shifted; `cls` is noise."""
    generator = torch.Generator().manual_seed(7)
    turn, stretch, made = torch.randn(20, outputs, generator=generator) / 20**0.5, 10 ** torch.linspace(-1, 1, 20), []
    for count in (n, m):
        x = torch.randn(count, 20, generator=generator)
        y = x @ turn + 0.7 * torch.randn(count, outputs, generator=generator)
        labels = (y > torch.tensor([0.0, 1.0, -1.0])).float() if kind == "tags" else 50 * y + 300
        made.append(FeatureTable({"cls": torch.randn(count, 8, generator=generator), "avg": x * stretch + 5}, labels, [""] * count, kind=kind))
    return made


def test_tags_are_read_as_well_as_by_logistic_regressions():
    train, val = with_labels("tags")
    probe = linear(train, 3)
    assert probe.pooling != "cls" and 0.6 < max(row["held_out_auroc"] for row in probe.sweep) < 0.95
    ours = worth("tags", probe(val.of(probe.pooling)), val.truth())
    mean, std = train.of("avg").mean(0), train.of("avg").std(0)
    x, y = ((table.of("avg") - mean).numpy() / std.numpy() for table in (train, val))
    theirs = [roc_auc_score(val.labels[:, k], LogisticRegression(C=0.1).fit(x, train.labels[:, k]).decision_function(y)) for k in range(3)]
    assert ours > sum(theirs) / 3 - 0.01


def test_one_step_of_tags_is_binary_cross_entropy_of_what_is_known():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(8, 3, generator=generator), (torch.rand(8, 2, generator=generator) > 0.5).float()
    labels[2:5, 1] = float("nan")
    head = torch.nn.Linear(3, 2)
    start = head.weight.detach().T.clone(), head.bias.detach().clone()
    weight, bias = descend(x, labels, torch.tensor([0.3]), 2, epochs=1, batch_size=8, seed=0, start=start)
    known = ~labels.isnan()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(head(x)[known], labels[known], reduction="sum") / 8
    loss.backward()
    torch.testing.assert_close(weight[0].T, head.weight.detach() - 0.3 * head.weight.grad)
    torch.testing.assert_close(bias[0], head.bias.detach() - 0.3 * head.bias.grad)


@pytest.mark.parametrize("shape", [(200, 20), (15, 20)], ids=["tall", "wide"])
def test_least_squares_equal_scikit_learns_ridge(shape):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(*shape, generator=generator) + 2, torch.randn(shape[0], 2, generator=generator)
    weight, bias = least_squares(x, y, (0.01, 1.0))
    for row, l2 in enumerate((0.01, 1.0)):
        theirs = Ridge(alpha=l2 * len(x)).fit(x.double(), y.double())
        torch.testing.assert_close(weight[row], torch.from_numpy(theirs.coef_.T).float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bias[row], torch.from_numpy(theirs.intercept_).float(), rtol=1e-4, atol=1e-5)
    y[: len(x) // 2, 1] = float("nan")
    weight, _ = least_squares(x, y, (1.0,))
    half = Ridge(alpha=len(x) - len(x) // 2).fit(x[len(x) // 2 :].double(), y[len(x) // 2 :, 1].double())
    torch.testing.assert_close(weight[0, :, 1], torch.from_numpy(half.coef_).float(), rtol=1e-4, atol=1e-5)


def test_numbers_are_read_as_well_as_by_scikit_learns_ridge():
    train, val = with_labels("numbers")
    probe = ridge(train)
    assert probe.pooling != "cls" and probe.l2 > 0 and len(probe.sweep) == 3 * 9
    ours = worth("numbers", probe(val.of(probe.pooling)), val.truth())
    mean, std = train.of("avg").mean(0), train.of("avg").std(0)
    theirs = RidgeCV(alphas=[0.1, 1, 10, 100]).fit((train.of("avg") - mean) / std, train.labels)
    assert ours > theirs.score((val.of("avg") - mean) / std, val.labels) - 0.01 and 0.4 < ours < 0.8
    assert worth("numbers", ridge(train, ("cls",))(val.of("cls")), val.truth()) < 0.05


def test_what_is_chosen_by_keeps_groups_whole():
    train, _ = with_labels("tags", n=300)
    groups = torch.arange(300) // 10
    for fit, held in shares(FeatureTable(train.parts, train.labels, train.names, kind="tags", groups=groups), 0.2, 0):
        assert not set(groups[fit].tolist()) & set(groups[held].tolist())
    one = FeatureTable(train.parts, train.labels, train.names, kind="tags", groups=groups * 0)
    assert len(shares(one, 0.2, 0)[0][1]) > 40, "of one group pictures are held out"


def test_the_papers_protocol_is_for_classes():
    train, _ = with_labels("tags")
    with pytest.raises(Refused, match="tags"):
        lars(train, 3)
