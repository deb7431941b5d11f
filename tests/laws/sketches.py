"""Hard neighbours of MAE, in a few lines each, of the core's parts: proof that the walls stand where they should.

They are sketches: small heads, fixed rates, no recipes. The real ones become files of `methods/`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_tensor_autograd
from torch.nn import functional as F

from unmask.encoders.build import build
from unmask.encoders.vit import ViT
from unmask.mask import Mask
from unmask.masking import Block, Masking
from unmask.model import MaskedModel, Objective


class Teacher(nn.Module):
    """A frozen copy that follows: the moving average of a student."""

    def __init__(self, student: nn.Module, decay: float = 0.99):
        super().__init__()
        self.copy, self.decay = copy.deepcopy(student).requires_grad_(False), decay

    @torch.no_grad()
    def forward(self, *inputs):
        return self.copy(*inputs)

    @torch.no_grad()
    def follow(self, student: nn.Module):
        for mine, theirs in zip(self.copy.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)


def over_processes() -> bool:
    return torch.distributed.is_initialized()


# --------------------------------------------------------------------------------------------------------------- iBOT


class SomeBlocks(Masking):
    """Blocks on half of the views, of a share drawn a view; lists are padded to the largest count."""

    def __init__(self, low: float = 0.1, high: float = 0.5, chance: float = 0.5):
        super().__init__(high)
        self.low, self.high, self.chance, self.block = low, high, chance, Block(high)

    def draws(self, grid):
        return 2 + self.block.draws(grid)

    def __call__(self, grid, noise, scores=None):
        N = math.prod(grid)
        budget = N * (self.low + (self.high - self.low) * noise[:, 1]) * (noise[:, 0] < self.chance)  # (B,)
        table, order = noise[:, 2:].split([4 * self.block.table, N], dim=1)
        covered = self.block.rectangles(grid, budget, table.unflatten(1, (-1, 4))).flatten(1)  # (B, N)
        order = (covered + order).argsort(dim=1, descending=True, stable=True)
        mask = Mask(order[:, int(N * self.high) :], order[:, : int(N * self.high)], grid)
        hits = mask.masked(covered).float()
        return Mask(mask.visible_ids, mask.masked_ids, grid, hits / hits.sum(1, keepdim=True).clamp(min=1))  # a mean a view


class Head(nn.Module):
    """Features to logits over prototypes."""

    def __init__(self, width: int, prototypes: int = 64):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 32))
        self.prototypes = nn.Parameter(torch.randn(prototypes, 32))

    def forward(self, x):
        return F.linear(F.normalize(self.layers(x), dim=-1), F.normalize(self.prototypes, dim=-1))


class SelfDistil(Objective):
    """A view's patches say what the teacher sees behind the mask; its class token what the teacher says of the other views."""

    def __init__(self, encoder: ViT):
        super().__init__()
        self.head = Head(encoder.width)
        self.teacher, self.teacher_head = Teacher(encoder), Teacher(self.head)
        for name in ("centre", "patch_centre", "seen", "patches_seen"):
            self.register_buffer(name, torch.zeros(64))

    def forward(self, features, mask, x, encoder):
        taught = self.teacher(x["global"])
        truth, cls = self.teacher_head(taught.patches), self.teacher_head(taught.prefix[:, 0])  # (2B, N, K), (2B, K)
        self.watch(cls, truth)
        truth, cls = ((truth - self.patch_centre) / 0.07).softmax(-1), ((cls - self.centre) / 0.07).softmax(-1)
        patch = -(mask.masked(truth) * (self.head(mask.masked(features.patches)) / 0.1).log_softmax(-1)).sum(-1)  # (2B, M)
        said = self.head(torch.cat([features.prefix[:, 0], encoder(x["local"]).prefix[:, 0]]))
        said = (said / 0.1).log_softmax(-1).unflatten(0, (-1, len(cls) // 2))  # (2 + L, B, K)
        pairs = -torch.einsum("abk,cbk->acb", cls.unflatten(0, (2, -1)), said)  # (2, 2 + L, B)
        other = torch.ones(pairs.shape[:2], device=pairs.device).fill_diagonal_(0).unsqueeze(-1)
        return (patch * mask.weight).sum(1).mean() + (pairs * other).sum() / (other.sum() * pairs.shape[-1])

    @torch.no_grad()
    def watch(self, cls: Tensor, patches: Tensor):
        means = torch.stack([cls.mean(0), patches.mean((0, 1))])
        if over_processes():
            torch.distributed.all_reduce(means)
            means = means / torch.distributed.get_world_size()
        self.seen.copy_(means[0])
        self.patches_seen.copy_(means[1])

    def follow(self, encoder, progress):
        self.teacher.follow(encoder)
        self.teacher_head.follow(self.head)
        self.centre.lerp_(self.seen, 0.01)
        self.patch_centre.lerp_(self.patches_seen, 0.01)


@dataclass(frozen=True)
class IBOT:
    """Two global views behind padded masks, local views, a teacher with centres."""

    def build(self, **trunk):
        encoder = build(**trunk, masked="token")
        return MaskedModel(encoder, SomeBlocks(), {"distil": SelfDistil(encoder)}, views=2)


# ------------------------------------------------------------------------------------------------------------- SimCLR


class Contrast(Objective):
    """Find the other view of a picture among all views of all pictures, those of other processes too."""

    def __init__(self, width: int, temperature: float = 0.2):
        super().__init__()
        self.head, self.temperature = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 32)), temperature

    def forward(self, features, mask, x, encoder):
        mine = F.normalize(self.head(features.prefix[:, 0]), dim=-1)  # (2b, K), view-major
        b, rank = len(mine) // 2, torch.distributed.get_rank() if over_processes() else 0
        views = mine.unflatten(0, (2, b))
        views = all_gather_tensor_autograd(views, 1, torch.distributed.group.WORLD) if over_processes() else views  # (2, B, K)
        B = views.shape[1]
        own = torch.arange(b, device=mine.device) + rank * b
        places = torch.cat([own, own + B])  # of my rows among all
        logits = (mine @ views.flatten(0, 1).T / self.temperature).scatter(1, places[:, None], -torch.inf)  # (2b, 2B)
        return F.cross_entropy(logits, (places + B) % (2 * B))


@dataclass(frozen=True)
class SimCLR:
    """Two views, no mask."""

    def build(self, **trunk):
        encoder = build(**trunk)
        return MaskedModel(encoder, None, {"contrast": Contrast(encoder.width)}, views=2)
