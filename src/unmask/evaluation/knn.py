"""Weighted nearest neighbours: is a picture, for the frozen encoder, near pictures of its own class?

Wu et al., CVPR 2018 (instance discrimination), as DINO uses it (eval_knn.py).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def knn(features: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int = 20, temperature: float = 0.07, chunk: int = 1024) -> Tensor:
    """The votes `(m, classes)` that the k nearest of `features (n, D)` with `labels (n,)` give for each of `queries (m, D)`.

    Near means a large cosine; a neighbour votes for its class with exp(cosine / temperature).
    Fewer than k features: all of them vote. Queries are answered `chunk` at a time, so memory is chunk * n numbers.
    """
    k = min(k, len(features))
    bank = F.normalize(features.float(), dim=1).T  # (D, n)
    votes = []
    for part in queries.split(chunk):
        cosine, nearest = (F.normalize(part.float(), dim=1) @ bank).topk(k, dim=1)  # (chunk, k)
        weight = (cosine / temperature).exp()
        votes.append(weight.new_zeros(len(part), classes).scatter_add_(1, labels[nearest], weight))
    return torch.cat(votes) if votes else queries.new_zeros(0, classes)
