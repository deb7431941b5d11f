"""What cells that fall one by one promise beyond the laws (laws/test_masks.py): the official orders."""

import pytest
import torch

from unmask.masking import Grid, Random


@pytest.mark.parametrize(("ratio", "seen"), [(0.75, 49), (0.6, 78), (0.9, 19), (0.999, 1), (0.001, 195)])
def test_random_keeps_the_smallest_noise_in_order(ratio, seen):
    noise = torch.rand(3, 196)
    mask = Random(ratio)((14, 14), noise)
    order = noise.argsort(dim=1, stable=True)
    assert torch.equal(mask.visible_ids, order[:, :seen]) and torch.equal(mask.masked_ids, order[:, seen:])


def test_equal_noise_falls_the_same_way_everywhere():
    assert Random(0.5)((2, 4), torch.zeros(1, 8)).visible_ids.tolist() == [[0, 1, 2, 3]]


def test_simmim_masks_30_of_49_squares():
    strategy = Random(0.6, 2)
    assert strategy((14, 14), torch.rand(1, 49)).map.sum() == 30 * 4


def test_grid_shows_one_patch_of_every_four():
    strategy = Grid(0.75)
    visible = ~strategy((8, 8), torch.rand(50, strategy.draws((8, 8)))).map.reshape(50, 4, 2, 4, 2)
    assert (visible.sum((2, 4)) == 1).all()
    strategy = Grid(0.5)
    mask = strategy((8, 8), torch.rand(50, strategy.draws((8, 8)))).map.reshape(50, 8, 8)
    assert (mask[:, 1:] != mask[:, :-1]).all() and (mask[:, :, 1:] != mask[:, :, :-1]).all()  # a chequerboard
    assert mask[:, 0, 0].any() and not mask[:, 0, 0].all()  # moved by a random offset
