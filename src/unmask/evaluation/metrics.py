"""Numbers that judge: the share of right answers with its interval, and how much of the feature space is in use."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def right(votes: Tensor, labels: Tensor, k: int = 1) -> int:
    """How many rows of `votes (m, classes)` have the right class among their k largest; a label of -1 is never right."""
    best = votes.topk(min(k, votes.shape[1]), dim=1).indices  # (m, k)
    return int((best == labels[:, None]).any(dim=1).sum())


def wilson(successes: float, trials: float, z: float = 1.96) -> tuple[float, float]:
    """The interval, in percent, in which the true share lies with 95 % confidence, judged by the number of trials alone.

    Wilson, J. Am. Stat. Assoc. 22 (1927): unlike the normal interval it stays inside 0..100 and is true for few trials.
    It says nothing about another seed of the pre-training: that spread has to be measured by running again.
    """
    if trials == 0:
        return 0.0, 100.0
    share, square = successes / trials, z * z
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)


def rank_me(features: Tensor, eps: float = 1e-7) -> float:
    """The effective number of directions that `features (n, D)` use, between 1 (collapsed) and min(n, D).

    Exponential of the entropy of the normalised singular values: RankMe (Garrido et al., ICML 2023), equation 3.
    """
    values = torch.linalg.svdvals(features.float())  # (min(n, D),)
    share = values / values.sum().clamp_min(eps) + eps
    return float((-(share * share.log()).sum()).exp())


def feature_std(features: Tensor) -> float:
    """The spread of the l2-normalised `features (n, D)` over the samples: about 1 for spread-out features, 0 for a collapse.

    Mean over the dimensions of their standard deviation, times sqrt(D): SimSiam (Chen and He, CVPR 2021), section 4.1.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    return float(unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1]))
