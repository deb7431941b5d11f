"""A palette: the nearest of some colours is a pixel's code (Image GPT, section 2.1). Nothing of it is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.encoders.coded import distances
from unmask.tokenizers.tokenizer import Tokenizer


class Palette(Tokenizer):
    """Colours (K, C) in 0..1; a square is one pixel. The paper's are 512 centres of k-means; without any given, a regular grid of about as many."""

    kind = "palette"
    stride = 1

    def __init__(self, colours: Tensor):
        super().__init__()
        self.register_buffer("colours", colours.float())
        self.vocabulary, self.in_chans = colours.shape
        self.sizes = {}

    def logits(self, x: Tensor) -> Tensor:
        return -distances(x, self.colours).movedim(-1, 1)

    def pictures(self, shares: Tensor) -> Tensor:
        return torch.einsum("bkhw,kc->bchw", shares, self.colours)
