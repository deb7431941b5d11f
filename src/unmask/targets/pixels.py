"""The pixels themselves, as they are or normalised patch by patch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmask.patches import patchify
from unmask.targets.target import Target

BY_CHANNEL = 1e-5  # inside the root where channels are normalised by themselves (BootMAE, run_pretraining.py)
EPS = 1e-6  # inside the root of the per-patch normalisation (MAE, models_mae.py)


class Pixels(Target):
    """Patch vectors, channel first; with `normalize` each minus its mean, over its unbiased standard deviation. With `by_channel` each channel
    of a patch by itself, over its biased one (BootMAE).

    Source: MAE, section 3 "Reconstruction target". The order within a vector differs from MAE's code (channel last);
    `interchange.official` permutes the weights that depend on it.
    """

    def __init__(self, patch: tuple[int, ...], normalize: bool = True, by_channel: bool = False):
        super().__init__()
        self.patch = tuple(patch)
        self.normalize, self.by_channel = normalize, by_channel

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        truth = patchify(x.float(), self.patch)  # (B, N, C·prod(patch))
        if not self.normalize:
            return truth
        mean, std = self.statistics(truth)
        return (truth - mean) / std

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, N, 1) of raw patch vectors, by channel (B, N, C·prod(patch)): what normalising takes away."""
        if self.by_channel:
            area = math.prod(self.patch)
            var, mean = torch.var_mean(patches.unflatten(-1, (-1, area)), dim=-1, correction=0)  # (B, N, C)
            return mean.repeat_interleave(area, -1), (var + BY_CHANNEL).sqrt().repeat_interleave(area, -1)
        var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return mean, (var + EPS).sqrt()

    def restore(self, prediction: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Raw patch vectors from predicted ones, given each patch's statistics; raw predictions stay as they are."""
        return prediction * std + mean if self.normalize else prediction

    def baseline(self, truth, loss):
        """The better of the mean and the median vector: the best constants for a squared and an absolute error."""
        rows = truth.flatten(0, -2)  # (B·M, values)
        return torch.stack([loss(rows.mean(0).expand_as(rows), rows).mean(), loss(rows.median(0).values.expand_as(rows), rows).mean()]).min()
