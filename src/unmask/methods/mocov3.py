"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers (Chen et al., 2021, arXiv:2104.02057)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unmask.contrast import info_nce, perceptron, processes, summary
from unmask.contrasting import REMEDY, Contrasting, Watched, all_decay
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import adapted, build
from unmask.encoders.initial import moco_init
from unmask.model import Objective
from unmask.settings import Crops, Train, within
from unmask.targets.teacher import Rounding, average


@dataclass(frozen=True)
class MoCoV3:
    """Say of one view of a picture what a running average of the encoder makes of another, and of nobody else's view.

    No masks and no pixels: the rival of masked modelling, and what it is compared with. A projector and a predictor turn the class token into a few numbers; keys are
    those of the average, of all processes. The layer that embeds patches stays random, which keeps the training steady. Loss: InfoNCE, both ways,
    times twice its temperature.
    """

    sentence = "find one view of a picture among all others by what a running average of the encoder makes of the other view"
    source = "Chen et al. 2021, arXiv:2104.02057"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 37.7 (30.9) and linear 47.1 (44.0) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=300, batch_size=4096, base_lr=1.5e-4, min_lr=0.0, warmup_epochs=40, weight_decay=0.1, betas=(0.9, 0.999))
    # main_moco.py: BYOL's two views, here with bilinear crops
    views = Crops(global_scale=(0.08, 1.0), interpolation="bilinear", blur=(1.0, 0.1, 0.0), solarise=(0.0, 0.2, 0.0))
    short_rate = 5e-4  # per 256 pictures, of runs of under 20,000 steps: as DINO's, not measured
    compares = True  # pictures of one batch
    row = ("views", "none", "–", "projector, predictor", "EMA teacher of the other view → InfoNCE")

    temperature: float = 0.2  # by which likenesses are divided
    momentum: float = 0.99  # of the teacher, a step, at the start of the run; it rises by half a cosine
    momentum_end: float = 1.0  # and at its end
    hidden: int = 4096  # columns inside projector and predictor
    out: int = 256  # columns of what is compared
    freeze_patches: bool = True  # the layer that embeds patches stays as it was drawn (section 4.2)

    def __post_init__(self):
        within(self, "temperature", 0, above=True)
        within(self, "momentum momentum_end", 0, 1)
        within(self, "hidden out", 1)

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> Contrasting:
        """A fresh learner over any timm network that the other methods take; the paper's ViT-S has 12 heads (`--heads 12`)."""
        encoder: Any = build(model, img_size, in_chans, patch_size, **sizes)
        moco_init(encoder)
        if self.freeze_patches:
            encoder.trunk.patch_embed.requires_grad_(False)
        contrast = Contrast(encoder, self)
        return Contrasting(encoder, None, {"contrast": contrast}, views=2, groups=all_decay, remedy=REMEDY)


class Contrast(Objective):
    """Queries of the encoder, keys of its average: each of two views finds the other (moco/builder.py)."""

    note = "the keys are those of a teacher that follows: the loss falls from the logarithm of the batch, and says little of the features; kNN and their rank tell"

    def __init__(self, encoder: Adapter, method: MoCoV3):
        super().__init__()
        self.watched = Watched()
        self.method, self.momentum = method, Rounding(method.momentum, method.momentum_end)
        self.projector = perceptron((encoder.width, method.hidden, method.hidden, method.out), last="norm")
        self.predictor = perceptron((method.out, method.hidden, method.out), last="norm")
        self.teacher = adapted(copy.deepcopy(encoder.trunk)).requires_grad_(False)
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def queries(self, view: Tensor) -> Tensor:
        """What is said about one view's summaries (B, D): (B, out). Views go one by one, for the batch norm."""
        return self.predictor(self.projector(view))

    @torch.no_grad()
    def keys(self, x: Tensor) -> list[Tensor]:
        """What the average makes of both views (2B, C, H, W)."""
        return [self.teacher_projector(view) for view in summary(self.teacher(x)).chunk(2)]

    def forward(self, features, mask, x, encoder):
        seen = summary(features).chunk(2)
        first, second = (self.queries(view) for view in seen)
        one, other = self.keys(encoder.take(x))
        likeness = self.method.temperature
        found = info_nce(first, other, likeness) + info_nce(second, one, likeness)
        self.watched.look(seen[0], found / 2, len(first) * processes()[1])
        return 2 * likeness * found

    @torch.no_grad()
    def begin(self, encoder):
        self.move(encoder, 0.0)

    def follow(self, encoder, progress):
        self.move(encoder, self.momentum.at(progress, torch.ones(())))

    @torch.no_grad()
    def move(self, encoder: Adapter, keep: float | Tensor) -> None:
        """The average moves towards the encoder; the counts of its batch norm are its own."""
        for mine, theirs in ((self.teacher.trunk, encoder.trunk), (self.teacher_projector, self.projector)):
            average(mine.parameters(), theirs.parameters(), keep)
