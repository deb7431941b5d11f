"""EVA and EVA-02: A Visual Representation for Neon Genesis (Fang et al., 2023, arXiv:2211.07636 and arXiv:2303.11331)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.layers import GluMlp, SwiGLU
from torch import nn

from unmask import losses
from unmask.decoders import Linear
from unmask.encoders.build import build, drop_path
from unmask.encoders.initial import beit_init, cut_normal, eva02_init
from unmask.masking import Block
from unmask.model import MaskedModel, Predict
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.features import frozen


@dataclass(frozen=True)
class EVA:
    """Put a token over blocks of the picture, and say what a frozen teacher makes of the places under them.

    The papers' teacher is CLIP's image tower; any encoder will do, and the student can hardly learn what its teacher does not know. Loss: minus the
    cosine. Of a CLIP tower the features after its last norm are taken, where the papers go on through CLIP's projection.
    """

    sentence = "replace 40 % of the picture, in blocks, by a token; predict the features of a frozen teacher"
    source = "Fang et al. 2023, arXiv:2303.11331 (EVA-02) and arXiv:2211.07636 (EVA)"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 36.7 (30.2) and linear 48.4 (40.5) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=150, batch_size=2048, base_lr=1.875e-4, min_lr=1e-5, warmup_epochs=1, weight_decay=0.05, betas=(0.9, 0.98), eps=1e-6, clip=3.0)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # EVA-02, asuka/README.md: no colour jitter
    row = ("patches", "block .4", "token", "linear", "frozen teacher's features → −cos")
    needs = ("teacher",)

    teacher: str | None = None  # ENCODER whose features are predicted: a run, an encoder file, timm:NAME
    mask_ratio: Ratio = Ratio(0.41, 0.41)  # share of patches hidden: 105 of 256; number, range .3-.5 or schedule .3:.5
    drop_path: float = 0.0  # chance to leave out the last block's branches (EVA-02 L and EVA: .1)

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "drop_path", 0, 1)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Block:
        """Which patches are hidden."""
        return Block(self.mask_ratio)

    def build(
        self,
        model: str | nn.Module = "eva02_base_patch14_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over any timm network that can hide by a token: `eva02_*` are the second paper's, `eva_giant_*` the first's."""
        encoder = build(model, img_size, in_chans, patch_size, masked="token", **sizes)
        gated = any(isinstance(block, SwiGLU | GluMlp) for block in encoder.trunk.modules())
        (eva02_init if gated else beit_init)(encoder)
        drop_path(encoder, self.drop_path)
        target = frozen(self.teacher, encoder.img_size, encoder.patch, encoder.in_chans, "eva")
        decoder = Linear(encoder.width, target.width)
        cut_normal(decoder)
        predict = Predict(decoder, target, losses.negative_cosine)
        return MaskedModel(encoder, self.strategy(encoder.own_grid, encoder.patch), {"features": predict}, undecayed=("cls_token", "pos_embed"), pooling="avg")
