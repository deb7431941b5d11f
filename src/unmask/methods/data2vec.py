"""data2vec, vision: A General Framework for Self-Supervised Learning (Baevski et al., 2022, arXiv:2202.03555)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from unmask import losses
from unmask.decoders import Linear
from unmask.encoders.build import adapted, build, drop_path
from unmask.encoders.initial import attention_dropout, beit_init, cut_normal, layer_scale, spread
from unmask.masking import Block
from unmask.model import MaskedModel, Predict
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.teacher import Momentum, Teacher, mean_of_branches, mean_of_layers


@dataclass(frozen=True)
class Data2Vec:
    """Put a token over blocks of the picture, and say what a teacher that sees all of it makes of the places under them.

    The teacher is the encoder's own running average; the target is the mean of its last layers, so it holds context and not pixels.
    Loss: smooth L1. Numbers of the vision code behind the released weights (facebookresearch/data2vec_vision).
    """

    sentence = "replace 60 % of the picture, in blocks, by a token; predict what a running average of the encoder, which sees it whole, makes of them"
    source = "Baevski et al. 2022, arXiv:2202.03555"
    standing = "experimental as published, kNN 29.3 (30.2) and linear 43.0 (40.5); proven with --method.norm instance: CIFAR-10, 100,000 pictures seen, kNN 35.3 (30.2) and linear 46.8 (40.5) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=800, batch_size=2048, base_lr=2.5e-4, min_lr=1e-5, warmup_epochs=10, weight_decay=0.05, betas=(0.9, 0.999), clip=3.0)
    views = Views(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # beit/datasets.py; its colour jitter of .4 is left out
    row = ("patches", "block .6", "token", "linear", "EMA teacher, mean of last layers → smooth L1")

    mask_ratio: Ratio = Ratio(0.612, 0.612)  # share of patches hidden: 120 of 196; number, range .4-.7 or schedule .4:.6
    top: int | None = None  # layers of the teacher that make the target; paper: the last 6; not given: that, of few blocks the last half
    norm: Literal["layer", "instance"] = "layer"  # of what the teacher says: each patch by itself, or first each channel over the picture (paper: for speech)
    beta: float = 2.0  # where the loss turns from squared to absolute
    momentum: float | None = None  # of the teacher, a step; paper: .9998 of 500,000; not given: the same hundredth of the run, 100 steps at least
    drop_path: float = 0.25  # chance to leave out the last block's branches
    attention_dropout: float = 0.05  # share of attention weights dropped
    init_std: float | None = None  # deviation of the first weights; paper: .02; not given: that, below ViT-B's width more, as √(768 / width)
    layer_scale: float = 1e-4  # where the branches of networks with layer scale (Beit) start

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "top", 1)
        within(self, "beta init_std layer_scale", 0, above=True)
        within(self, "momentum drop_path attention_dropout", 0, 1)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Block:
        """Which patches are hidden."""
        return Block(self.mask_ratio)

    def build(
        self,
        model: str | nn.Module = "beit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a timm VisionTransformer, Eva or Beit (the paper's)."""
        encoder = build(model, img_size, in_chans, patch_size, masked="token", **sizes)
        decoder = Linear(encoder.width, encoder.width)
        beit_init(encoder, spread(encoder.width, self.init_std))
        cut_normal(decoder, spread(encoder.width, self.init_std))
        layer_scale(encoder, self.layer_scale)
        depth = len(encoder.trunk.blocks)
        top = min(self.top or min(6, max(1, depth // 2)), depth)
        say = mean_of_branches if self.norm == "instance" else mean_of_layers
        teacher = Teacher(adapted(copy.deepcopy(encoder.trunk), layers=tuple(range(-top, 0))), say, Momentum(self.momentum, self.momentum))
        drop_path(encoder, self.drop_path)
        attention_dropout(encoder, self.attention_dropout)
        predict = Predict(decoder, teacher, partial(losses.smooth_l1, beta=self.beta))
        return MaskedModel(encoder, self.strategy(encoder.own_grid, encoder.patch), {"features": predict}, undecayed=("cls_token", "pos_embed"), pooling="avg")
