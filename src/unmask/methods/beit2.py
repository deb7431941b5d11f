"""BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers (Peng et al., 2022, arXiv:2208.06366), its second stage."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmask import losses
from unmask.decoders import Linear
from unmask.encoders.build import build, drop_path
from unmask.encoders.features import Features
from unmask.encoders.initial import beit_init, cut_normal, default_linear
from unmask.errors import Refused
from unmask.masking import Block
from unmask.model import MaskedModel, Predict, Step
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.codes import Codes, open_tokenizer


@dataclass(frozen=True)
class BEiT2:
    """Put a token over blocks of the picture, and name the codes of the patches under them; once more from the class token and unfinished patches.

    The codes are those of a tokenizer that was taught what patches mean (`unmask tokenizer train vqkd`). For patch aggregation two extra blocks get the patches
    of an early block and the class token of the last one: what they lack has to come through the class token, so that it learns what the picture is about. They
    are thrown away afterwards. Loss: both cross entropies.
    """

    sentence = "replace 38 % of the picture, in blocks, by a token; predict what a tokenizer, taught by an encoder, calls the patches under them, also through the class token"
    source = "Peng et al. 2022, arXiv:2208.06366"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 34.2 (30.2) and linear 46.7 (40.5) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=1600, batch_size=2048, base_lr=1.875e-4, min_lr=1e-5, warmup_epochs=10, weight_decay=0.05, betas=(0.9, 0.999), clip=3.0)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # beit2/datasets.py; its colour jitter of .4 is left out
    row = ("patches", "block .4", "token", "linear + patch-aggregation head", "VQ-KD codes → CE")
    needs = ("tokenizer",)

    tokenizer: str | None = None  # whose codes are predicted: a run of `unmask tokenizer train vqkd` (or dvae), or a published VQ-KD file
    mask_ratio: Ratio = Ratio(0.383, 0.383)  # share of patches hidden: 75 of 196, always as many; number, range .3-.5 or schedule .3:.5
    early: int | None = None  # blocks after which patches go to the aggregation; paper: 9 of 12, 21 of 24; not given: all but the last three
    aggregation: int = 2  # blocks of it; 0: none
    drop_path: float = 0.1  # chance to leave out the last block's branches (300 epochs: 0)

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "drop_path", 0, 1)
        within(self, "early", 1)
        within(self, "aggregation", 0)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Block:
        """Which patches are hidden."""
        return Block(self.mask_ratio, exact=True)

    def build(
        self,
        model: str | nn.Module = "beit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over timm's Beit (the paper's) or a VisionTransformer with a class token."""
        encoder: Any = build(model, img_size, in_chans, patch_size, masked="token", **sizes)
        if not isinstance(encoder.trunk, Beit | VisionTransformer) or encoder.trunk.cls_token is None:
            raise Refused("beit2 lets a class token gather the patches: choose a beit_* or vit_* network that has one")
        depth = len(encoder.trunk.blocks)
        early = min(self.early or max(1, depth - 3), depth)
        encoder.layers = (early - 1, depth - 1)
        target = Codes(open_tokenizer(self.tokenizer, encoder.in_chans, "beit2"), encoder.patch, encoder.in_chans)
        decoder = Linear(encoder.width, target.tokenizer.vocabulary)
        beit_init(encoder)
        cut_normal(decoder)
        also = Aggregation(encoder.trunk, early, self.aggregation) if self.aggregation else None
        drop_path(encoder, self.drop_path)
        if also is not None:
            also.drop_path([self.drop_path * (early + i) / max(depth - 1, 1) for i in range(self.aggregation)])
        predict = Predict(decoder, target, losses.cross_entropy, also, named="aggregation")
        masking = self.strategy(encoder.own_grid, encoder.patch)
        return MaskedModel(encoder, masking, {"codes": predict}, undecayed=("cls_token", "pos_embed"), pooling="cls" if also else "avg")


class Aggregation(nn.Module):
    """The second answer: blocks over [class token of the last block; patches of an early one], then the encoder's own norm and the same decoder."""

    def __init__(self, trunk: Any, early: int, count: int):
        super().__init__()
        self.blocks = nn.ModuleList(fresh(trunk.blocks[-1]) for _ in range(count))
        self.early = early
        default_linear(self.blocks, early)

    def drop_path(self, chances: list[float]) -> None:
        """The schedule of the encoder's blocks goes on from the early one."""
        for block, chance in zip(self.blocks, chances):
            each: Any = block
            each.drop_path1, each.drop_path2 = (DropPath(chance) if chance else nn.Identity() for _ in range(2))

    def forward(self, step: Step) -> Tensor:
        said = step.decoder(self.aggregated(step.features, step.encoder), step.mask)  # (B, M, K)
        return step.mask.mean(losses.cross_entropy(said, step.mask.masked(step.truth)))

    def aggregated(self, features: Features, encoder: Any) -> Features:
        """What the decoder answers from."""
        prefix, trunk = features.prefixes[-1], encoder.trunk
        x = torch.cat([prefix, features.layers[0]], dim=1)  # (B, P + N, D)
        shared = {"shared_rel_pos_bias": trunk.rel_pos_bias()} if isinstance(trunk, Beit) and trunk.rel_pos_bias is not None else {}
        for block in self.blocks:
            x = block(x, **shared)
        x = trunk.norm(x)
        return Features(x[:, prefix.shape[1] :], x[:, : prefix.shape[1]])


def fresh(block: nn.Module) -> nn.Module:
    """Another block of the same kind, whose norms and scales are as new as its matrices will be."""
    made = copy.deepcopy(block)
    for layer in made.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()
    return made
