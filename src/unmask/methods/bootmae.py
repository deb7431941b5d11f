"""BootMAE: Bootstrapped Masked Autoencoders for Vision BERT Pretraining (Dong et al., 2022, arXiv:2207.07116)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from unmask import losses
from unmask.decoders import Cross, Decoder, default_size
from unmask.encoders.build import adapted, build
from unmask.encoders.features import Features
from unmask.encoders.initial import each_by_itself
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import Block, Masking
from unmask.model import MaskedModel, Objective, Predict
from unmask.patches import row_first, sincos
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.pixels import Pixels
from unmask.targets.teacher import Rising, Teacher


@dataclass(frozen=True)
class BootMAE:
    """Say the pixels of what is hidden, and what a running average of the encoder makes of it, each with a decoder that is told what it needs.

    The pixel decoder looks across at an early layer of the encoder and the feature decoder at a middle one, so that the encoder's last layers
    need not carry either. What lies amid hidden patches counts up to twice. Losses: mean squared errors, of the features after a norm on both sides;
    the second grows to its weight over the first quarter of the run.
    """

    sentence = "hide 75 % of the patches, in blocks; predict their pixels and what a running average of the encoder makes of them"
    source = "Dong et al. 2022, arXiv:2207.07116"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 39.1 (30.9) and linear 47.9 (44.0) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=800, batch_size=2048, base_lr=1.5e-4, min_lr=1e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95))
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")
    row = ("patches", "block .61, filled up to .75", "dropped", "2 × cross-attention to early layers", "pixels and EMA teacher's features → weighted mse")

    mask_ratio: Ratio = Ratio(0.75, 0.75)  # share of patches hidden: 147 of 196; number, range .6-.9 or schedule .5:.75
    blocks: float = 0.8163  # the share of those that rectangles cover, the others being drawn singly: 120 of 147
    feature_weight: float = 1.0  # of the feature loss beside the pixel loss, after a quarter of the run
    weight_mask: bool = True  # a hidden patch counts the more, the more of its neighbours are hidden
    momentum: float | None = None  # of the teacher a step at the start (paper: .999); not given: an average over .2 % of the run, rising to 20 %
    decoder_width: int | None = None  # of the pixel decoder; paper: 512; not given: two thirds of the encoder's width below ViT-B
    decoder_depth: int = 2  # blocks of each decoder

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "blocks momentum", 0, 1)
        within(self, "feature_weight", 0, above=True)
        within(self, "decoder_width decoder_depth", 1)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> RolledBlocks:
        """Which patches are hidden."""
        return RolledBlocks(self.mask_ratio, self.blocks)

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        mlp_ratio: float = 4.0,
        layers: tuple[int, int] | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a timm VisionTransformer, Eva or Beit; `layers`: the blocks that the decoders look at, not given the first and the middle one."""
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", layers=(0,), **sizes)
        encoder.layers = layers or (0, len(encoder.trunk.blocks) // 2)  # the paper's 0 and 6 of 12
        heads = encoder.trunk.blocks[0].attn.num_heads
        grid = encoder.own_grid
        narrow = self.decoder_width or default_size(encoder.width)[0]
        if narrow % 4 or encoder.width % 4 or narrow < heads:
            raise Refused(f"decoder_width {narrow} must be a multiple of 4, and at least the encoder's {heads} heads, which the decoders have too")
        size = (self.decoder_depth, heads, mlp_ratio)
        pixels = Asking(encoder.width, narrow, Painted(narrow, encoder.patch, encoder.in_chans), grid, 0, *size)
        features = Asking(encoder.width, encoder.width, nn.Linear(encoder.width, encoder.width), grid, -1, *size)
        for part in (encoder, pixels, features):
            start(part)
        fix_places(encoder.trunk)
        if encoder.trunk.pos_embed is not None:
            encoder.trunk.pos_embed.data.copy_(row_first(encoder.trunk.pos_embed.data))
        teacher = Teacher(adapted(copy.deepcopy(encoder.trunk), layers=(-1,)), last_block, Rising(self.momentum))
        weigh = surrounded if self.weight_mask else None
        parts: dict[str, Objective] = {
            "pixels": Predict(pixels, Pixels(encoder.patch, by_channel="biased"), losses.mse, weigh=weigh),
            "features": Growing(Predict(features, teacher, normed_mse, weigh=weigh), self.feature_weight),
        }
        return MaskedModel(encoder, self.strategy(grid, encoder.patch), parts, pooling="avg")


class RolledBlocks(Masking):
    """Rectangles that cover a share of what is to be hidden, and single patches up to all of it (BootMAE, masking_generator.py and utils.py).

    Rectangles are between 16 of 120 and half of their budget large; they are never given up. As in the source the whole batch's order is then turned by
    0 to 3 places, so that up to three covered patches are seen.
    """

    TURNS, TABLE = 4, 160

    def __init__(self, ratio: Ratio | float | str = 0.75, blocks: float = 120 / 147):
        super().__init__(ratio)
        self.blocks, self.turn = blocks, 0

    def prepare(self, progress, u):
        super().prepare(progress, u)
        self.turn = int(u * 4096 % 1 * self.TURNS)  # other bits than those of the ratio

    def draws(self, grid):
        return 4 * self.TABLE + math.prod(grid)

    def __call__(self, grid, noise, scores=None):
        if len(grid) != 2:
            raise ValueError(f"block masking is for pictures, not for a grid of {len(grid)} axes")
        N = math.prod(grid)
        hidden = min(max(round(N * self.now), 1), N - 1)
        budget = max(round(hidden * self.blocks), 1)
        smallest, largest = max(1, round(budget * 16 / 120)), max(1, budget // 2)
        block = Block(smallest=smallest, largest=largest, tries=self.TABLE)
        covered = block.rectangles(grid, budget, noise[:, : 4 * self.TABLE].unflatten(1, (-1, 4))).flatten(1)  # (B, N)
        order = (covered + noise[:, 4 * self.TABLE :]).argsort(dim=1, stable=True).roll(min(self.turn, N - hidden, hidden), dims=1)
        return Mask(order[:, : N - hidden], order[:, N - hidden :], grid)


class Asking(Decoder):
    """Visible features and tokens for what is hidden look at each other, and across at one layer of the encoder (BootMAE, section 3.3).

    `layer`: which of the kept layers. Visible features get no place again. `head` says the answer of each place.
    """

    def __init__(self, encoder_width: int, width: int, head: nn.Module, grid: tuple[int, ...], layer: int, depth: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(AskingBlock(width, encoder_width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict, self.grid, self.layer = head, tuple(grid), layer
        self.register_buffer("places", row_first(sincos(self.grid, width).unsqueeze(0)), persistent=False)  # (1, N, width)

    def forward(self, features, mask):
        places = self.places if mask.grid == self.grid else row_first(sincos(mask.grid, self.places.shape[-1]).unsqueeze(0)).to(self.places)
        hidden = self.mask_token + mask.masked(places.expand(len(mask.masked_ids), -1, -1))  # (B, M, width)
        x = torch.cat([self.embed(torch.cat([features.prefix, features.patches], dim=1)), hidden], dim=1)  # (B, P + V + M, width)
        known = torch.cat([features.prefixes[self.layer], features.layers[self.layer]], dim=1)  # (B, P + V, D)
        for block in self.blocks:
            x = block(x, known)
        return self.predict(self.norm(x[:, -hidden.shape[1] :]))  # (B, M, out)


class AskingBlock(nn.Module):
    """All look at all, then at what is known, and change."""

    def __init__(self, width: int, known_width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.norm4 = nn.LayerNorm(known_width, eps=1e-6)
        self.attn, self.c_attn = Cross(width, width, heads), Cross(width, known_width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn(normed, normed)
        x = x + self.c_attn(self.norm3(x), self.norm4(known))
        return x + self.mlp(self.norm2(x))


class Painted(nn.Module):
    """Features to patch vectors, channel first, with one bias a channel: a transposed convolution of a patch a step."""

    def __init__(self, width: int, patch: tuple[int, int], in_chans: int):
        super().__init__()
        self.proj = nn.ConvTranspose2d(width, in_chans, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.proj.weight.flatten(1).T, self.proj.bias.repeat_interleave(math.prod(self.proj.kernel_size)))  # (B, M, C·p·p)


class Growing(Objective):
    """A prediction whose weight grows over the first quarter of the run."""

    def __init__(self, predict: Predict, weight: float):
        super().__init__()
        self.predict, self.weight = predict, weight
        self.note = f"the features' share of the loss grows over the first quarter of the run: the loss rises with it; {predict.note}"
        self.register_buffer("share", torch.tensor(self.at(0.0)))

    def at(self, progress: float) -> float:
        """The weight at a place of the run: the official one steps once an epoch, of 800, and begins with one."""
        return self.weight * min(4 * (progress + 1 / 800), 1)

    def begin(self, encoder):
        self.predict.begin(encoder)

    def follow(self, encoder, progress):
        self.predict.follow(encoder, progress)
        self.share.fill_(self.at(progress))

    def forward(self, features, mask, x, encoder):
        return self.share * self.predict(features, mask, x, encoder)


def surrounded(mask: Mask) -> Tensor:
    """What a hidden patch counts (B, M): 1, and the share of hidden ones among the nine around it, beyond the border none."""
    hidden = mask.map.float()
    around = F.avg_pool2d(hidden.unflatten(1, (1, *mask.grid)), 3, stride=1, padding=1).flatten(1)  # (B, N)
    return 1 + mask.masked(around)


def normed_mse(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each row after a norm without scale and shift; the truth is normed already."""
    return losses.mse(F.layer_norm(prediction.float(), prediction.shape[-1:], eps=1e-6), truth)


def last_block(features: Features) -> Tensor:
    """The patches after the last block, before the final norm, normed without scale and shift."""
    layer = features.layers[-1].float()
    return F.layer_norm(layer, layer.shape[-1:], eps=1e-6)


def start(module: nn.Module) -> None:
    """MAE's initial values, but queries, keys and values each by themselves, and the class token next to zero."""
    mae_init(module)
    each_by_itself(module)
    for name, token in module.named_parameters():
        if name.endswith("cls_token"):
            nn.init.normal_(token, std=1e-6)
        elif name.endswith("mask_token"):
            nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)
