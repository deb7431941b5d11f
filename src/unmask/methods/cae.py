"""CAE: Context Autoencoder for Self-Supervised Representation Learning (Chen et al., 2022, arXiv:2202.03026)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import Block as SelfAttention
from torch import Tensor, nn
from torch.nn import functional as F

from unmask import losses
from unmask.decoders import Decoder
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import adapted, build, drop_path
from unmask.encoders.features import Features
from unmask.encoders.initial import layer_scale
from unmask.encoders.vit import fix_places, mae_init
from unmask.mask import Mask
from unmask.masking import Block
from unmask.model import MaskedModel, Predict, Step
from unmask.patches import sincos
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.codes import Codes, open_tokenizer


@dataclass(frozen=True)
class CAE:
    """Hide half of the picture, guess what the encoder would have made of it, and name the codes of hidden patches from that guess alone.

    The encoder looks at visible patches only and predicts nothing. A regressor, which asks the visible features for each hidden place, makes hidden features; they
    are aligned with what the encoder itself makes of the hidden patches, seen apart, and a small decoder names the codes from them. So the encoder is left
    to describe, and others to predict. Loss: cross entropy, and twice the squared error of the alignment.
    """

    sentence = "drop half of the picture, in blocks; a regressor guesses the hidden features, which the encoder confirms, and a decoder names their codes"
    source = "Chen et al. 2022, arXiv:2202.03026"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 32.9 (30.9) and linear 48.3 (44.0) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=1600, batch_size=2048, base_lr=1.875e-4, min_lr=1e-5, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.999), clip=3.0)
    views = Views(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # scripts/cae_base_1600e.sh: no colour jitter
    row = ("patches", "block .5", "dropped", "cross attention 4, then transformer 4", "dVAE codes → CE, own features → mse")
    needs = ("tokenizer",)

    tokenizer: str | None = None  # whose codes are predicted: a run of `unmask tokenizer train`, or DALL-E's encoder as a plain state dict
    mask_ratio: Ratio = Ratio(0.5, 0.5)  # share of patches hidden: 98 of 196, always as many; number, range .4-.6 or schedule .4:.6
    regressor: int = 4  # blocks that make hidden features from visible ones
    decoder: int = 4  # blocks that name codes from hidden features
    alignment: float = 2.0  # weight of the squared error between guessed features and the encoder's own
    layer_scale: float = 0.1  # where the branches begin, in the encoder too if its branches have scales
    drop_path: float = 0.1  # chance to leave out the last block's branches

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "drop_path", 0, 1)
        within(self, "regressor decoder", 1)
        within(self, "alignment", 0)
        within(self, "layer_scale", 0, above=True)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Block:
        """Which patches are hidden."""
        return Block(self.mask_ratio, exact=True, tries=TRIES, table=TRIES)

    def build(
        self,
        model: str | nn.Module = "deit3_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over any timm network that can drop patches; DeiT III's is the paper's: scaled branches, a class token without a place."""
        encoder: Any = build(model, img_size, in_chans, patch_size, masked="drop", **sizes)
        target = Codes(open_tokenizer(self.tokenizer, encoder.in_chans, "cae"), encoder.patch, encoder.in_chans)
        first = encoder.trunk.blocks[0]
        size = Size(encoder.width, first.attn.num_heads, first.mlp.fc2.in_features, self.layer_scale)
        grid = encoder.own_grid
        regressor = Regressor(size, grid, self.regressor)
        decoder = Naming(size, grid, self.decoder, target.tokenizer.vocabulary)
        for part in (encoder, regressor, decoder):
            mae_init(part)
        layer_scale(encoder, self.layer_scale)
        fix_places(encoder.trunk)
        if encoder.trunk.pos_embed is not None:
            encoder.trunk.pos_embed.copy_(torch.cat([encoder.trunk.pos_embed[:, : -len(table(grid, size.width))], table(grid, size.width)[None]], dim=1))
        drop_path(encoder, self.drop_path)
        also = Alignment(adapted(encoder.trunk), self.alignment) if self.alignment else None
        predict = Predict(decoder, target, losses.cross_entropy, also, through=regressor, named="alignment")
        masking = self.strategy(grid, encoder.patch)
        return MaskedModel(encoder, masking, {"codes": predict}, undecayed=("cls_token", "pos_embed"), pooling="cls")


TRIES = 128  # rectangles read from the noise: the source tries until the count is reached, never giving up


class Size(NamedTuple):
    """Of a block: columns, heads, columns inside the feed-forward branch, where the scales of branches begin."""

    width: int
    heads: int
    hidden: int
    scale: float


