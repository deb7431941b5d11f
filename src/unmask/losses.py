"""Losses a row: (prediction, truth), both (B, M, …), to (B, M). They know no mask."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def mse(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each row (MAE)."""
    return F.mse_loss(prediction.float(), truth, reduction="none").mean(-1)


def l1(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of each row (SimMIM)."""
    return F.l1_loss(prediction.float(), truth, reduction="none").mean(-1)
