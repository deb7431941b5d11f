"""The contract of a tokenizer: pictures to codes, and codes to pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Tokenizer(nn.Module, ABC):
    """A picture in 0..1 becomes a grid of codes, one for each square of `stride` pixels; each code is one of `vocabulary`."""

    stride: int
    vocabulary: int

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """How well each code fits each square of `x` (B, C, H, W), in 0..1: (B, vocabulary, H / stride, W / stride)."""

    @abstractmethod
    def pictures(self, shares: Tensor) -> Tensor:
        """The pictures (B, C, H, W) in 0..1 behind codes, given as shares (B, vocabulary, h, w) that are 1 together: one-hot or soft."""

    def codes(self, x: Tensor) -> Tensor:
        """The best code of each square: (B, h, w), whole numbers."""
        return self.logits(x).argmax(1)
