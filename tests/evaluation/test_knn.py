"""Weighted nearest neighbours equal DINO's."""

from __future__ import annotations

import pytest
import torch

from unmask.evaluation.knn import knn, mean_of_nearest
from unmask.evaluation.metrics import right


@pytest.mark.golden
def test_votes_and_ranking_equal_dino(golden):
    tensors, metadata = golden("dino_knn")
    classes, temperature = metadata["config"]["num_classes"], metadata["config"]["T"]
    for k in metadata["config"]["k"]:
        votes = knn(tensors["input.train_features"], tensors["input.train_labels"], tensors["input.test_features"], classes, k, temperature, chunk=33)
        torch.testing.assert_close(votes, tensors[f"output.votes.k{k}"], rtol=1e-5, atol=2e-6 * float(tensors[f"output.votes.k{k}"].max()))
        ranking = votes.argsort(dim=1, descending=True)
        known = (votes.gather(1, ranking) > 0) & (tensors[f"output.votes.k{k}"].gather(1, tensors[f"output.ranking.k{k}"]) > 0)
        assert torch.equal(ranking[known], tensors[f"output.ranking.k{k}"][known])
        labels = tensors["input.test_labels"]
        assert 100 * right(votes, labels) / len(labels) == pytest.approx(float(tensors[f"output.top1.k{k}"]), abs=1e-4)


def test_chunks_scale_and_too_few_features_change_nothing():
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(50, 8), torch.randint(4, (50,)), torch.randn(9, 8)
    whole = knn(bank, labels, queries, 4)
    torch.testing.assert_close(knn(bank * 7, labels, queries * 3, 4, chunk=2), whole, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(knn(bank, labels, queries, 4, k=500), knn(bank, labels, queries, 4, k=50))
    assert knn(bank, labels, queries[:0], 4).shape == (0, 4)
    assert right(knn(bank, labels, bank, 4, k=1), labels) == 50


def test_means_of_numbers_and_tags_equal_scikit_learn():
    from sklearn.neighbors import KNeighborsRegressor

    torch.manual_seed(0)
    bank, values, queries = torch.randn(80, 6), torch.randn(80, 3), torch.randn(15, 6)

    def weigh(distance):  # scikit-learn gives cosine distances
        import numpy as np

        return np.exp((1 - distance) / 0.1)

    wanted = KNeighborsRegressor(9, metric="cosine", weights=weigh).fit(bank, values).predict(queries)
    torch.testing.assert_close(mean_of_nearest(bank, values, queries, 9, 0.1, chunk=4), torch.from_numpy(wanted).float(), rtol=1e-4, atol=1e-5)
    assert mean_of_nearest(bank, values, queries[:0]).shape == (0, 3)


def test_unknown_values_do_not_vote():
    bank, queries = torch.eye(4), torch.eye(4)[:2] + 0.01
    values = torch.tensor([[float("nan"), 1], [0, float("nan")], [1, 1], [1, 3]])
    found = mean_of_nearest(bank, values, queries, k=1)
    assert found[:, 0].tolist() == pytest.approx([2 / 3, 0]), "nobody near knows it: the mean of all who do"
    assert found[:, 1].tolist() == pytest.approx([1, 5 / 3])
    assert torch.isfinite(mean_of_nearest(bank, values, queries, temperature=1e-3)).all()
