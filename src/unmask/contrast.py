"""Views of a picture told from those of other pictures, of all processes together: projectors, their batch norm, and the losses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives
from torch.nn import functional as F

from unmask.encoders.features import Features

# with gradient, and fit for a compiled graph; torch renamed it after 2.11
all_gather = vars(collectives).get("all_gather_single_autograd") or collectives.all_gather_tensor_autograd


def processes() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def gathered(x: Tensor) -> Tensor:
    """The rows (b, …) of all processes, the first process's first: (B, …). Gradients go back to where the rows came from."""
    return x if processes()[1] == 1 else all_gather(x.contiguous(), 0, torch.distributed.group.WORLD)


def own_rows(x: Tensor) -> Tensor:
    """Where this process's rows (b, …) lie among those of all: (b,) ids."""
    return torch.arange(len(x), device=x.device) + processes()[0] * len(x)


class BatchNorm(nn.BatchNorm1d):
    """torch's, over the rows (b, D) of all processes while it trains: torch's own way to do that wants a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        x, world = x.float(), processes()[1]
        if not self.training or world == 1:
            return super().forward(x)
        mean = gathered(x.mean(0, keepdim=True)).mean(0)
        var = gathered((x - mean).square().mean(0, keepdim=True)).mean(0)
        with torch.no_grad():
            rows, share = len(x) * world, self.momentum or 0.0
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * rows / (rows - 1), share)
            self.num_batches_tracked.add_(1)
        normed = (x - mean) * (var + self.eps).rsqrt()
        return normed * self.weight + self.bias if self.affine else normed


def perceptron(widths: Sequence[int], last: Literal["nothing", "norm", "scale", "shift"] = "nothing") -> nn.Sequential:
    """Linear layers without biases, with batch norm and ReLU between them. Behind the last: nothing, a batch norm that only norms, one with a scale, or one with
    scale and shift.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), BatchNorm(after), nn.ReLU()]
    layers = layers[:-2]
    if last != "nothing":
        norm = BatchNorm(widths[-1], affine=last != "norm")
        if last == "scale":
            norm.bias.requires_grad_(False)
        layers.append(norm)
    return nn.Sequential(*layers)


def summary(features: Features) -> Tensor:
    """One vector a view (B, D): its class token, the first of the prefix; of networks without a prefix the mean of the patches."""
    return features.prefix[:, 0] if features.prefix.shape[1] else features.patches.mean(1)


def info_nce(said: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding, for each row of `said` (b, K), the key (b, K) of its own picture among those of all processes: a mean (van den Oord et al. 2018).

    Likeness is the cosine over `temperature`.
    """
    logits = F.normalize(said.float(), dim=-1) @ gathered(F.normalize(keys.float(), dim=-1)).T / temperature  # (b, B)
    return F.cross_entropy(logits, own_rows(said))


def nt_xent(said: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding the other view of a picture among all other views of all pictures, both ways: `said` (2b, K), view-major (SimCLR, objective.py).

    The sum of the two views' means, so twice the usual mean.
    """
    views = F.normalize(said.float(), dim=-1).unflatten(0, (2, -1))  # (2, b, K)
    every = [gathered(view) for view in views]  # (B, K) each
    own, loss = own_rows(views[0]), said.new_zeros((), dtype=torch.float32)
    for mine, (same, other) in zip(views, (every, every[::-1])):
        alike = (mine @ same.T).scatter(1, own.unsqueeze(1), -torch.inf)  # (b, B): a view is not its own answer
        loss = loss + F.cross_entropy(torch.cat([mine @ other.T, alike], dim=1) / temperature, own)
    return loss


def unit(x: Tensor) -> Tensor:
    """Rows at length one, x / (‖x‖ + 1e-8), as SigLIP's code has it (big_vision, two_towers.py)."""
    x = x.float()
    return x / (x.norm(dim=-1, keepdim=True) + 1e-8)


def sigmoid_pairs(images: Tensor, texts: Tensor, log_temperature: Tensor, bias: Tensor) -> Tensor:
    """Does this text belong to this picture? One yes-or-no question for each pair of a picture and a text of all processes (Zhai et al. 2023, arXiv:2303.15343).

    `images` and `texts` (b, K), row by row together, of any length; the likeness is exp(log_temperature)·cosine + bias. A sum over texts and a mean
    over pictures, not divided by the number of pairs; the mean over processes is the loss of the whole batch.
    """
    logits = log_temperature.exp() * unit(images) @ gathered(unit(texts)).T + bias  # (b, B)
    own = torch.zeros_like(logits).scatter(1, own_rows(images).unsqueeze(1), 1.0)
    return F.binary_cross_entropy_with_logits(logits, own, reduction="none").sum(1).mean()
