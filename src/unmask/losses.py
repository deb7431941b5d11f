"""Losses a row: (prediction, truth), both (B, M, …), to (B, M). They know no mask."""

from __future__ import annotations

import math

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
