"""LARS: each matrix moves by a fixed share of its own size, so that a linear probe trains at batches of many thousands."""

from __future__ import annotations

from collections.abc import Iterable

import timm.optim.lars
from torch import Tensor


class Lars(timm.optim.lars.Lars):
    """timm's LARS with the words that make it MAE's (You et al. 2017, arXiv:1708.03888; mae, util/lars.py).

    Matrices: the gradient times trust·|p|/|g| (1 where either norm is 0). Vectors, in a group of their own: the plain
    gradient. Momentum gathers that, and the learning rate multiplies the momentum. Equal to the official code bit for bit
    without weight decay, which is how the probe uses it; with decay timm adds the two norms where the official code takes
    the norm of the sum.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 0.0, weight_decay: float = 0.0, momentum: float = 0.9, trust: float = 0.001):
        every = list(parameters)
        matrices = {"params": [p for p in every if p.dim() > 1], "weight_decay": weight_decay, "always_adapt": True}
        vectors = {"params": [p for p in every if p.dim() <= 1], "weight_decay": 0.0}
        groups = [group for group in (matrices, vectors) if group["params"]]
        super().__init__(groups, lr=lr, momentum=momentum, trust_coeff=trust, eps=0.0)
