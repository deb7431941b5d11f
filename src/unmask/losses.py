"""Losses a row: (prediction, truth), both (B, M, …), to (B, M); they know no mask. At the end those of several views of a picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def mse(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each row (MAE)."""
    return F.mse_loss(prediction.float(), truth, reduction="none").mean(-1)


def l1(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of each row (SimMIM)."""
    return F.l1_loss(prediction.float(), truth, reduction="none").mean(-1)


def smooth_l1(prediction: Tensor, truth: Tensor, beta: float = 1.0) -> Tensor:
    """Mean over each row of d²/2β below β and |d| − β/2 above (data2vec with β 2, I-JEPA with 1)."""
    return F.smooth_l1_loss(prediction.float(), truth, beta=beta, reduction="none").mean(-1)


def summed_square(prediction: Tensor, truth: Tensor) -> Tensor:
    """Squared error of each row, summed over its columns and divided by the root of their number (data2vec 2.0)."""
    return F.mse_loss(prediction.float(), truth, reduction="none").sum(-1) / math.sqrt(truth.shape[-1])


def negative_cosine(prediction: Tensor, truth: Tensor) -> Tensor:
    """Minus the cosine of each row: from −1, right, over 0, at a right angle (EVA)."""
    return -F.cosine_similarity(prediction.float(), truth, dim=-1)


def cross_entropy(prediction: Tensor, truth: Tensor) -> Tensor:
    """Minus the logarithm of the share that logits (B, M, K) give the true code (B, M) (BEiT)."""
    return F.cross_entropy(prediction.float().movedim(-1, 1), truth, reduction="none")


def self_distillation(prediction: Tensor, truth: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of each row of logits (…, K), sharpened by `temperature`, with a teacher's shares (…, K) (DINO, section 3.1; iBOT, equation 2)."""
    return -(truth * (prediction.float() / temperature).log_softmax(-1)).sum(-1)


def between_views(prediction: Tensor, truth: Tensor, temperature: float = 0.1) -> Tensor:
    """The same over all pairs of a view of the teacher's, (A, B, K), and another of the student's, (V, B, K), whose first A are the same views: a scalar.

    The mean of all pairs and samples (dino, main_dino.py; the two sums of dinov2, ssl_meta_arch.py, come to the same).
    """
    said = (prediction.float() / temperature).log_softmax(-1)
    with torch.autocast(said.device.type, enabled=False):
        pairs = -torch.einsum("abk,vbk->av", truth, said) / said.shape[1]
    other = 1 - torch.eye(*pairs.shape, device=pairs.device)
    return (pairs * other).sum() / other.sum()


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float | Tensor, counted: Tensor | None = None, iterations: int = 3) -> Tensor:
    """Shares (n, K) of a teacher's logits (n, K), such that all rows together use every column alike: over all processes (SwAV; dinov2, loss/).

    `counted` (n,): 1 for rows that are there, 0 for padding.
    """
    counted = logits.new_ones(len(logits)) if counted is None else counted.to(logits.dtype)
    shares = torch.exp(logits.float() / temperature) * counted.unsqueeze(1)
    tiny = torch.finfo(shares.dtype).tiny
    count = over_processes(counted.sum())
    shares = shares / over_processes(shares.sum()).clamp(min=tiny)
    for _ in range(iterations):
        shares = shares / over_processes(shares.sum(0, keepdim=True)).clamp(min=tiny) / shares.shape[1]
        shares = shares / shares.sum(1, keepdim=True).clamp(min=tiny) / count
    return shares * count


def over_processes(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, without gradient."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        x = x.clone()
        torch.distributed.all_reduce(x)
    return x


def koleo(x: Tensor) -> Tensor:
    """Minus the mean logarithm of the distance of each direction of `x` (B, D) to its nearest neighbour in this process's part of the batch: a scalar.

    Kozachenko and Leonenko's estimate of the entropy, turned round (Sablayrolles et al. 2019; dinov2, loss/koleo_loss.py).
    """
    with torch.autocast(x.device.type, enabled=False):
        x = F.normalize(x.float(), eps=1e-8, dim=-1)
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
        return -(F.pairwise_distance(x, x[nearest], eps=1e-8) + 1e-8).log().mean()
