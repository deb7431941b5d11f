"""Feature distillation: Contrastive Learning Rivals Masked Image Modeling in Fine-tuning via Feature Distillation (Wei et al., 2022, arXiv:2205.14141)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask import losses
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build, drop_path
from unmask.encoders.initial import beit_init, cut_normal
from unmask.encoders.swin import Swin
from unmask.model import MaskedModel, Objective, first
from unmask.settings import Train, Views, within
from unmask.targets.features import Frozen, frozen
from unmask.targets.target import best_constant


@dataclass(frozen=True)
class Distill:
    """Say what a frozen teacher makes of a picture that both see whole.

    Any encoder teaches any other, a smaller one above all. The teacher's features are normed without scale and shift, so that all of their columns are worth
    the same; one linear layer takes the student's to their width. The class token follows the teacher's where both have one. Loss: smooth L1.
    """

    sentence = "show both the whole picture; a student of any size says the features of a frozen teacher"
    source = "Wei et al. 2022, arXiv:2205.14141"
    standing = "experimental"
    # configs/pretrain/fd_pretrain__dino_vit_base__img224__300ep.yaml: 3e-4 per 512 pictures
    paper = Train(epochs=300, batch_size=2048, base_lr=1.5e-4, min_lr=5e-6, warmup_epochs=10, weight_decay=0.05, betas=(0.9, 0.999), clip=3.0)
    views = Views(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bilinear")  # data/data_fd.py: no colour jitter
    student = True  # of another encoder: pictures are as large as that wants them
    row = ("patches", "none", "–", "linear", "frozen teacher's features, normed → smooth L1")
    needs = ("teacher",)

    teacher: str | None = None  # ENCODER whose features are said: a run, an encoder file, timm:NAME
    beta: float = 2.0  # where the loss turns from squared to absolute
    drop_path: float | None = None  # chance to leave out the last block's branches; paper: .1 to .3 from ViT-B on; not given: .2 there, else 0

    def __post_init__(self):
        within(self, "beta", 0, above=True)
        within(self, "drop_path", 0, 1)

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over any timm network that the other methods take; the paper's is a Beit with shared relative places."""
        encoder = build(model, img_size, in_chans, patch_size, **sizes)
        if not isinstance(encoder, Swin):
            beit_init(encoder)
        drop_path(encoder, self.drop_path if self.drop_path is not None else 0.2 if encoder.width >= 768 else 0.0)
        target = frozen(self.teacher, encoder.img_size, encoder.patch, encoder.in_chans, "distill")
        return MaskedModel(encoder, None, {"features": Told(encoder, target, self.beta)}, undecayed=("cls_token", "pos_embed"))


class Told(Objective):
    """The student's tokens, through one linear layer, are the teacher's, normed (models/feature_distillation.py)."""

    def __init__(self, encoder: Adapter, target: Frozen, beta: float):
        super().__init__()
        self.target, self.loss = target, partial(losses.smooth_l1, beta=beta)
        self.predict = nn.Linear(encoder.width, target.width)
        cut_normal(self.predict)

    @torch.no_grad()
    def truth(self, x: Tensor, whole: bool) -> Tensor:
        """What is to be said of each patch, and where `whole` of the picture before them: (B, N or 1 + N, width)."""
        told = self.target.told(x)
        patches = self.target.patches(told, x)  # (B, N, width)
        truth = torch.cat([told.prefix[:, :1].float(), patches], dim=1) if whole else patches
        return F.layer_norm(truth, truth.shape[-1:])

    def forward(self, features, mask, x, encoder):
        whole = self.target.classed and features.prefix.shape[1] > 0
        said = self.predict(torch.cat([features.prefix[:, :whole], features.patches], dim=1))  # (B, N or 1 + N, width)
        return self.loss(said, self.truth(first(x), whole)).mean()

    def baselines(self, x):
        """The best answer that is the same for all patches of all pictures."""
        return {"best_constant": best_constant(self.truth(first(x), False), self.loss).item()}
