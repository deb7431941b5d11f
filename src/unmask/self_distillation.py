"""A student says of each view of a picture what its teacher, its own running average, says of another: DINO, iBOT and DINOv2 are settings of this learner."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unmask import losses
from unmask.contrast import summary
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import adapted
from unmask.encoders.features import Features
from unmask.encoders.scaled import Scaled, scaled
from unmask.heads import ProjectionHead
from unmask.mask import Mask
from unmask.masking import Masking
from unmask.model import MaskedModel
from unmask.settings import Train
from unmask.targets.teacher import Rounding, average

LEAST, EVEN = 0.02, 0.999  # nats that answers tell of their pictures below which, and entropy of an answer (1: even) above which, a teacher has collapsed


def prototypes_for(width: int, asked: int | None, paper: int) -> int:
    """How many prototypes a head has: as many as were asked for, or the paper's, but for encoders narrower than ViT-S no more than 4096."""
    return asked or (paper if width >= 384 else min(paper, 4096))


class Warm(NamedTuple):
    """A number that stays `first` until the share `start` of the run, then moves evenly to `last` over the share `over`."""

    first: float
    last: float
    over: float = 0.0
    start: float = 0.0

    def at(self, progress: float) -> float:
        return self.first + (self.last - self.first) * (min(max(progress - self.start, 0) / self.over, 1) if self.over else 1)


@dataclass(frozen=True)
class Terms:
    """What is asked for, and how much each part counts; 0 leaves a part out.

    `centring`: what keeps a teacher from saying one thing of everything: a running mean of its logits is taken away (`"mean"`), or its answers are made
    to use all prototypes alike (`"sinkhorn"`). `centred`: whether the mean for patches is over all of them or those that are masked.
    """

    temperature: Warm
    patch_temperature: Warm
    momentum: Rounding
    views: float = 1.0
    patches: float = 0.0
    koleo: float = 0.0
    centring: Literal["mean", "sinkhorn"] = "mean"
    centred: Literal["all", "masked"] = "all"
    centre_momentum: float = 0.9
    student_temperature: float = 0.1
    frozen: float = 0.0  # share of the run in which the prototypes stay what they are
    layer_decay: float = 1.0  # of the learning rate, from the end of the encoder to its start
    patch_rate: float = 1.0  # more of that for the patch embedding


