"""For encoders that look back: what comes later is hidden."""

from __future__ import annotations

import math

import torch

from unmask.mask import Mask
from unmask.masking.strategy import Masking
from unmask.settings import Ratio


class Prefix(Masking):
    """Everything after a first stretch in reading order, which may have any length but none and all (AIM, section 3.2).

    For encoders that look back: a patch is hidden from those before it only. Places of the stretch are padded (weight 0).
    """

    rated = False

    def __init__(self, ratio: Ratio | float | str | None = None):
        if ratio is not None:
            raise ValueError("a prefix has no mask_ratio: its length is any, each as often")
        super().__init__(0.5)

    def draws(self, grid):
        return 1

    def __call__(self, grid, noise, scores=None):
        places = torch.arange(math.prod(grid), device=noise.device).expand(len(noise), -1)  # (B, N)
        length = 1 + (noise * (places.shape[1] - 1)).long()  # (B, 1) in 1..N-1
        return Mask(places[:, :1], places[:, 1:], grid, (places[:, 1:] >= length).float())
