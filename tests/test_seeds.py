"""Keyed random numbers: functions of (seed, purpose, where) and of nothing else."""

import numpy as np
import torch

from unmask import seeds


def test_key_is_63_bits_of_the_place():
    keys = {seeds.key(seed, purpose, *where) for seed in (0, 1) for purpose in ("view", "mask") for where in ((), (0,), (1,), (0, 1), (1, 0), (11,))}
    assert len(keys) == 24
    assert all(0 <= key < 2**63 for key in keys)
    assert seeds.key(0, "view", 3, 4) == 2288834043968665340  # fixed for ever: a run resumed by a later version draws the same


def test_key_takes_numpy_and_torch_integers():
    assert seeds.key(np.int64(5), "order", np.int32(2)) == seeds.key(5, "order", torch.tensor(2)) == seeds.key(5, "order", 2)


def test_uniform_depends_on_the_place_alone():
    first = seeds.uniform((64, 16), 7, "mask", 3)
    torch.rand(5)
    assert torch.equal(first, seeds.uniform((64, 16), 7, "mask", 3))
    assert not torch.equal(first, seeds.uniform((64, 16), 7, "mask", 4))
    assert first.dtype == torch.float32 and first.min() >= 0 and first.max() < 1
    assert abs(first.mean() - 0.5) < 0.05


def test_dice_depends_on_the_place_alone():
    assert seeds.dice(1, "view", 2, 3).random() == seeds.dice(1, "view", 2, 3).random()
    assert seeds.dice(1, "view", 2, 3).random() != seeds.dice(1, "view", 3, 2).random()


def test_reseed_moves_the_default_generator():
    seeds.reseed(0, "dropout", 5)
    first = torch.rand(4)
    torch.rand(9)
    seeds.reseed(0, "dropout", 5)
    assert torch.equal(first, torch.rand(4))
