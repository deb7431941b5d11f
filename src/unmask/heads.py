"""Heads of what is said about a view: features to logits over prototypes (DINO, iBOT, DINOv2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Prototypes(nn.Module):
    """Logits of directions (…, D) over K prototypes: the cosine with each, times its length. Names of torch's weight norm, as in the published files.

    `free`: whether the lengths are trained; else they stay 1.
    """

    def __init__(self, width: int, prototypes: int, free: bool = False):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=free)
        self.weight_v = nn.Parameter(nn.Linear(width, prototypes, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


class ProjectionHead(nn.Module):
    """Three layers, l2-normalised, then prototypes; `patch_prototypes`: as many of its own for patches, which share the layers (iBOT).

    Source: DINOHead (facebookresearch/dino, vision_transformer.py) and iBOTHead (bytedance/ibot, models/head.py), without their BatchNorm.
    """

    def __init__(self, width: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256, free: bool = False, patch_prototypes: int | None = None):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(bottleneck, prototypes, free)
        self.last_layer2 = Prototypes(bottleneck, patch_prototypes, free) if patch_prototypes else None

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))  # (…, D) -> (…, K)

    def patches(self, x: Tensor) -> Tensor:
        """What is said about patches: by prototypes of their own, where there are some."""
        last = self.last_layer if self.last_layer2 is None else self.last_layer2
        return last(F.normalize(self.mlp(x), dim=-1))
