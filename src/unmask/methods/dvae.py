"""The discrete VAE of DALL-E (Ramesh et al., 2021, arXiv:2102.12092, appendix A): BEiT's first stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask.errors import Refused
from unmask.model import VocabularyLearner, first
from unmask.settings import Train, Views, within
from unmask.tokenizers.dvae import DVAE as Network
from unmask.tokenizers.dvae import divergence, soft, squeezed


@dataclass(frozen=True)
class DVAE:
    """Learn a vocabulary of picture squares: an encoder says which word fits each, a decoder paints the picture from the words.

    Words are drawn softly (Gumbel-softmax), at a temperature that falls, so that gradients reach the encoder; a growing weight keeps the use of words
    spread out. Loss: minus the evidence lower bound of the pixels under a logit-Laplace distribution. The paper's running average of the weights
    (.999 a step) is left out.
    """

    sentence = "learn 8,192 codes for squares of 8 pixels, from which the picture can be painted again: the vocabulary that beit predicts"
    source = "Ramesh et al. 2021, arXiv:2102.12092, appendix A"
    standing = "experimental"
    paper = Train(epochs=1200, batch_size=512, base_lr=5e-5, min_lr=1.25e-6, warmup_epochs=0, weight_decay=1e-4, betas=(0.9, 0.999))
    views = Views(scale=(0.6, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # paper: a crop of 256 from a side of 256 to 384
    row = ("squares of 8 px", "none", "–", "convolutions", "pixels → logit-Laplace, KL to uniform")
    short_rate = 2e-3  # per 256 pictures, of runs of under 20,000 steps: .001 at a CPU's 128, at which 700 steps put 186 of 256 codes to use

    vocabulary: int = 8192  # codes (appendix A.1)
    stride: int = 8  # pixels a side of the square that a code stands for: 2, 4 or 8
    hidden: int | None = None  # width of the first group of layers; paper: 256; not given: that, for pictures below 128 pixels 32
    blocks: int = 2  # blocks in each of the four groups (appendix A.2)
    temperature: float = 1.0  # of the soft draw at the start (appendix A.2)
    temperature_end: float = 0.0625  # and from `anneal` on
    anneal: float = 0.3  # share of the run over which it falls; paper: .05, of three million steps
    kl_weight: float = 6.6  # of the divergence from a uniform use of codes, once it has grown (appendix A.2)
    kl_anneal: float = 0.1  # share of the run over which it grows from 0; paper: .0017

    def __post_init__(self):
        within(self, "vocabulary", 2)
        within(self, "hidden", 4)
        within(self, "blocks", 1)
        within(self, "temperature temperature_end", 0, above=True)
        within(self, "anneal kl_anneal", 0, 1)
        within(self, "kl_weight", 0)
        if self.stride not in (2, 4, 8):
            raise ValueError(f"stride must be 2, 4 or 8, got {self.stride}")

    def build(self, model: Any = None, img_size: tuple[int, int] = (256, 256), in_chans: int = 3, patch_size: Any = None, **sizes: Any) -> Tokenizing:
        """A fresh learner; it has no network of timm's, so `model` and its like are not looked at."""
        if any(side % self.stride for side in img_size):
            raise Refused(f"--img_size {img_size[0]} {img_size[1]} is no multiple of the stride {self.stride}")
        hidden = self.hidden or (256 if min(img_size) >= 128 else 32)
        sizes = {"in_chans": in_chans, "hidden": hidden, "blocks": self.blocks, "vocabulary": self.vocabulary, "stride": self.stride}
        return Tokenizing(Network(**sizes), self)


class Tokenizing(VocabularyLearner):
    """The network, and the schedules of its loss."""

    tokenizer: Network

    def __init__(self, tokenizer: Network, method: DVAE):
        super().__init__(tokenizer)
        self.method = method
        self.register_buffer("temperature", torch.tensor(method.temperature), persistent=False)  # of this step: set before each
        self.register_buffer("weight", torch.tensor(method.kl_weight), persistent=False)

    def before_step(self, progress, u):
        said = self.method
        self.temperature.fill_(eased(progress, said.anneal, said.temperature, said.temperature_end))
        self.weight.fill_(eased(progress, said.kl_anneal, 0.0, said.kl_weight))

    def forward(self, x, noise=None, mask=None, rows=None, gumbel: Tensor | None = None):
        pixels = self.pixels(first(x))
        logits = self.tokenizer.logits(pixels).float()  # (B, K, h, w)
        painted = -self.tokenizer.likelihood(soft(logits, self.temperature, gumbel), pixels).mean()
        spread = self.weight * divergence(logits).mean() / (self.tokenizer.stride**2 * self.tokenizer.in_chans)  # both a number of the picture
        return {"loss": painted + spread, "painting": painted, "divergence": spread}

    @torch.no_grad()
    def best_constant(self, x):
        """One Laplace distribution a channel, around the median; the divergence of an even use of all codes is 0."""
        value = squeezed(self.pixels(x)).transpose(0, 1).flatten(1)  # (C, B·H·W)
        logits = value.logit()
        spread = (logits - logits.median(1, keepdim=True).values).abs().mean(1)  # (C,)
        return (1 + spread.log()).mean() + torch.log(2 * value * (1 - value)).mean()


def eased(progress: float, share: float, start: float, end: float) -> float:
    """Half a cosine from `start` to `end` over the first `share` of the run (linear annealing diverged, appendix A.2)."""
    place = torch.tensor(min(progress / share, 1.0) if share else 1.0, dtype=torch.float64)
    return float(end + (start - end) * 0.5 * (1 + torch.cos(torch.pi * place)))
