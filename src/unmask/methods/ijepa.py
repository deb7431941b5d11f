"""I-JEPA: Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture (Assran et al., 2023, arXiv:2301.08243)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unmask import losses
from unmask.decoders import Decoder, Transformer
from unmask.encoders.build import adapted, build
from unmask.encoders.initial import spread
from unmask.encoders.vit import fix_places
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import MultiBlock
from unmask.model import MaskedModel, Predict
from unmask.settings import Train, Views, in_order, within
from unmask.targets.teacher import Momentum, Teacher, last_layer


@dataclass(frozen=True)
class IJEPA:
    """Look at one large block of the picture, and say what a teacher that sees all of it makes of four others.

    The encoder sees the context block without the targets; a predictor, told only where a target lies, answers for each by
    itself. The teacher is the encoder's own running average. No pixels are predicted, and the picture is neither flipped nor recoloured.
    Loss: smooth L1.
    """

    sentence = "from one block of the picture, predict what a running average of the encoder makes of four other blocks"
    source = "Assran et al. 2023, arXiv:2301.08243"
    standing = "proven: CIFAR-10, 300,000 pictures seen, kNN 35.3 (30.5) and linear 45.4 (44.8) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=300, batch_size=2048, base_lr=1.25e-4, min_lr=1e-6, warmup_epochs=40, weight_decay=0.04, weight_decay_end=0.4, betas=(0.9, 0.999))
    views = Views(scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), flip=0.0, interpolation="bilinear")  # configs/in1k_vith14_ep300.yaml
    row = ("patches", "4 target blocks, context without them", "dropped", "transformer 384×12, a target at a time", "EMA teacher → smooth L1")

    targets: int = 4  # blocks that are predicted (section 4)
    target_scale: tuple[float, float] = (0.15, 0.2)  # their area, as a share of the picture
    target_aspect: tuple[float, float] = (0.75, 1.5)  # their height over width
    context_scale: tuple[float, float] = (0.85, 1.0)  # area of the block that is looked at, before the targets are cut out
    momentum: float | None = None  # of the teacher, a step, at the start of the run; paper: .996 of 187,000; not given: the same share of the run, 100 steps at least
    momentum_end: float = 1.0  # and at its end
    decoder_width: int | None = None  # paper: 384; not given: that, or half of the encoder's width
    init_std: float | None = None  # deviation of the first weights; paper: .02; not given: that, below ViT-B's width more, as √(768 / width)
    decoder_depth: int | None = None  # paper: 12 blocks for ViT-L and ViT-H, 6 for ViT-B; not given: these, and no more than the encoder has

    def __post_init__(self):
        within(self, "targets decoder_width decoder_depth", 1)
        within(self, "target_scale context_scale", 0, 1, above=True)
        within(self, "target_aspect init_std", 0, above=True)
        within(self, "momentum momentum_end", 0, 1)
        in_order(self, "target_scale target_aspect context_scale")

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> MultiBlock:
        """Which patches are hidden."""
        return MultiBlock(targets=self.targets, scale=self.target_scale, aspect=self.target_aspect, context=self.context_scale)

    def build(
        self,
        model: str | nn.Module = "vit_huge_patch14_gap_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        mlp_ratio: float = 4.0,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over any timm network that can drop patches; the paper's have no class token (`*_gap_*`). `mlp_ratio`: the predictor's."""
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", **sizes)
        blocks, heads = encoder.trunk.blocks, encoder.trunk.blocks[0].attn.num_heads
        width = self.decoder_width or min(384, max(heads, encoder.width // 2 // heads * heads))
        if width % heads:
            raise Refused(f"decoder_width {width} is no multiple of the encoder's {heads} heads, which the predictor has too")
        depth = self.decoder_depth or min(12 if encoder.width >= 1024 else 6, len(blocks))
        grid = encoder.own_grid
        decoder = EachTarget(Transformer(encoder.width, encoder.width, grid, width, depth, heads, mlp_ratio), self.targets)
        for part in (encoder, decoder):
            start(part, spread(encoder.width, self.init_std))
        fix_places(encoder.trunk)
        teacher = Teacher(adapted(copy.deepcopy(encoder.trunk)), last_layer, Momentum(self.momentum, self.momentum_end, windows=(0.00134, 0.0)))
        return MaskedModel(encoder, self.strategy(grid, encoder.patch), {"features": Predict(decoder, teacher, losses.smooth_l1)}, pooling="avg")


class EachTarget(Decoder):
    """The predictor, asked for each target in a sequence of its own: targets do not see each other's places."""

    def __init__(self, predictor: Transformer, targets: int):
        super().__init__()
        self.predictor, self.targets = predictor, targets

    def forward(self, features, mask):
        times = (self.targets, 1, 1)
        each = features._replace(patches=features.patches.repeat(times), prefix=features.prefix.repeat(times), layers=())  # (T·B, V, D)
        asked = Mask(mask.visible_ids.repeat(times[:2]), torch.cat(mask.masked_ids.chunk(self.targets, dim=1)), mask.grid)  # (T·B, m)
        answers = self.predictor(each, asked)  # (T·B, m, D)
        return torch.cat(answers.chunk(self.targets), dim=1)  # (B, T·m, D)


def start(module: nn.Module, std: float) -> None:
    """Weights and tokens normal, biases 0, norms 1 and 0, in encoder and predictor alike (helper.py, init_model)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
            nn.init.ones_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for name, token in module.named_parameters():
        if name.rpartition(".")[2] in ("mask_token", "cls_token", "pos_embed"):
            nn.init.trunc_normal_(token, std=std)
