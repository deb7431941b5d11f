"""Vector-quantised knowledge distillation (Peng et al., 2022, arXiv:2208.06366): BEiT v2's first stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from unmask import losses
from unmask.encoders.build import create_trunk
from unmask.encoders.initial import plain_normal
from unmask.model import VocabularyLearner, first
from unmask.settings import Train, Views, within
from unmask.targets.features import Frozen, frozen
from unmask.targets.target import best_constant
from unmask.tokenizers.vqkd import VQKD as Network


@dataclass(frozen=True)
class VQKD:
    """Learn a vocabulary of what patches mean: an encoder gives each patch a code, and from the codes a decoder has to say what a teacher makes of them.

    The teacher decides what counts as meaning: the paper's are CLIP and DINO, any encoder will do. A code is the nearest direction of a codebook that follows
    what falls to it. Loss: 1 − cosine of the decoder's answer with the teacher's features, and how far patches are from their codes.
    """

    sentence = "learn 8,192 codes for patches, from which a teacher's features can be told: the vocabulary that beit2 predicts"
    source = "Peng et al. 2022, arXiv:2208.06366, section 3.1"
    standing = "experimental"
    paper = Train(epochs=100, batch_size=512, base_lr=1e-4, min_lr=1e-5, warmup_epochs=10, weight_decay=1e-4, betas=(0.9, 0.99))
    views = Views(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # beit2/TOKENIZER.md: no colour jitter
    row = ("patches", "none", "–", "transformer", "frozen teacher's features → 1 − cos, commitment")
    needs = ("teacher",)
    network = True  # it has one of --model
    short_rate = 1e-3  # per 256 pictures, of runs of under 20,000 steps: not measured

    teacher: str | None = None  # ENCODER whose features the codes have to tell: a run, an encoder file, timm:NAME
    vocabulary: int = 8192  # codes
    columns: int = 32  # of a direction (section 3.1)
    decoder_depth: int = 3  # blocks of the decoder; the paper's other two published tokenizers have 1
    decay: float = 0.99  # how much of itself a row of the codebook keeps in a step
    commitment: float = 1.0  # weight of the distance between patches and their codes

    def __post_init__(self):
        within(self, "vocabulary columns", 2)
        within(self, "decoder_depth", 1)
        within(self, "decay", 0, 1)
        within(self, "commitment", 0)

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> Tokenizing:
        """A fresh learner over a plain VisionTransformer of timm."""
        trunk: Any = create_trunk(model, img_size, in_chans, patch_size, **sizes) if isinstance(model, str) else model
        patch = tuple(trunk.patch_embed.patch_size)
        teacher = frozen(self.teacher, tuple(img_size), patch, trunk.patch_embed.proj.in_channels, "vqkd", "--teacher")
        network = Network(trunk.unmask_kwargs, teacher.width, self.vocabulary, self.columns, self.decoder_depth, self.decay)
        plain_normal(network.encoder.trunk)
        plain_normal(network.decoder.trunk)
        for layer in (*network.to_codes, *network.to_features):
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        return Tokenizing(network, teacher, self.commitment)


class Tokenizing(VocabularyLearner):
    """The network, its teacher, and what follows after each step."""

    undecayed = ("cls_token", "pos_embed")
    tokenizer: Network

    def __init__(self, tokenizer: Network, teacher: Frozen, commitment: float):
        super().__init__(tokenizer)
        self.teacher, self.commitment = teacher, commitment
        self.settled = False  # whether the codebook is known to have begun: asked of the device until it has

    def draw_mask(self, x, noise=None, rows=None):
        """There is none; called outside the compiled graph, this is where the codebook begins, on the first pictures."""
        if self.training and not self.settled:
            if not self.tokenizer.codebook.begun:
                with torch.no_grad():
                    self.tokenizer.codebook.begin(self.tokenizer.directions(self.pixels(first(x))).flatten(0, 1))
            self.settled = True
        return None

    def forward(self, x, noise=None, mask=None, rows=None):
        if not torch.compiler.is_compiling():
            self.draw_mask(x)
        network, pixels = self.tokenizer, self.pixels(first(x))
        z = network.directions(pixels)  # (B, N, columns)
        codes = network.codebook.fits(z.detach()).argmax(-1)  # (B, N)
        row = network.codebook.rows[codes].clone()  # (B, N, columns); a copy: the codebook moves after the step
        if self.training:
            network.codebook.collect(z.flatten(0, 1), codes.flatten())
        grid = tuple(side // network.stride for side in pixels.shape[2:])
        told = network.features(z + (row - z).detach(), grid)  # the gradient goes straight through to z
        apart = (1 + losses.negative_cosine(told, self.teacher(first(x)))).mean()
        far = self.commitment * F.mse_loss(z, row)
        return {"loss": apart + far, "features": apart, "commitment": far}

    def after_step(self, progress):
        self.tokenizer.codebook.follow()

    @torch.no_grad()
    def best_constant(self, x):
        return 1 + best_constant(self.teacher(x), losses.negative_cosine)
