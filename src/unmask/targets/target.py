"""The contract of a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Target(nn.Module, ABC):
    """What is predicted: a plain function of the signal that knows no mask, so that a viewer can share it.

    `note`: what a person should know about its loss before a run, in a sentence.
    """

    note: str = ""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The truth (B, N, …) at every patch of `x`, without gradient."""

    @abstractmethod
    def baseline(self, truth: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The loss of the best constant answer to `truth` (B, M, …): what a decoder that sees nothing can reach."""

    def sees(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """How the pictures were normalised, a number a channel: for targets that look at them in numbers of their own."""

    def begin(self, encoder: nn.Module) -> None:
        """Before the first step, when the encoder holds the weights that it begins with."""

    def follow(self, encoder: nn.Module, progress: float) -> None:
        """After a step: move what follows the encoder; `progress` is that of the run, in (0, 1]. Its state lives in buffers."""


@torch.enable_grad()
def best_constant(truth: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The loss of the best constant answer to vectors (B, M, values), searched for from their mean: for losses without a formula."""
    rows = truth.detach().float().flatten(0, -2)  # (B·M, values)
    answer = rows.mean(0).requires_grad_()
    descent = torch.optim.LBFGS([answer], max_iter=30, line_search_fn="strong_wolfe")

    def found() -> Tensor:
        descent.zero_grad()
        value = loss(answer.expand_as(rows), rows).mean()
        value.backward()
        return value

    descent.step(found)
    return found().detach()
