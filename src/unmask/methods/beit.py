"""BEiT: BERT Pre-Training of Image Transformers (Bao et al., 2021, arXiv:2106.08254), its second stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from unmask import losses
from unmask.decoders import Linear
from unmask.encoders.build import build, drop_path
from unmask.encoders.initial import beit_init, cut_normal
from unmask.masking import Block
from unmask.model import MaskedModel, Predict
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.codes import Codes, open_tokenizer


@dataclass(frozen=True)
class BEiT:
    """Put a token over blocks of the picture, and say which words of a visual vocabulary stand under them.

    The words are the codes of a discrete VAE that was trained before (`unmask tokenizer train dvae`), one a patch. Loss: cross entropy. Even a
    good network names few of them: 5 % right of 8,192 is usual.
    """

    sentence = "replace 38 % of the picture, in blocks, by a token; predict the codes that a discrete VAE gives the patches under them"
    source = "Bao et al. 2021, arXiv:2106.08254"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 31.0 (30.2) and linear 45.5 (40.5) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=800, batch_size=2048, base_lr=1.875e-4, min_lr=1e-5, warmup_epochs=10, weight_decay=0.05, betas=(0.9, 0.999), clip=3.0)
    views = Views(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # beit/datasets.py; its colour jitter of .4 is left out
    row = ("patches", "block .4", "token", "linear → 8192", "dVAE codes → CE")
    needs = ("tokenizer",)

    tokenizer: str | None = None  # whose codes are predicted: a run of `unmask tokenizer train dvae`, or DALL-E's encoder as a plain state dict
    mask_ratio: Ratio = Ratio(0.383, 0.383)  # share of patches hidden: 75 of 196; number, range .3-.5 or schedule .3:.5
    drop_path: float = 0.1  # chance to leave out the last block's branches

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "drop_path", 0, 1)

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
        """A fresh learner over any timm network that can hide by a token; timm's Beit is the paper's."""
        encoder = build(model, img_size, in_chans, patch_size, masked="token", **sizes)
        target = Codes(open_tokenizer(self.tokenizer, encoder.in_chans, "beit"), encoder.patch, encoder.in_chans)
        decoder = Linear(encoder.width, target.tokenizer.vocabulary)
        beit_init(encoder)
        cut_normal(decoder)
        drop_path(encoder, self.drop_path)
        predict = Predict(decoder, target, losses.cross_entropy)
        return MaskedModel(encoder, self.strategy(encoder.own_grid, encoder.patch), {"codes": predict}, undecayed=("cls_token", "pos_embed"), pooling="avg")
