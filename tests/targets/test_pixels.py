"""Pixels as a target. Its laws: laws/test_targets.py; equality with the official code: methods/test_mae.py."""

import torch
from torch.testing import assert_close

from unmask import losses
from unmask.patches import patchify
from unmask.targets.pixels import Pixels


def test_normalised_patches_have_mean_zero_and_unbiased_deviation_one():
    truth = Pixels((8, 8))(torch.randn(2, 3, 32, 16) * 5 + 3)
    assert_close(truth.mean(-1), torch.zeros(2, 8), rtol=0, atol=1e-5)
    assert_close(truth.std(-1), torch.ones(2, 8), rtol=1e-4, atol=0)


def test_a_constant_patch_is_finite():
    assert not Pixels((8, 8))(torch.full((1, 3, 16, 16), 0.7)).isnan().any()


def test_restore_undoes_normalising():
    x = torch.randn(2, 3, 32, 16)
    patches, target = patchify(x, (8, 8)), Pixels((8, 8))
    assert_close(target.restore(target(x), *target.statistics(patches)), patches, rtol=1e-5, atol=1e-5)
    raw = Pixels((8, 8), normalize=False)
    assert torch.equal(raw(x), patches) and torch.equal(raw.restore(raw(x), *raw.statistics(patches)), patches)


def test_baseline_is_of_the_masked_part_it_is_given():
    truth = Pixels((8, 8), normalize=False)(torch.randn(4, 3, 32, 32))
    masked = truth[:, :3]
    constant = masked.flatten(0, 1).mean(0)
    assert_close(Pixels((8, 8)).baseline(masked, losses.mse), (masked - constant).square().mean(), rtol=1e-5, atol=0)
