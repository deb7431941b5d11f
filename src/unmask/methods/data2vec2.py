"""data2vec 2.0, images: Efficient Self-supervised Learning with Contextualized Targets (Baevski et al., 2022, arXiv:2212.07525)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from unmask import losses
from unmask.decoders import Convolutions
from unmask.encoders.build import build
from unmask.encoders.post_norm import PostNorm
from unmask.encoders.vit import ViT, fix_places, mae_init
from unmask.errors import Refused
from unmask.masking import InverseBlock
from unmask.model import MaskedModel, Predict, Step
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.teacher import Momentum, Teacher, mean_of_branches

TOPS = {12: 10, 24: 18, 32: 24}  # blocks: layers in the target (config/v2: base 10, large 18, huge 24)


@dataclass(frozen=True)
class Data2Vec2:
    """Leave a few squares of the picture, hide the rest in many ways at once, and say what a teacher that sees it whole makes of it.

    The encoder sees visible patches only, a small convolution decoder answers, and all masks of a picture share one look of the
    teacher: that is what makes it fast. Loss: squared error, and the class token says the mean over the picture.
    """

    sentence = "leave 20 % of the picture, in squares; of many masks at once predict what a running average of the encoder makes of the whole"
    source = "Baevski et al. 2022, arXiv:2212.07525"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 35.6 (30.5) and linear 47.4 (44.8) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=75, batch_size=256, base_lr=1e-3, warmup_epochs=10, weight_decay=0.05, betas=(0.9, 0.95), clip=4.0)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # MAE's
    row = ("patches", "inverse block .8, many masks a picture", "dropped", "convolutions", "EMA teacher, mean of feed-forward branches → squared error")

    mask_ratio: Ratio = Ratio(0.8, 0.8)  # share of patches hidden (config/v2/base_images_only_task.yaml)
    masks: int | None = None  # masks a picture; paper: 16; not given: that, 4 below ViT-B
    square: int = 3  # patches a side of the squares that stay visible
    top: int | None = None  # layers of the teacher that make the target; paper: 10 of 12, 18 of 24, 24 of 32; not given: these, else five sixths
    momentum: float | None = None  # of the teacher, a step, at the start; paper: .9998 of 375,300; not given: the same share of the run
    momentum_end: float | None = None  # and after 27 % of the run; paper: .99999; not given: the same share of the run
    cls_weight: float = 2.56  # of the class token's term, a mean over rows; the paper sums .01 over the 256 rows of a GPU
    decoder_kernel: int = 3  # patches a side that a convolution sees
    decoder_layers: int = 6  # convolutions
    decoder_noise: float = 0.01  # deviation of what stands in hidden places

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "masks square top decoder_kernel decoder_layers", 1)
        within(self, "momentum momentum_end", 0, 1)
        within(self, "cls_weight decoder_noise", 0)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> InverseBlock:
        """Which patches are hidden."""
        return InverseBlock(self.mask_ratio, self.square)

    def build(
        self,
        model: str | nn.Module = "data2vec2_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a timm VisionTransformer; the paper's, with norms after the branches, is `data2vec2_*`."""
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", **sizes)
        blocks = list(encoder.trunk.blocks)
        if not isinstance(encoder.trunk, VisionTransformer) or not all(type(block) in (Block, PostNorm) for block in blocks):
            raise Refused("data2vec2 predicts feed-forward branches, which it finds in plain blocks only: choose data2vec2_* or a plain vit_*")
        width, depth = encoder.width, len(blocks)
        top = min(self.top or TOPS.get(depth, max(1, round(depth * 5 / 6))), depth)
        groups = next(n for n in range(16, 0, -1) if width % n == 0)
        decoder = Convolutions(width, width, width, self.decoder_layers, self.decoder_kernel, groups, self.decoder_noise)
        mae_init(encoder)
        fix_places(encoder.trunk)
        momentum = Momentum(self.momentum, self.momentum_end, until=0.27, windows=(0.0133, 0.2665))
        teacher = Teacher(Branches(copy.deepcopy(encoder.trunk), layers=tuple(range(-top, 0))), mean_of_branches, momentum)
        also = Whole(self.cls_weight) if encoder.trunk.cls_token is not None and self.cls_weight else None
        masking = self.strategy(encoder.own_grid, encoder.patch)
        masks = self.masks or (16 if width >= 768 else 4)
        return MaskedModel(encoder, masking, {"features": Predict(decoder, teacher, losses.summed_square, also, named="class_token")}, masks=masks)


class Branches(ViT):
    """The teacher's encoder: its layers are what the feed-forward branches say, before they are added and normed."""

    def blocks(self, x: Tensor, rope: Tensor | None, bias: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        layers = []
        for i, block in enumerate(self.trunk.blocks):
            if isinstance(block, PostNorm):
                x = block.norm1(x + block.ls1(block.attn(x)))
                said = block.mlp(x)
                x = block.norm2(x + block.ls2(said))
            else:
                x = x + block.ls1(block.attn(block.norm1(x)))
                said = block.mlp(block.norm2(x))
                x = x + block.ls2(said)
            if i in self.layers:
                layers.append(said)
        return x, layers


class Whole(nn.Module):
    """The class token says the mean of the target over the picture: squared error summed over columns, over √D, as for a patch."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, step: Step) -> Tensor:
        said, whole = step.features.prefix[:, 0].float(), step.mask.fold(step.truth.mean(1))  # (K·B, D) each
        return self.weight * (said - whole).square().sum(-1).mean() / math.sqrt(said.shape[-1])
