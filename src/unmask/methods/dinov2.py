"""DINOv2: Learning Robust Visual Features without Supervision (Oquab et al., 2023, arXiv:2304.07193)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from unmask.encoders.build import build, drop_path
from unmask.encoders.initial import dino_init, layer_scale
from unmask.encoders.scaled import scaled
from unmask.heads import ProjectionHead
from unmask.masking import HalfOfViews
from unmask.self_distillation import SelfDistilled, Terms, Warm, prototypes_for
from unmask.settings import Crops, Train, within
from unmask.targets.teacher import Rounding


@dataclass(frozen=True)
class DINOv2:
    """iBOT's two questions with spread-out features: the class tokens of different pictures are pushed apart (KoLeo).

    Numbers of the recipe for ImageNet alone (configs/train/vitl16_short.yaml, whose patches have 16 pixels; the published networks', and so timm's, have 14); for large runs heads of their own for patches (`shared_head` off)
    and Sinkhorn's centring. `registers`: tokens without a place that the network may use as it likes (Darcet et al. 2023).
    """

    sentence = "iBOT's questions between views and of masked patches, and class tokens of different pictures pushed apart; registers if you like"
    source = "Oquab et al. 2023, arXiv:2304.07193"
    standing = "experimental"
    # the paper's rate grows with the root of the batch: 4e-3 at 1024, so 2e-3 at 256 and 5.66e-3 at 2048
    paper = Train(epochs=100, batch_size=2048, base_lr=2e-3, lr_by="root", min_lr=1e-6, warmup_epochs=10, weight_decay=0.04, weight_decay_end=0.4, betas=(0.9, 0.999), clip=3.0, clip_per="module")
    # blur is applied where it was meant to be left out, data/transforms.py: 0, .9 and .5, with nine taps
    views = Crops(global_scale=(0.32, 1.0), local_scale=(0.05, 0.32), local_crops=8, blur=(0.0, 0.9, 0.5), blur_kernel="9 taps", solarise=(0.0, 0.2, 0.0))
    short_rate = 2e-3
    row = ("patches, several views", "block .1–.5 of half the views", "token", "heads of prototypes", "EMA teacher, class token and patches → cross-entropy + KoLeo")

    prototypes: int | None = None  # paper: 65536, in large runs 131072; not given: the former, for encoders narrower than ViT-S 4096
    patch_prototypes: int | None = None  # those of patches, where they have a head of their own
    shared_head: bool = True  # class token and patches have one head; else one each
    hidden: int = 2048  # width of the heads' layers
    bottleneck: int = 256  # width of what is compared with prototypes; paper: 384 for the class token where heads are not shared
    patch_bottleneck: int = 256  # the same for patches, where they have a head of their own
    registers: int = 0  # tokens beside the class token, without a place in the picture; Darcet et al.: 4
    mask_low: float = 0.1  # least share of a masked view that is hidden
    mask_high: float = 0.5  # largest share
    masked_views: float = 0.5  # share of the large views of a step that are masked
    koleo: float = 0.1  # how much it counts that pictures are apart
    views_weight: float = 1.0  # how much the question between views counts
    patches_weight: float = 1.0  # how much that of patches counts
    centring: Literal["mean", "sinkhorn"] = "mean"  # a running mean of the teacher's logits is taken away, or its answers use all prototypes alike (large runs)
    teacher_temp: float = 0.07  # of the teacher's answers: lower is sharper
    teacher_temp_start: float = 0.04  # at the start of the run
    teacher_temp_warmup: float = 0.3  # share of the run in which it rises; paper: 30 of 100 epochs
    student_temp: float = 0.1  # of the student's
    momentum: float | None = None  # of the teacher, a step, at the start; paper: .992 of 125,000 steps; not given: the same share of the run, 100 steps at least
    momentum_end: float = 1.0  # and at its end
    freeze_last_layer: float = 0.01  # share of the run in which prototypes stay what they are; paper: 1 epoch of 100
    layer_decay: float = 0.9  # of the learning rate, a block, from the encoder's end to its start; large runs: 1
    patch_embed_rate: float = 0.2  # of the learning rate for the patch embedding, beside that
    drop_path: float = 0.3  # chance to leave out a block's branches
    layer_scale: float = 1e-5  # where the branches of networks with layer scale (vit_*_dinov2) start
    init_std: float | None = None  # deviation of the first weights; paper: .02; not given: that, below ViT-S's width more, as √(384 / width)

    def __post_init__(self):
        within(self, "prototypes patch_prototypes hidden bottleneck patch_bottleneck", 1)
        within(self, "registers koleo views_weight patches_weight", 0)
        within(self, "teacher_temp teacher_temp_start student_temp layer_scale init_std", 0, above=True)
        within(self, "mask_low mask_high masked_views teacher_temp_warmup momentum momentum_end freeze_last_layer layer_decay patch_embed_rate drop_path", 0, 1)
        if self.mask_low > self.mask_high:
            raise ValueError(f"mask_low must be no more than mask_high, got {self.mask_low:g} and {self.mask_high:g}")

    @property
    def compares(self) -> bool:
        """Whether pictures of one batch are compared: KoLeo would find a picture alone next to itself."""
        return self.koleo > 0

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> HalfOfViews:
        """Which patches of the global views are hidden."""
        return HalfOfViews(low=self.mask_low, high=self.mask_high, views=self.masked_views)

    def build(
        self,
        model: str | nn.Module = "vit_large_patch14_dinov2",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> SelfDistilled:
        """A fresh learner over any timm network that takes pictures of any size and a token for what is hidden."""
        if self.registers:
            sizes["registers"] = self.registers
        encoder = build(model, img_size, in_chans, patch_size, masked="token", **sizes)
        encoder = encoder if self.registers else scaled(encoder)  # with registers the published networks read places by size, as timm does
        dino_init(encoder, self.init_std, tokens=1e-6)
        layer_scale(encoder, self.layer_scale)
        many, free = prototypes_for(encoder.width, self.prototypes, 65536), True
        head = ProjectionHead(encoder.width, many, self.hidden, self.bottleneck, free)
        own = None if self.shared_head else ProjectionHead(encoder.width, self.patch_prototypes or many, self.hidden, self.patch_bottleneck, free)
        warm = Warm(self.teacher_temp_start, self.teacher_temp, self.teacher_temp_warmup)
        terms = Terms(
            temperature=warm,
            patch_temperature=warm,
            momentum=Rounding(self.momentum, self.momentum_end, window=0.001),
            views=self.views_weight,
            patches=self.patches_weight,
            koleo=self.koleo,
            centring=self.centring,
            centred="masked",
            student_temperature=self.student_temp,
            frozen=self.freeze_last_layer,
            layer_decay=self.layer_decay,
            patch_rate=self.patch_embed_rate,
        )
        learner = SelfDistilled(encoder, self.strategy(encoder.own_grid, encoder.patch), head, terms, own)
        drop_path(encoder, self.drop_path, rising=False)
        return learner
