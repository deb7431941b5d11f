"""The discrete VAE of DALL-E (Ramesh et al. 2021, arXiv:2102.12092, appendix A), whose codes BEiT predicts.

Names of layers follow openai/DALL-E (encoder.py, decoder.py), so that its published weights open with one rule: `.w` is our
`.weight`, `.b` our `.bias`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.tokenizers.tokenizer import Tokenizer

EDGE = 0.1  # pixels live in .1 to .9, so that their logit is finite (appendix A.3)
WIDTHS = (1, 2, 4, 8)  # of the four groups, in units of `hidden`


def convolution(inner: int, outer: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, with DALL-E's initial values: weights normal with deviation 1/√fan, biases 0."""
    layer = nn.Conv2d(inner, outer, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(inner * kernel**2))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """x + gain · branch(x), the branch four times (ReLU, convolution), a quarter as wide inside."""

    def __init__(self, inner: int, outer: int, kernels: tuple[int, int, int, int], gain: float):
        super().__init__()
        widths = [inner, *[outer // 4] * 3, outer]
        self.id_path = convolution(inner, outer, 1) if inner != outer else nn.Identity()
        layers = [(f"conv_{i + 1}", convolution(widths[i], widths[i + 1], kernel)) for i, kernel in enumerate(kernels)]
        self.res_path = nn.Sequential(OrderedDict(part for i, layer in enumerate(layers) for part in ((f"relu_{i + 1}", nn.ReLU()), layer)))
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


def groups(widths: list[int], blocks: int, kernels: tuple[int, int, int, int], between: nn.Module, changes: int) -> list[tuple[str, nn.Module]]:
    """Groups of blocks from width to width; after the first `changes` of them the map's size changes."""
    total, found = blocks * (len(widths) - 1), []
    for number, (inner, outer) in enumerate(pairwise(widths), 1):
        parts = [(f"block_{i + 1}", Block(inner if i == 0 else outer, outer, kernels, 1 / total**2)) for i in range(blocks)]
        if number <= changes:
            parts.append(("pool", between))
        found.append((f"group_{number}", nn.Sequential(OrderedDict(parts))))
    return found


class DVAE(Tokenizer):
    """DALL-E's encoder to logits over codes, and its decoder from codes to the parameters of a distribution of pixels.

    `hidden` 256, `blocks` 2, `vocabulary` 8192 and `stride` 8 are the published sizes. The decoder gives, for each pixel, location and
    logarithm of the scale of a Laplace distribution over the pixel's logit.
    """

    kind = "dvae"
    paints = True  # False: published without its decoder

    def __init__(self, in_chans: int = 3, hidden: int = 256, blocks: int = 2, vocabulary: int = 8192, stride: int = 8, first: int = 128):
        super().__init__()
        self.in_chans, self.vocabulary, self.stride = in_chans, vocabulary, stride
        self.sizes = {"in_chans": in_chans, "hidden": hidden, "blocks": blocks, "vocabulary": vocabulary, "stride": stride, "first": first}
        halvings = int(math.log2(stride))
        if 2**halvings != stride or not 1 <= halvings <= 3:
            raise ValueError(f"stride must be 2, 4 or 8, got {stride}")
        widths = [hidden * times for times in WIDTHS]
        down = groups([hidden, *widths], blocks, (3, 3, 3, 1), nn.MaxPool2d(2), halvings)
        up = groups([first, *reversed(widths)], blocks, (1, 3, 3, 3), nn.Upsample(scale_factor=2, mode="nearest"), halvings)
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.blocks = chain(convolution(in_chans, hidden, 7), down, convolution(widths[-1], vocabulary, 1))
        self.decoder.blocks = chain(convolution(vocabulary, first, 1), up, convolution(widths[0], 2 * in_chans, 1))

    def logits(self, x: Tensor) -> Tensor:
        return self.encoder.blocks(squeezed(x))

    def statistics(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Location and logarithm of the scale of each pixel's logit, (B, C, H, W) each."""
        location, scale = self.decoder.blocks(shares).chunk(2, dim=1)
        return location, scale

    def pictures(self, shares: Tensor) -> Tensor | None:
        return None if not self.paints else ((self.statistics(shares)[0].sigmoid() - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)

    def likelihood(self, shares: Tensor, x: Tensor) -> Tensor:
        """The logarithm of the density of the pixels `x` in 0..1, given codes: (B, C, H, W). Logit-Laplace, appendix A.3."""
        location, scale = self.statistics(shares)
        value = squeezed(x)
        return -(torch.logit(value) - location).abs() * torch.exp(-scale) - scale - torch.log(2 * value * (1 - value))


def chain(first: nn.Module, between: list[tuple[str, nn.Module]], last: nn.Module) -> nn.Sequential:
    """Input, groups, output, by DALL-E's names."""
    return nn.Sequential(OrderedDict([("input", first), *between, ("output", nn.Sequential(OrderedDict([("relu", nn.ReLU()), ("conv", last)])))]))


def squeezed(x: Tensor) -> Tensor:
    """Pixels in 0..1 to .1 to .9."""
    return (1 - 2 * EDGE) * x + EDGE


def soft(logits: Tensor, temperature: Tensor | float, gumbel: Tensor | None = None) -> Tensor:
    """Shares of codes (B, K, h, w), sampled softly: softmax((logits + Gumbel noise) / temperature) (Jang et al. 2016, arXiv:1611.01144)."""
    if gumbel is None:
        gumbel = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-20, 1 - 1e-7)))
    return ((logits + gumbel) / temperature).softmax(1)


def divergence(logits: Tensor) -> Tensor:
    """How far the distribution over codes is from uniform, in nats, each place (B, h, w): the Kullback-Leibler divergence."""
    logs = F.log_softmax(logits, dim=1)
    return (logs.exp() * logs).sum(1) + math.log(logits.shape[1])
