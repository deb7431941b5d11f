"""iBOT: Image BERT Pre-Training with Online Tokenizer (Zhou et al., 2021, arXiv:2111.07832)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from unmask.encoders.build import build, drop_path
from unmask.encoders.initial import dino_init
from unmask.encoders.scaled import scaled
from unmask.heads import ProjectionHead
from unmask.masking import SomeViews
from unmask.self_distillation import SelfDistilled, Terms, Warm, prototypes_for
from unmask.settings import Crops, Train, within
from unmask.targets.teacher import Rounding


@dataclass(frozen=True)
class IBOT:
    """DINO, and behind masks: say of a hidden patch what the teacher, which sees it, says of it.

    Half of the large views are masked, and masked views take part in both losses. Loss: cross-entropy over prototypes, which class token and patches share.
    """

    sentence = "DINO's question between views, and of each masked patch what a running average of the network, which sees it, says of it"
    source = "Zhou et al. 2021, arXiv:2111.07832"
    standing = "experimental"
    paper = Train(epochs=400, batch_size=1024, base_lr=5e-4, min_lr=1e-6, warmup_epochs=10, weight_decay=0.04, weight_decay_end=0.4, betas=(0.9, 0.999), clip=3.0, clip_per="tensor")
    views = Crops(global_scale=(0.25, 1.0), local_scale=(0.05, 0.25), local_crops=10, blur=(1.0, 0.1, 0.5), solarise=(0.0, 0.2, 0.0))  # README.md
    short_rate = 5e-4
    row = ("patches, several views", "block .1–.5 of half the views", "token", "head of prototypes", "EMA teacher, class token and patches → cross-entropy")

    prototypes: int | None = None  # paper: 8192; not given: that, for encoders narrower than ViT-S 4096
    patch_prototypes: int | None = None  # those of patches, where they are not shared
    shared_head: bool = True  # patches are compared with the same prototypes as the class token
    hidden: int = 2048  # width of the head's layers
    bottleneck: int = 256  # width of what is compared with prototypes
    mask_low: float = 0.1  # least share of a masked view that is hidden
    mask_high: float = 0.5  # largest share
    whole: float = 0.5  # chance that a view is not masked
    mask: Literal["block", "random"] = "block"  # rectangles, or patches at random
    teacher_temp: float = 0.07  # of the teacher's answers: lower is sharper
    teacher_temp_start: float = 0.04  # at the start of the run
    teacher_temp_warmup: float = 0.075  # share of the run in which it rises; paper: 30 of 400 epochs
    student_temp: float = 0.1  # of the student's
    centring: Literal["mean", "sinkhorn"] = "mean"  # a running mean of the teacher's logits is taken away, or its answers use all prototypes alike
    views_weight: float = 1.0  # how much the question between views counts
    patches_weight: float = 1.0  # how much that of patches counts
    patches_start: float = 0.0  # share of the run before which nothing is masked, and the temperature for patches rests
    momentum: float | None = None  # of the teacher, a step, at the start; paper: .996; not given: that share of the run, 100 steps at least
    momentum_end: float = 1.0  # and at its end
    norm_last_layer: bool = True  # prototypes have length 1; else it is learned (paper: ViT-S)
    freeze_last_layer: float = 0.0025  # share of the run in which prototypes stay what they are; paper: 1 epoch of 400
    drop_path: float = 0.1  # chance to leave out the last block's branches
    init_std: float | None = None  # deviation of the first weights; paper: .02; not given: that, below ViT-S's width more, as √(384 / width)

    def __post_init__(self):
        within(self, "prototypes patch_prototypes hidden bottleneck", 1)
        within(self, "teacher_temp teacher_temp_start student_temp init_std", 0, above=True)
        within(self, "views_weight patches_weight", 0)
        within(self, "mask_low mask_high whole teacher_temp_warmup patches_start momentum momentum_end freeze_last_layer drop_path", 0, 1)
        if self.mask_low > self.mask_high:
            raise ValueError(f"mask_low must be no more than mask_high, got {self.mask_low:g} and {self.mask_high:g}")

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> SomeViews:
        """Which patches of the global views are hidden."""
        return SomeViews(low=self.mask_low, high=self.mask_high, whole=self.whole, blocks=self.mask == "block", start=self.patches_start)

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> SelfDistilled:
        """A fresh learner over any timm network that takes pictures of any size and a token for what is hidden."""
        encoder = scaled(build(model, img_size, in_chans, patch_size, masked="token", **sizes))
        dino_init(encoder, self.init_std)
        many = prototypes_for(encoder.width, self.prototypes, 8192)
        own = None if self.shared_head else self.patch_prototypes or many
        head = ProjectionHead(encoder.width, many, self.hidden, self.bottleneck, not self.norm_last_layer, own)
        warm = Warm(self.teacher_temp_start, self.teacher_temp, self.teacher_temp_warmup)
        terms = Terms(
            temperature=warm,
            patch_temperature=warm._replace(start=self.patches_start),
            momentum=Rounding(self.momentum, self.momentum_end),
            views=self.views_weight,
            patches=self.patches_weight,
            centring=self.centring,
            student_temperature=self.student_temp,
            frozen=self.freeze_last_layer,
        )
        learner = SelfDistilled(encoder, self.strategy(encoder.own_grid, encoder.patch), head, terms)
        drop_path(encoder, self.drop_path)
        return learner
