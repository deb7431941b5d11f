"""The leak law finds leaks, and nothing else."""

import pytest
from altered import altered
from torch import nn

from unmask.methods.mae import MAE
from unmask.testing import case_of, check_leak


def test_a_leak_through_the_encoder():
    def blur(learner):
        take = learner.encoder.take
        learner.encoder.take = lambda x: nn.functional.avg_pool2d(take(x), 3, 1, 1)  # neighbours see hidden pixels

    with pytest.raises(AssertionError, match="LEAK"):
        check_leak(altered(blur))


def test_a_leak_through_rows_shared_by_the_batch():
    def share(learner):
        norm = learner.encoder.trunk.patch_embed
        norm.register_forward_hook(lambda module, given, output: output - output.mean((0, 1, 2), keepdim=True))

    with pytest.raises(AssertionError, match="LEAK"):
        check_leak(altered(share))


def test_a_teachers_passes_are_not_mistaken_for_leaks():
    """Only what is told a mask is watched: a target that sees everything may move."""
    case = case_of(MAE())
    learner = case.learner()
    assert learner.encoder(case.x).patches.shape[1] == 16
    check_leak(case)
