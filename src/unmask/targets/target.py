"""The contract of a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn


class Target(nn.Module, ABC):
    """What is predicted: a plain function of the signal that knows no mask, so that a viewer can share it."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The truth (B, N, …) at every patch of `x`, without gradient."""

    @abstractmethod
    def baseline(self, truth: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The loss of the best constant answer to `truth` (B, M, …): what a decoder that sees nothing can reach."""
