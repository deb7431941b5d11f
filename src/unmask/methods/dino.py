"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al., 2021, arXiv:2104.14294)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from unmask.encoders.build import build, drop_path
from unmask.encoders.initial import dino_init
from unmask.encoders.scaled import scaled
from unmask.heads import ProjectionHead
from unmask.self_distillation import SelfDistilled, Terms, Warm, prototypes_for
from unmask.settings import Crops, Train, within
from unmask.targets.teacher import Rounding


@dataclass(frozen=True)
class DINO:
    """Say of one view of a picture, large or small, what a teacher says of another large one. Nothing is masked.

    What is said is a share of each of many prototypes. The teacher is the student's running average; its answers are centred, so that it does not
    say one thing of everything, and sharpened, so that it says something. Loss: cross-entropy.
    """

    sentence = "say of a view of the picture, large or small, what a running average of the network says of another large one"
    source = "Caron et al. 2021, arXiv:2104.14294"
    standing = "experimental: CIFAR-10, 100,000 pictures seen, kNN 30.6 (30.2) and linear 42.7 (40.5) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=100, batch_size=512, base_lr=5e-4, min_lr=1e-6, warmup_epochs=10, weight_decay=0.04, weight_decay_end=0.4, betas=(0.9, 0.999), clip=3.0, clip_per="tensor")
    views = Crops(global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), local_crops=8, blur=(1.0, 0.1, 0.5), solarise=(0.0, 0.2, 0.0))  # main_dino.py
    short_rate = 5e-4
    row = ("patches, several views", "none", "–", "head of prototypes", "EMA teacher, class token → cross-entropy")

    prototypes: int | None = None  # paper: 65536; not given: that, for encoders narrower than ViT-S 4096
    hidden: int = 2048  # width of the head's layers
    bottleneck: int = 256  # width of what is compared with prototypes
    teacher_temp: float = 0.04  # of the teacher's answers: lower is sharper; paper: .04 or .07
    teacher_temp_start: float = 0.04  # at the start of the run
    teacher_temp_warmup: float = 0.3  # share of the run in which it rises
    student_temp: float = 0.1  # of the student's
    centring: Literal["mean", "sinkhorn"] = "mean"  # a running mean of the teacher's logits is taken away, or its answers use all prototypes alike
    momentum: float | None = None  # of the teacher, a step, at the start; paper: .996 of 125,000 steps; not given: the same share of the run, 100 steps at least
    momentum_end: float = 1.0  # and at its end
    norm_last_layer: bool = True  # prototypes have length 1; else it is learned
    freeze_last_layer: float = 0.01  # share of the run in which prototypes stay what they are; paper: 1 epoch of 100
    drop_path: float = 0.1  # chance to leave out the last block's branches
    init_std: float | None = None  # deviation of the first weights; paper: .02; not given: that, below ViT-S's width more, as √(384 / width)

    def __post_init__(self):
        within(self, "prototypes hidden bottleneck", 1)
        within(self, "teacher_temp teacher_temp_start student_temp init_std", 0, above=True)
        within(self, "teacher_temp_warmup momentum momentum_end freeze_last_layer drop_path", 0, 1)

    def build(
        self,
        model: str | nn.Module = "vit_small_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> SelfDistilled:
        """A fresh learner over any timm network that takes pictures of any size."""
        encoder = scaled(build(model, img_size, in_chans, patch_size, **sizes))
        dino_init(encoder, self.init_std)
        head = ProjectionHead(encoder.width, prototypes_for(encoder.width, self.prototypes, 65536), self.hidden, self.bottleneck, not self.norm_last_layer)
        warm = Warm(self.teacher_temp_start, self.teacher_temp, self.teacher_temp_warmup)
        momentum = Rounding(self.momentum, self.momentum_end)
        terms = Terms(warm, warm, momentum, centring=self.centring, student_temperature=self.student_temp, frozen=self.freeze_last_layer)
        learner = SelfDistilled(encoder, None, head, terms)
        drop_path(encoder, self.drop_path)
        return learner
