"""MAE-Lite: Strong Lightweight Vision Transformers via Masked Image Modeling Pre-Training (Gao, Wang et al., 2024, arXiv:2404.12210 and 2205.14443)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from unmask import losses
from unmask.decoders import Transformer, patch_values
from unmask.encoders.attention import products
from unmask.encoders.build import adapted, build
from unmask.encoders.features import Features
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import Random
from unmask.model import MaskedModel, Predict, Step
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.features import Frozen, frozen
from unmask.targets.pixels import Pixels

Pairs = tuple[tuple[int, int], ...]  # of the student, of the teacher


@dataclass(frozen=True)
class MAELite:
    """MAE for a small network, which also looks where a large frozen teacher looks.

    Both see the same visible patches. The last layer's attention of the student, before its softmax, is drawn to the teacher's, head by head through a small
    adapter. Decoupled (D²-MAE): pixels are predicted from the output of an earlier block, so that what pixels want does not fill the last ones, and a stump of
    one more block, thrown away afterwards, is what looks. Loss: mean squared errors of pixels and attention, and of features where asked.
    """

    sentence = "MAE for a small network, drawn to look where a frozen teacher looks"
    source = "Gao, Wang et al. 2024, arXiv:2404.12210"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 37.5 (30.5) and linear 50.3 (44.8) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=400, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.0)
    views = Views(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")
    student = True  # of another encoder: pictures are as large as that wants them
    row = ("patches", "random .75", "dropped", "transformer 96×1", "pixels, per-patch normalised → mse; teacher's attention → mse")
    needs = ("teacher",)

    teacher: str | None = None  # ENCODER that is followed: a run, an encoder file, timm:NAME; a plain vision transformer (paper: MAE's ViT-B)
    mask_ratio: Ratio = Ratio(0.75, 0.75)  # share of patches hidden: number, range .6-.9 or schedule .5:.75
    attention: float = 1.0  # weight of the attention's error
    features: float = 0.0  # weight of the error of features after the last norm, which only a student that is not decoupled should be drawn to
    decoupled: bool = True  # pixels from an earlier block, attention of one more block (D²-MAE)
    branch: int | None = None  # blocks before what pixels are predicted from; paper: 8 of 12; not given: two thirds
    norm_pix: bool = True  # normalise each target patch by its own mean and standard deviation
    decoder_width: int | None = None  # paper: 96; not given: half the encoder's width
    decoder_depth: int = 1  # blocks of the decoder

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "attention features", 0)
        if self.decoupled and not self.attention:
            raise ValueError("decoupled wants attention above 0: nothing else would teach the last blocks")
        within(self, "branch decoder_width decoder_depth", 1)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Random:
        """Which patches are hidden."""
        return Random(self.mask_ratio)

    def build(
        self,
        model: str | nn.Module = "vit_tiny_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        decoder_heads: int | None = None,
        attended: Pairs | None = None,
        matched: Pairs | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a plain VisionTransformer of timm; the paper's ViT-Tiny has 12 heads (`--heads 12`).

        `attended`: which blocks' attention, from 1, follows which of the teacher's; `matched`: which features, k those that go into block k from 0, and after the
        last block those behind the final norm. Not given: the last ones, and 32 columns a head of the decoder.
        """
        encoder: Any = build(model, img_size, in_chans, patch_size, masked="drop", layers=("input", "blocks"), **sizes)
        target = frozen(self.teacher, encoder.img_size, encoder.patch, encoder.in_chans, "mae_lite")
        for who, trunk in (("student", encoder.trunk), ("teacher", target.outside[0])):
            if not isinstance(trunk, VisionTransformer):
                raise Refused(f"mae_lite reads attention before its softmax, which a {type(trunk).__name__} as {who} does not show: choose a plain vit_*")
        if target.outside[0].num_prefix_tokens != encoder.trunk.num_prefix_tokens:
            raise Refused(f"the teacher {self.teacher} has {target.outside[0].num_prefix_tokens} class and register tokens, the student {encoder.trunk.num_prefix_tokens}")
        depth, far = len(encoder.trunk.blocks), len(target.outside[0].blocks)
        width = self.decoder_width or max(32, encoder.width // 2)
        heads = decoder_heads or (width // 32 if width % 32 == 0 else 1)
        decoder = Transformer(encoder.width, patch_values(encoder.patch, encoder.in_chans), encoder.own_grid, width, self.decoder_depth, heads)
        mae_init(encoder)
        mae_init(decoder)
        fix_places(encoder.trunk)
        branch = min(self.branch or max(1, round(depth * 2 / 3)), depth)
        lesson = Lesson(encoder, target, attended or ((depth + self.decoupled, far),), matched or ((depth, far),), self)
        through = Branch(encoder.trunk.norm, branch) if self.decoupled else None
        predict = Predict(decoder, Pixels(encoder.patch, self.norm_pix), losses.mse, lesson, through=through, named="lesson")
        predict.note = "the loss is that of the pixels and, added to it, of the teacher's attention: it is larger than the baselines, which are the pixels'"
        return MaskedModel(encoder, self.strategy(encoder.own_grid, encoder.patch), {"pixels": predict})


def sequences(features: Features) -> list[Tensor]:
    """What goes into each block, and what comes out of the last: (B, P + V, D) each."""
    return [torch.cat(both, dim=1) for both in zip(features.prefixes, features.layers, strict=True)]


class Branch(nn.Module):
    """The decoder is told what goes into a block, after the encoder's own final norm."""

    def __init__(self, norm: nn.Module, block: int):
        super().__init__()
        self.outside, self.block = (norm,), block  # the encoder's: in a tuple, so that it is saved once

    def forward(self, features: Features, mask: Mask) -> Features:
        norm = self.outside[0]
        return features._replace(patches=norm(features.layers[self.block]), prefix=norm(features.prefixes[self.block]))


class Stump(nn.Module):
    """What is left of a block that only looks: its scaled products of queries and keys (B, heads, T, T)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.qk, self.heads = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 2 * width), heads
        mae_init(self)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = self.qk(self.norm1(x)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, d)
        return queries @ keys.mT * queries.shape[-1] ** -0.5


class Lesson(nn.Module):
    """How far the student's attention, and its features, are from the teacher's, who sees the same patches: squared errors, each a mean of all numbers."""

    def __init__(self, encoder: Any, target: Frozen, attended: Pairs, matched: Pairs, method: MAELite):
        super().__init__()
        self.target, self.outside = target, (adapted(target.outside[0], "drop", ("input", "blocks")),)
        self.attended, self.matched = attended if method.attention else (), matched if method.features else ()
        self.attention_weight, self.features_weight = method.attention, method.features
        heads, theirs = encoder.trunk.blocks[0].attn.num_heads, target.outside[0].blocks[0].attn.num_heads
        depth = len(encoder.trunk.blocks)
        self.stump = Stump(encoder.width, heads) if any(mine > depth for mine, _ in self.attended) else None
        self.attention = nn.ModuleList(nn.Conv2d(heads, theirs, 1, bias=False) for _ in self.attended)
        self.features = nn.ModuleList(nn.Linear(encoder.width, target.width, bias=False) for _ in self.matched)

    def looks(self, trunk: Any, inputs: list[Tensor], block: int) -> Tensor:
        """The products of a block, counted from 1."""
        if block > len(trunk.blocks):
            assert self.stump is not None
            return self.stump(inputs[block - 1])
        return products(trunk.blocks[block - 1], inputs[block - 1])

    @staticmethod
    def normed(trunk: Any, inputs: list[Tensor], place: int) -> Tensor:
        """Features at a place: what a block's first norm makes of its input, or the final norm of the last output."""
        return trunk.norm(inputs[place]) if place == len(trunk.blocks) else trunk.blocks[place].norm1(inputs[place])

    def forward(self, step: Step) -> Tensor:
        trunk, teacher = step.encoder.trunk, self.outside[0]
        mine = sequences(step.features)
        with torch.no_grad():
            theirs = sequences(teacher(self.target.sight(step.x), step.mask))
            looks = [products(teacher.trunk.blocks[j - 1], theirs[j - 1]) for _, j in self.attended]
            features = [self.normed(teacher.trunk, theirs, j) for _, j in self.matched]
        loss = step.x.new_zeros((), dtype=torch.float32)
        for (i, _), adapter, truth in zip(self.attended, self.attention, looks):
            loss = loss + self.attention_weight * F.mse_loss(adapter(self.looks(trunk, mine, i)).float(), truth.float())
        for (i, _), adapter, truth in zip(self.matched, self.features, features):
            loss = loss + self.features_weight * F.mse_loss(adapter(self.normed(trunk, mine, i)).float(), truth.float())
        return loss
