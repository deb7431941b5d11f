"""The pixels themselves, as they are or normalised patch by patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from unmask.patches import patchify
from unmask.targets.target import Target

BY_CHANNEL = 1e-5  # inside the root where channels are normalised by themselves (BootMAE, run_pretraining.py)
EPS = 1e-6  # inside the root of the per-patch normalisation (MAE, models_mae.py)


class Pixels(Target):
    """Patch vectors, channel first; with `normalize` each minus its mean, over its unbiased standard deviation. With `by_channel` each channel of a patch
    by itself, over its biased deviation, a number being added to the variance (BootMAE), or its unbiased one, a number being added to it (VideoMAE, AdaMAE).

    Source: MAE, section 3 "Reconstruction target". The order within a vector differs from MAE's code (channel last);
    `interchange.official` permutes the weights that depend on it.
    """

    def __init__(self, patch: tuple[int, ...], normalize: bool = True, by_channel: Literal["biased", "unbiased"] | None = None):
        super().__init__()
        self.patch = tuple(patch)
        self.normalize, self.by_channel = normalize, by_channel
        self.scale: tuple[float, ...] = (1.0,)  # of the pictures' numbers: the number that is added is meant for those in 0..1

    def sees(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.scale = tuple(std)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        truth = patchify(x.float(), self.patch)  # (B, N, C·prod(patch))
        if not self.normalize:
            return truth
        mean, std = self.statistics(truth)
        return (truth - mean) / std

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, N, 1) of raw patch vectors, by channel (B, N, C·prod(patch)): what normalising takes away."""
        if self.by_channel is not None:
            area, biased = math.prod(self.patch), self.by_channel == "biased"
            var, mean = torch.var_mean(patches.unflatten(-1, (-1, area)), dim=-1, correction=0 if biased else 1)  # (B, N, C)
            std = (var + BY_CHANNEL).sqrt() if biased else var.sqrt() + EPS / torch.tensor(self.scale, device=var.device)
            return mean.repeat_interleave(area, -1), std.repeat_interleave(area, -1)
        var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return mean, (var + EPS).sqrt()

    def restore(self, prediction: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Raw patch vectors from predicted ones, given each patch's statistics; raw predictions stay as they are."""
        return prediction * std + mean if self.normalize else prediction

    def baseline(self, truth, loss):
        """The better of the mean and the median vector: the best constants for a squared and an absolute error."""
        rows = truth.flatten(0, -2)  # (B·M, values)
        return torch.stack([loss(rows.mean(0).expand_as(rows), rows).mean(), loss(rows.median(0).values.expand_as(rows), rows).mean()]).min()
