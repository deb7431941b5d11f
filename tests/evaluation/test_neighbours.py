"""Nearest, near-duplicates and outliers, on features where the answer is known."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unmask.evaluation.neighbours import families, loneliness, nearest, pairs, plain, threshold


@pytest.mark.parametrize(("n", "m", "k", "numbers"), [(50, 7, 3, 64), (50, 7, 3, 1 << 24), (5, 4, 9, 20), (1, 2, 1, 1)])
def test_nearest_is_exact_whatever_the_block(n, m, k, numbers):
    x, y = torch.randn(n, 6), torch.randn(m, 6)
    cosine = F.normalize(y, dim=1) @ F.normalize(x, dim=1).T
    similarity, ids = nearest(x, y, k, numbers)
    best = cosine.sort(dim=1, descending=True)
    assert similarity.shape == ids.shape == (m, min(k, n))
    assert torch.allclose(similarity, best.values[:, :k], atol=1e-6) and torch.equal(ids, best.indices[:, :k])


def test_nobody_is_his_own_neighbour_across_blocks():
    x = torch.randn(40, 5)
    x[31] = 3 * x[4]  # the same direction
    for numbers in (1, 40 * 7, 1 << 24):
        similarity, ids = nearest(x, k=3, numbers=numbers)
        assert not (ids == torch.arange(40)[:, None]).any()
        assert ids[4, 0] == 31 and ids[31, 0] == 4 and similarity[4, 0] == pytest.approx(1, abs=1e-6)
    assert nearest(x[:2], k=8)[0].shape == (2, 1)


def test_blocks_keep_the_memory_small():
    largest = []
    nearest(torch.randn(3000, 4), k=2, numbers=3000 * 100, told=lambda done, total: largest.append(done))
    assert largest[0] == 100 and largest[-1] == 3000 and len(largest) == 30


@pytest.mark.parametrize("spread", [0.02, 1.0, 30.0])
def test_the_threshold_follows_the_crowd(spread):
    """Planted copies are found and the crowd is left alone, whether an encoder calls everything alike or nothing."""
    rng = torch.Generator().manual_seed(0)
    common = torch.randn(1, 32, generator=rng) / spread
    x = common + torch.randn(600, 32, generator=rng)
    copies = x[:10] + 1e-3 * torch.randn(10, 32, generator=rng)
    similarity, ids = nearest(torch.cat([x, copies]), k=4)
    least, why = threshold(similarity[:, 0])
    found = pairs(similarity, ids, least)
    assert {(i, j) for i, j, _ in found[:10]} == {(i, 600 + i) for i in range(10)}
    assert len(found) <= 13  # of 600 of the crowd
    assert "3.5" in why and plain(1 - 10 ** float((1 - similarity[:, 0].double()).log10().median()))[:3] in why


def test_the_threshold_where_everything_has_a_copy():
    x = torch.randn(50, 8)
    similarity, _ = nearest(torch.cat([x, x]), k=2)
    least, why = threshold(similarity[:, 0])
    assert least == pytest.approx(1 - 1e-6) and "exact" in why
    assert threshold(torch.full((20,), 0.5))[0] > 0.5  # no spread at all: the crowd is not its own duplicate


def test_pairs_and_families():
    similarity = torch.tensor([[0.99, 0.2], [0.99, 0.98], [0.98, 0.1], [0.97, 0.0], [0.97, 0.0], [0.3, 0.2]])
    ids = torch.tensor([[1, 5], [0, 2], [1, 5], [4, 0], [3, 0], [0, 1]])
    found = pairs(similarity, ids, 0.9)
    assert [(i, j) for i, j, _ in found] == [(0, 1), (1, 2), (3, 4)]
    assert [(family, round(value, 2)) for family, value in families(found)] == [([0, 1, 2], 0.99), ([3, 4], 0.97)]
    assert pairs(similarity, ids, 0.9, crossing=True)[0][:2] in ((0, 1), (1, 0)) and len(pairs(similarity, ids, 0.9, crossing=True)) == 6
    assert pairs(similarity, ids, 0.995) == [] and families([]) == []


def test_the_lonely_one_is_alone():
    x = torch.nn.functional.one_hot(torch.arange(40) % 4, 5).float() + 0.01 * torch.rand(40, 5)
    x[7] = torch.tensor([0, 0, 0, 0, 1.0])
    alone = loneliness(nearest(x, k=5)[0])
    assert alone.argmax() == 7 and alone[7] > 10 * alone.median()


def test_digits_tell_from_one():
    assert [plain(value) for value in (0.5, 0.96, 0.9979, 0.99979, 1.0, 1 - 1e-7, -0.25)] == ["0.500", "0.960", "0.9979", "0.99979", "1", "1", "-0.250"]
    assert not math.isnan(float(plain(0.0)))


def test_nearest_agrees_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.neighbors")
    x, y = np.random.default_rng(0).normal(size=(200, 16)), np.random.default_rng(1).normal(size=(20, 16))
    distance, ids = sklearn.NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(x).kneighbors(y)
    similarity, ours = nearest(torch.from_numpy(x), torch.from_numpy(y), 5, numbers=999)
    assert np.array_equal(ids, ours.numpy()) and np.allclose(1 - distance, similarity.numpy(), atol=1e-6)
