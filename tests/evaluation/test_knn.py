"""Weighted nearest neighbours equal DINO's."""

from __future__ import annotations

import pytest
import torch

from unmask.evaluation.knn import knn
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