class Centre(nn.Module):
    """A running mean of logits, moved after each step by what was collected in it: over the parts of a batch, and over processes."""

    def __init__(self, columns: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("sums", torch.zeros(columns), persistent=False)
        self.register_buffer("count", torch.zeros(1), persistent=False)

    def collect(self, logits: Tensor, counted: Tensor | None = None) -> None:
        """Add logits (n, K), of which those are there whose `counted` (n,) is 1."""
        self.sums.add_((logits if counted is None else logits * counted.unsqueeze(1)).sum(0))
        self.count.add_(len(logits) if counted is None else counted.sum())

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        joint = losses.over_processes(torch.cat([self.sums, self.count]))
        mean = torch.where(joint[-1] > 0, joint[:-1] / joint[-1].clamp(min=1), self.mean)
        self.mean.lerp_(mean, 1 - momentum)
        self.sums.zero_()
        self.count.zero_()


class SelfDistilled(MaskedModel):
    """Views in, one loss out. `patch_head`: a head of its own for patches; not given: `head` says what is said about them too.

    The teacher sees the global views whole; the student sees them behind the mask, where there is one, and the local ones. Teacher, centres and
    temperatures are state of the learner: saved with it, moved after or set before the step.
    """

    remedy = "Start again with a lower --lr, a longer warm-up or a higher --method.momentum."

    def __init__(self, encoder: Adapter, masking: Masking | None, head: ProjectionHead, terms: Terms, patch_head: ProjectionHead | None = None):
        super().__init__(encoder, masking, {}, views=2)
        self.terms, self.now = terms, 0.0
        self.head, self.patch_head = head, patch_head
        own = adapted(copy.deepcopy(encoder.trunk))
        parts = {"encoder": scaled(own) if isinstance(encoder, Scaled) else own, "head": copy.deepcopy(head)}
        parts |= {} if patch_head is None else {"patch_head": copy.deepcopy(patch_head)}
        self.teacher = nn.ModuleDict(parts).requires_grad_(False).eval()
        last = head if patch_head is None else patch_head
        self.centre = Centre(len(head.last_layer.weight_v))
        self.patch_centre = Centre(len((last.last_layer if last.last_layer2 is None else last.last_layer2).weight_v)) if terms.patches else None
        for name, value in (("temperature", terms.temperature.first), ("patch_temperature", terms.patch_temperature.first), ("steps", 0.0)):
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("told", torch.zeros(2), persistent=False)  # of the last step: entropy of an answer, and of the mean answer

    def train(self, mode: bool = True) -> SelfDistilled:
        """Training is for the student."""
        super().train(mode)
        self.teacher.eval()
        return self

    def followed(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each part of the teacher, and the student's that it follows."""
        pairs = [(self.teacher["encoder"].trunk, self.encoder.trunk), (self.teacher["head"], self.head)]
        return pairs if self.patch_head is None else [*pairs, (self.teacher["patch_head"], self.patch_head)]

    @torch.no_grad()
    def begin(self):
        super().begin()
        for mine, theirs in self.followed():
            mine.load_state_dict(theirs.state_dict())

    def before_step(self, progress, u):
        super().before_step(progress, u)
        self.now = progress
        self.temperature.fill_(self.terms.temperature.at(progress))
        self.patch_temperature.fill_(self.terms.patch_temperature.at(progress))

    def forward(self, x, noise=None, mask=None, rows=None):
        if mask is None:
            mask = self.draw_mask(x, noise, rows)
        whole = self.encoder.take(x)  # (2B, C, H, W), view-major
        features = self.encoder(whole, mask)
        views = [summary(features)]
        if isinstance(x, dict) and "local" in x:
            views.append(summary(self.encoder(x["local"])))
        with torch.no_grad():
            taught = self.teacher["encoder"](whole)
        found = {}
        if self.terms.views:
            said = self.head(torch.cat(views)).unflatten(0, (-1, len(whole) // 2))  # (2 + L, B, K)
            found["views"] = self.terms.views * losses.between_views(said, self.truth(summary(taught)), self.terms.student_temperature)
        if self.terms.patches and mask is not None:
            found["patches"] = self.terms.patches * self.between_patches(features, taught, mask)
        if self.terms.koleo:
            found["koleo"] = self.terms.koleo * torch.stack([losses.koleo(view) for view in views[0].chunk(2)]).sum()
        return found | {"loss": torch.stack(list(found.values())).sum()}

    @torch.no_grad()
    def truth(self, taught: Tensor) -> Tensor:
        """The teacher's shares over prototypes of each view, (2, B, K), from what it sees of them (2B, D)."""
        logits = self.teacher["head"](taught).float()
        if self.terms.centring == "sinkhorn":
            shares = losses.sinkhorn(logits, self.temperature)
        else:
            shares = ((logits - self.centre.mean) / self.temperature).softmax(-1)
            if self.training:
                self.centre.collect(logits)
        self.told.copy_(torch.stack([entropy(shares).mean(), entropy(shares.mean(0))]))
        return shares.unflatten(0, (2, -1))

    def between_patches(self, features: Features, taught: Features, mask: Mask) -> Tensor:
        """What student and teacher say about masked patches; a mean a view, and views without a mask count as 0."""
        head, centre = self.head if self.patch_head is None else self.patch_head, self.patch_centre
        assert centre is not None
        weight = torch.ones_like(mask.masked_ids, dtype=torch.float32) / mask.masked_ids.shape[1] if mask.weight is None else mask.weight
        with torch.no_grad():
            teacher = self.teacher["head" if self.patch_head is None else "patch_head"]
            everywhere = self.terms.centring == "mean" and self.terms.centred == "all"
            logits = teacher.patches(taught.patches if everywhere else mask.masked(taught.patches)).float()  # (2B, N or M, K)
            counted = None if everywhere else (weight > 0).float().flatten()
            rows = logits.flatten(0, 1)
            if self.terms.centring == "sinkhorn":
                shares = losses.sinkhorn(rows, self.patch_temperature, counted).view_as(logits)
            else:
                if self.training:
                    centre.collect(rows, counted)
                logits = mask.masked(logits) if everywhere else logits  # (2B, M, K)
                shares = ((logits - centre.mean) / self.patch_temperature).softmax(-1)
        each = losses.self_distillation(head.patches(mask.masked(features.patches)), shares, self.terms.student_temperature)  # (2B, M)
        return (each * weight).sum(1).mean()

    @torch.no_grad()
    def after_step(self, progress):
        self.steps.copy_(torch.where(self.steps == 0, 1 / progress, self.steps))
        keep = self.terms.momentum.at(self.now, self.steps)
        for mine, theirs in self.followed():
            average(mine.parameters(), theirs.parameters(), keep)
        if self.terms.centring == "mean":
            for centre in (self.centre, self.patch_centre):
                if centre is not None:
                    centre.follow(self.terms.centre_momentum)

    def parameter_groups(self, train: Train) -> list[dict[str, Any]]:
        """Vectors and biases do not decay, tokens and places do; prototypes have no rate in a first share of the run."""
        groups: dict[tuple[float, bool, float], dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                kind = self.rate(name), ".weight_" in name, train.weight_decay if parameter.dim() > 1 and not name.endswith(".bias") else 0.0
                fresh = {"params": [], "weight_decay": kind[2], "lr": partial(self.rate_at, kind[0], kind[1])}
                groups.setdefault(kind, fresh)["params"].append(parameter)
        return list(groups.values())

    def rate(self, name: str) -> float:
        """What the learning rate of a parameter is multiplied by: the further from the encoder's end, the smaller (dinov2, utils/param_groups.py)."""
        if self.terms.layer_decay == 1 or not name.startswith("encoder."):
            return 1.0
        depth = len(self.encoder.trunk.blocks)
        inner = name.removeprefix("encoder.").removeprefix("trunk.")
        block = re.match(r"blocks\.(\d+)\.", inner)
        layer = int(block[1]) + 1 if block else depth + 1 if inner.startswith("norm") else 0
        return self.terms.layer_decay ** (depth + 1 - layer) * (self.terms.patch_rate if inner.startswith("patch_embed") else 1.0)

    def rate_at(self, rate: float, last: bool, progress: float) -> float:
        return 0.0 if last and progress < self.terms.frozen else rate

    def handed(self):
        """The teacher's: what the papers publish and judge."""
        return self.teacher["encoder"]

    def notes(self):
        return ["the target is a teacher that follows the encoder: its loss may rise while the features get better; kNN and the features' rank tell"]

    def signs(self):
        """Entropy of an answer of the teacher (1: every prototype alike), and what its answers tell of their pictures: how far they differ, in nats."""
        each, mean = self.told.tolist()
        return {"teacher_entropy": each / math.log(len(self.centre.mean)), "teacher_information": mean - each}

    def collapsed(self):
        signs = self.signs()
        if signs["teacher_entropy"] > EVEN:
            return "the teacher's answers tell nothing, every prototype has the same share", f"A lower --method.teacher_temp sharpens them. {self.remedy}"
        if signs["teacher_information"] < LEAST:
            return "the teacher says one thing of every picture", f"Let --method.centring sinkhorn keep it from that, or a higher --method.teacher_temp. {self.remedy}"
        return None


def entropy(shares: Tensor) -> Tensor:
    """Of shares (…, K), in nats."""
    return torch.special.entr(shares).sum(-1)
