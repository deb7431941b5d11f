"""Image GPT: Generative Pretraining from Pixels (Chen et al., ICML 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unmask import losses
from unmask.decoders import Linear
from unmask.encoders.build import build
from unmask.encoders.coded import Coded, regular
from unmask.mask import Mask
from unmask.masking import Masking, Prefix
from unmask.model import MaskedModel, Predict
from unmask.settings import Train, Views
from unmask.targets.codes import Codes
from unmask.tokenizers.palette import Palette


@dataclass(frozen=True)
class IGPT:
    """Read a small picture pixel by pixel, and name the colour of the next one out of a palette.

    An ancestor, kept small and honest. Of patches larger than a pixel the mean colour is named. The paper's network (`igpt_small_patch1_32`)
    sees colours of the palette only; over any other network the same question is asked of its patches. Loss: cross entropy.
    """

    sentence = "read the pixels in order, and name the colour of the next one out of a palette of 512"
    source = "Chen et al. 2020, Generative Pretraining from Pixels (ICML)"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 31.8 (30.2) and linear 44.9 (40.5) %; in brackets random weights (docs/evidence.md)"
    # section 3.4: iGPT-S 3e-3 at 128 pictures, a million steps (100 epochs of ImageNet), an epoch of warm-up, no weight decay
    paper = Train(epochs=100, batch_size=128, base_lr=6e-3, warmup_epochs=1, weight_decay=0.0, betas=(0.9, 0.95))
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # ours: the paper resizes and crops at random
    row = ("codes", "all, or all after a stretch", "causal", "linear → 512", "next colour → CE")

    prefix: bool = True  # a first stretch of any length is seen both ways, so that the encoder can later look at whole pictures (AIM's); paper: none

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Masking:
        """Which patches are hidden."""
        return Prefix() if self.prefix else Everything()

    def build(
        self,
        model: str | nn.Module = "igpt_small_patch1_32",
        img_size: tuple[int, int] = (32, 32),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over `igpt_*`, or any timm VisionTransformer or Eva; without a prefix it wants a class token, which speaks first."""
        encoder = build(model, img_size, in_chans, patch_size, masked="causal", **sizes)
        embed = encoder.trunk.patch_embed
        palette = Palette(embed.colours.clone() if isinstance(embed, Coded) else regular(encoder.in_chans))
        decoder = Linear(encoder.width, palette.vocabulary, bias=False)
        # the source begins with zeros here; then nothing below would move in the first step
        nn.init.normal_(decoder.predict.weight, std=0.02)
        if encoder.trunk.pos_embed is not None:
            nn.init.normal_(encoder.trunk.pos_embed, std=0.01)
        predict = Predict(decoder, Codes(palette, encoder.patch, encoder.in_chans), losses.cross_entropy)
        return MaskedModel(encoder, self.strategy(encoder.own_grid, encoder.patch), {"codes": predict}, pooling="avg")


class Everything(Masking):
    """Every place is asked about, and none is known beforehand."""

    def __init__(self):
        super().__init__(0.5)

    def draws(self, grid):
        return 1  # not used: every row is the same

    def __call__(self, grid, noise, scores=None):
        places = torch.arange(math.prod(grid), device=noise.device).expand(len(noise), -1)  # (B, N)
        return Mask(places[:, :0], places, grid)