def table(grid: tuple[int, ...], width: int) -> Tensor:
    """CAE's fixed places (N, D): MAE's with the row's half before the column's."""
    half = 2 * (width // 4)
    places = sincos(grid, width)
    return torch.cat([places[:, half : 2 * half], places[:, :half], places[:, 2 * half :]], dim=1)


class Regressor(nn.Module):
    """Features (B, M, D) for hidden places, asked for from the visible ones: cross attention, in which hidden places are keys too."""

    def __init__(self, size: Size, grid: tuple[int, int], depth: int):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.blocks = nn.ModuleList(Asking(size) for _ in range(depth))
        self.norm = nn.LayerNorm(size.width, eps=1e-6)
        self.register_buffer("places", table(grid, size.width).unsqueeze(0), persistent=False)  # (1, N, D)
        self.grid = grid

    def forward(self, features: Features, mask: Mask) -> Features:
        places = placed(self.places, self.grid, mask)  # (B, N, D)
        visible, where, there = features.patches, mask.masked(places), torch.cat([mask.visible(places), mask.masked(places)], dim=1)
        x = self.mask_token.expand(*mask.masked_ids.shape, -1)  # (B, M, D)
        for block in self.blocks:
            x = block(x, torch.cat([visible, x], dim=1), where, there)
        return Features(self.norm(x), features.prefix)


def placed(places: Tensor, grid: tuple[int, ...], mask: Mask) -> Tensor:
    """The places of a mask's grid, (B, N, D)."""
    places = places if mask.grid == grid else table(mask.grid, places.shape[-1]).unsqueeze(0).to(places)
    return places.expand(len(mask.masked_ids), -1, -1)


class Asking(nn.Module):
    """A block of the regressor. Values have no places; behind the attention the norm *replaces* the stream (modeling_cae_helper.py)."""

    def __init__(self, size: Size):
        super().__init__()
        width, self.heads = size.width, size.heads
        self.norm_q, self.norm_k, self.norm_v, self.norm = (nn.LayerNorm(width, eps=1e-6) for _ in range(4))
        self.norm_k.bias.requires_grad_(False)  # what all keys have in common softmax takes away
        self.q, self.v, self.proj = (nn.Linear(width, width) for _ in range(3))
        self.k = nn.Linear(width, width, bias=False)
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((width,), size.scale)) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, size.hidden), nn.GELU(), nn.Linear(size.hidden, width))

    def forward(self, x: Tensor, context: Tensor, where: Tensor, there: Tensor) -> Tensor:
        parts = self.q(self.norm_q(x + where)), self.k(self.norm_k(context + there)), self.v(self.norm_v(context))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)  # (B, heads, M or N, d)
        said = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, M, D)
        x = self.norm(x + self.gamma_1 * self.proj(said))
        return x + self.gamma_2 * self.mlp(x)


class Naming(Decoder):
    """From hidden features, and nothing else, to codes: blocks in which hidden places attend to each other, a norm, one linear layer."""

    def __init__(self, size: Size, grid: tuple[int, int], depth: int, out: int):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        ratio = (size.hidden + 0.5) / size.width  # timm cuts off the fraction
        self.blocks = nn.ModuleList(SelfAttention(size.width, size.heads, ratio, qkv_bias=True, init_values=size.scale, norm_layer=norm) for _ in range(depth))
        self.norm, self.predict = norm(size.width), nn.Linear(size.width, out)
        self.register_buffer("places", table(grid, size.width).unsqueeze(0), persistent=False)  # (1, N, D)
        self.grid = grid

    def forward(self, features, mask):
        x = features.patches + mask.masked(placed(self.places, self.grid, mask))  # (B, M, D)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x))


class Alignment(nn.Module):
    """Guessed features are those that the encoder makes of the hidden patches alone: squared error, no gradient through the encoder's own.

    As in the paper it is the encoder of the moment (section 3.1); the paper's code keeps a copy with momentum 0, which is one step behind.
    """

    def __init__(self, encoder: Adapter, weight: float):
        super().__init__()
        self.outside = (encoder,)  # over the trunk that is trained: in a tuple, so that it is saved once
        self.weight = weight

    def forward(self, step: Step) -> Tensor:
        with torch.no_grad():
            hidden = self.outside[0](step.x, Mask(step.mask.masked_ids, step.mask.visible_ids, step.mask.grid)).patches
        return self.weight * F.mse_loss(step.features.patches.float(), hidden.float())
