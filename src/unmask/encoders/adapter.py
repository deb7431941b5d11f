"""What every adapter over a timm network is: a trunk that can be shown a part of the picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from unmask.encoders.features import Features
from unmask.encoders.stem import in_chans_of, size_of
from unmask.mask import Mask
from unmask.patches import grid_of

Hiding: TypeAlias = Literal["drop", "token", "causal"]


class Adapter(nn.Module, ABC):
    """The contract: `(x, mask=None) -> Features`. `trunk` is timm's network, unchanged.

    `hides` says what becomes of a masked patch: `"drop"`, nobody sees it, `"token"`, a learned token stands in its
    place, which this adapter owns (`mask_token`, as wide as `token_width`), or `"causal"`, those before it in reading order do not see it, and
    a place returns what was known before it. `take` picks what is encoded from the learner's
    input: a tensor, or the first entry of a dict.
    """

    def __init__(self, trunk: Any, masked: Hiding, token_width: int):
        super().__init__()
        self.trunk = trunk
        self.hides = masked
        self.mask_token = nn.Parameter(torch.zeros(1, 1, token_width)) if masked == "token" else None
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    @abstractmethod
    def width(self) -> int:
        """Columns of a feature."""

    @property
    @abstractmethod
    def patch(self) -> tuple[int, int]:
        """Pixels that one feature stands for, down and across."""

    @property
    def img_size(self) -> tuple[int, int]:
        return size_of(self.trunk)

    @property
    def in_chans(self) -> int:
        return in_chans_of(self.trunk)

    @property
    def own_grid(self) -> tuple[int, int]:
        """Rows and columns of the features of pictures of the size that it was built for."""
        return self.img_size[0] // self.patch[0], self.img_size[1] // self.patch[1]

    def take(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        """The pictures (B, C, H, W) that this encoder looks at."""
        return next(iter(x.values())) if isinstance(x, dict) else x

    def grid(self, x: Tensor) -> tuple[int, ...]:
        """Rows and columns of the features of `x` (B, C, H, W)."""
        return grid_of(tuple(x.shape[2:]), self.patch)

    @abstractmethod
    def forward(self, x: Tensor, mask: Mask | None = None) -> Features: ...

    def as_timm(self, features: Features, grid: tuple[int, ...]) -> Tensor:
        """Features of all places as timm's own `forward_features` gives them: (B, P + N, D) where a family has no form of its own."""
        return torch.cat([features.prefix, features.patches], dim=1)
