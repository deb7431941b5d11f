"""Weighted nearest neighbours: is a picture, for the frozen encoder, near pictures of its own kind?

Wu et al., CVPR 2018 (instance discrimination), as DINO uses it (eval_knn.py); for tags and numbers the votes become a weighted mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def nearest(features: Tensor, queries: Tensor, k: int, chunk: int = 1024) -> Iterator[tuple[Tensor, Tensor]]:
    """(cosines (c, k), row numbers (c, k)) of the k nearest of `features (n, D)` for each of `queries (m, D)`, nearest first.

    Fewer than k features: all of them. Queries are answered `chunk` at a time, so memory is chunk * n numbers.
    """
    bank = F.normalize(features.float(), dim=1).T  # (D, n)
    for part in queries.split(chunk):
        cosine, ids = (F.normalize(part.float(), dim=1) @ bank).topk(min(k, len(features)), dim=1)  # (c, k)
        yield cosine, ids


def knn(features: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int = 20, temperature: float = 0.07, chunk: int = 1024) -> Tensor:
    """The votes `(m, classes)` that the k nearest of `features (n, D)` with `labels (n,)` give for each of `queries (m, D)`.

    Near means a large cosine; a neighbour votes for its class with exp(cosine / temperature).
    """
    votes = []
    for cosine, ids in nearest(features, queries, k, chunk):
        weight = (cosine / temperature).exp()
        votes.append(weight.new_zeros(len(ids), classes).scatter_add_(1, labels[ids], weight))
    return torch.cat(votes) if votes else queries.new_zeros(0, classes)


def mean_of_nearest(features: Tensor, values: Tensor, queries: Tensor, k: int = 20, temperature: float = 0.07, chunk: int = 1024) -> Tensor:
    """The mean (m, K) of `values (n, K)`, tags or numbers, over the k nearest, weighted by exp(cosine / temperature).

    A value that is NaN is unknown and counts nowhere; where all of a picture's neighbours lack it, the mean of all takes its place.
    """
    known, filled = (~values.isnan()).float(), values.nan_to_num()  # (n, K)
    everywhere = filled.sum(dim=0) / known.sum(dim=0).clamp_min(1)  # (K,)
    means = []
    for cosine, ids in nearest(features, queries, k, chunk):
        weight = ((cosine - cosine[:, :1]) / temperature).exp()[:, :, None]  # (c, k, 1), of the nearest 1
        total = (weight * known[ids]).sum(dim=1)  # (c, K)
        means.append(torch.where(total > 0, (weight * filled[ids]).sum(dim=1) / total.clamp_min(1e-30), everywhere))
    return torch.cat(means) if means else queries.new_zeros(0, values.shape[1])
