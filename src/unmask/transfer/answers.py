"""What is asked of a picture: one class of many, any number of tags, or quantities. Each kind has its target and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["classes", "tags", "numbers"]


class Answers(nn.Module):
    """Labels to targets, outputs to a loss, and outputs to what a person reads.

    Tags and numbers that are not known are NaN and count in no loss. Numbers are learnt in deviations from their mean (`moments`: mean and
    deviation of each, over the pictures that teach), so that quantities of any size weigh alike.
    """

    def __init__(self, kind: Kind, count: int, smoothing: float = 0.0, moments: tuple[Sequence[float], Sequence[float]] | None = None):
        super().__init__()
        self.kind, self.count, self.smoothing = kind, count, smoothing
        mean, std = moments or ([0.0] * count, [1.0] * count)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def targets(self, labels: Tensor) -> Tensor:
        """(B, count) of class numbers (B,), tags (B, count) or numbers (B, count)."""
        if self.kind == "numbers":
            return (labels.float() - self.mean) / self.std
        if self.kind == "tags":  # smoothed towards a half, as timm's multi-label mixup does
            return labels.float() * (1 - self.smoothing) + 0.5 * self.smoothing
        return F.one_hot(labels, self.count).float() * (1 - self.smoothing) + self.smoothing / self.count

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the pictures: cross entropy with soft targets, binary cross entropy of the known tags, squared error of the known numbers."""
        outputs = outputs.float()
        if self.kind == "classes":
            return -(targets * outputs.log_softmax(1)).sum(1).mean()
        known = ~targets.isnan()
        targets = torch.where(known, targets, 0.0)
        each = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none") if self.kind == "tags" else (outputs - targets).square()
        return ((each * known).sum(1) / known.sum(1).clamp(min=1)).mean()  # a picture is a picture, however many of its tags are known

    def read(self, outputs: Tensor) -> Tensor:
        """Outputs (B, count) as probabilities, or as numbers in their own units."""
        if self.kind == "numbers":
            return outputs.float() * self.std + self.mean
        return outputs.float().softmax(1) if self.kind == "classes" else outputs.float().sigmoid()
