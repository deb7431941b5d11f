"""The figures are those of the libraries that everybody trusts."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from unmask.evaluation.metrics import feature_std, rank_me, right, wilson


def test_right_answers_equal_scikit_learn():
    torch.manual_seed(0)
    votes, labels = torch.randn(300, 12), torch.randint(12, (300,))
    for k in (1, 5):
        wanted = top_k_accuracy_score(labels.numpy(), votes.numpy(), k=k, labels=range(12))
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
