"""AdaMAE: Adaptive Masking for Efficient Spatiotemporal Learning with Masked Autoencoders (Bandara et al., 2022, arXiv:2211.09120), for pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from unmask import losses
from unmask.decoders import Transformer, decoder_size, patch_values
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build
from unmask.encoders.vit import ViT, fix_places, mae_init
from unmask.errors import Refused
from unmask.masking import Attended
from unmask.model import MaskedModel, Predict, Step
from unmask.patches import resize_places
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.pixels import Pixels

HEADS = 8  # of the sampling network, whatever its width
SMALLEST = torch.finfo(torch.float32).eps  # chances are cut to what float32 tells from 0 and from 1, as torch's own Categorical does


@dataclass(frozen=True)
class AdaMAE:
    """As MAE, but a small network says how likely each patch is to be shown, and learns to show what is hard to predict.

    Patches are drawn by its chances. Drawing has no gradient, so its loss is that of policy gradients: the error of each hidden patch times minus
    the logarithm of its chance to be shown. The paper's inputs are clips, 95 % hidden; of pictures, which repeat themselves less, 75 % are.
    """

    sentence = "let a small network say which patches to show, taught by the errors of what it hid; else as MAE"
    source = "Bandara et al. 2022, arXiv:2211.09120"
    standing = "experimental"
    paper = Train(epochs=800, batch_size=1024, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=1e-5)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # MAE's
    learns_mask = True  # by chances of its own, which follow the pictures
    row = ("patches", "learned .75", "dropped", "transformer 384×4", "pixels, normalised by channel → mse, policy gradient")

    mask_ratio: Ratio = Ratio(0.75, 0.75)  # share of patches hidden: number, range .6-.9 or schedule .5:.75
    sampling: float = 1e-4  # weight of the sampling network's loss
    dropout: float = 0.1  # of both branches of the sampling network
    decoder_width: int | None = None  # paper: 384; not given: half of the encoder's width
    decoder_depth: int = 4  # blocks of the decoder
    decoder_heads: int | None = None  # paper: 6; not given: 64 columns a head, or 32

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "decoder_width decoder_depth decoder_heads", 1)
        within(self, "sampling", 0, above=True)
        within(self, "dropout", 0, 0.99)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Attended:
        """Which patches are hidden: what is drawn by chances stays visible."""
        return Attended(self.mask_ratio)

    def decoder_size(self, encoder: Adapter) -> tuple[int, int, int]:
        """Width, blocks and heads of the decoder over that encoder."""
        return decoder_size(self, max(32, encoder.width // 2 // 32 * 32), self.decoder_depth, 64)

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a timm VisionTransformer or Eva, of a width that eight heads divide."""
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", **sizes)
        if not isinstance(encoder, ViT) or encoder.width % HEADS:
            raise Refused(f"adamae wants a plain vision transformer whose width {HEADS} heads divide, not a {type(encoder.trunk).__name__} of width {encoder.width}")
        width, depth, heads = self.decoder_size(encoder)
        grid = encoder.own_grid
        decoder = Transformer(encoder.width, patch_values(encoder.patch, encoder.in_chans), grid, width, depth, heads)
        decoder.embed = nn.Linear(encoder.width, width, bias=False)
        sampler = Sampler(encoder, grid, self.sampling, self.dropout)
        for part in (encoder, decoder, sampler):
            mae_init(part)
        fix_places(encoder.trunk)
        predict = Predict(decoder, Pixels(encoder.patch, by_channel="unbiased"), losses.mse, also=sampler, named="sampling")
        return MaskedModel(encoder, self.strategy(grid, encoder.patch), {"pixels": predict}, scores=sampler.shown)


class Sampler(nn.Module):
    """How likely each patch is to be shown, from what the encoder embeds of it; and what that should have been (section 3.2, get_token_probs)."""

    def __init__(self, encoder: ViT, grid: tuple[int, int], weight: float, dropout: float = 0.1):
        super().__init__()
        self.outside = (encoder,)  # in a tuple: the encoder is a part of the learner already
        self.grid, self.weight = grid, weight
        self.places = nn.Parameter(torch.zeros(1, grid[0] * grid[1], encoder.width))
        self.block = Block(encoder.width, HEADS, qkv_bias=False, norm_layer=partial(nn.LayerNorm, eps=1e-5))
        self.logit = nn.Linear(encoder.width, 1, bias=False)  # the soft-max would not see one
        self.dropout = dropout
        self.left: Tensor | None = None  # what dropout left of both branches when the mask was drawn, (2, B, N, D) of True and False

    def chances(self, x: Tensor, left: Tensor | None = None) -> Tensor:
        """(B, N) of pictures (B, C, H, W), adding up to 1; `left`: what dropout leaves. The gradient reaches the encoder's patch embedding."""
        encoder, block = self.outside[0], self.block
        rows, columns = encoder.grid(x)
        tokens = encoder.trunk.patch_embed(x).reshape(len(x), rows * columns, -1)  # (B, N, D)
        tokens = tokens + resize_places(self.places, self.grid, (rows, columns))
        for number, branch in enumerate((lambda it: block.attn(block.norm1(it)), lambda it: block.mlp(block.norm2(it)))):
            found = branch(tokens)
            tokens = tokens + (found if left is None else found * left[number] / (1 - self.dropout))
        return self.logit(tokens)[..., 0].float().nan_to_num().softmax(-1)  # (B, N)

    @torch.no_grad()
    def shown(self, x: Tensor) -> Tensor:
        """The chances to draw by. While it trains they are those that the step teaches: what dropout leaves is drawn here, and kept for it."""
        shape = (2, len(x), math.prod(self.outside[0].grid(x)), self.places.shape[-1])
        self.left = torch.rand(shape, device=x.device) >= self.dropout if self.training and self.dropout else None
        return self.chances(x, self.left)

    def forward(self, step: Step) -> Tensor:
        chances = step.mask.masked(self.chances(step.x, self.left if self.training else None))  # (B, M)
        return -self.weight * step.mask.mean(chances.clamp(SMALLEST, 1 - SMALLEST).log() * step.each.detach())
