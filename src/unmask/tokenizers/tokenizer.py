"""The contract of a tokenizer: pictures to codes, and, where codes can be painted, back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn


class Tokenizer(nn.Module, ABC):
    """A picture in 0..1 becomes a grid of codes, one for each square of `stride` pixels; each code is one of `vocabulary`.

    `kind` and `sizes` build the same network again: `sizes` are the arguments of the class.
    """

    kind: ClassVar[str]
    sizes: dict[str, Any]
    in_chans: int
    stride: int
    vocabulary: int

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """How well each code fits each square of `x` (B, C, H, W), in 0..1: (B, vocabulary, H / stride, W / stride)."""

    def pictures(self, shares: Tensor) -> Tensor | None:
        """The pictures (B, C, H, W) in 0..1 behind codes, given as shares (B, vocabulary, h, w) that are 1 together: one-hot or soft.

        None where a code stands for nothing that can be painted.
        """
        return None

    def codes(self, x: Tensor) -> Tensor:
        """The best code of each square: (B, h, w), whole numbers."""
        return self.logits(x).argmax(1)
