"""Linear probes: as good as scikit-learn's logistic regression on the same features, honest, and the paper's own."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable
from unmask.evaluation.metrics import right
from unmask.evaluation.probe import lars, linear


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
