"""Strategies by name."""

import re

import pytest
import torch

from unmask.masking import STRATEGIES


def test_names():
    assert set(STRATEGIES) >= {"random", "block", "grid"} and all(re.fullmatch(r"[a-z_]+", name) for name in STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_without_a_ratio_says_so(name):
    try:
        STRATEGIES[name](0.5)
        takes = True
    except ValueError:
        takes = False
    assert STRATEGIES[name].rated is takes


@pytest.mark.parametrize("name", ["block", "grid"])
def test_rectangles_are_for_pictures(name):
    strategy = STRATEGIES[name](0.5)
    with pytest.raises(ValueError, match="is for pictures"):
        strategy((2, 4, 4), torch.rand(1, 999))
