"""FCMAE: ConvNeXt V2, Co-designing and Scaling ConvNets with Masked Autoencoders (Woo et al., 2023, arXiv:2301.00808)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from unmask import losses
from unmask.decoders import Decoder, default_size, patch_values
from unmask.encoders.build import build
from unmask.encoders.convnext import ConvNeXt
from unmask.errors import Refused
from unmask.masking import Random
from unmask.model import MaskedModel, Predict
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.pixels import Pixels


@dataclass(frozen=True)
class FCMAE:
    """Hide squares of 32 pixels from a convolutional network, and let one block of it say the pixels of what is hidden.

    No convolution sees a hidden place, as if it were sparse; the decoder is one more block of the same kind over the whole grid, with a token where
    nothing was seen and no places. Loss: mean squared error over hidden squares, each normalised.
    """

    sentence = "hide 60 % of the picture, in squares of 32 pixels, from a ConvNeXt V2; one block more predicts their pixels"
    source = "Woo et al. 2023, arXiv:2301.00808"
    standing = "experimental"
    network = "convnextv2_atto"
    kinds, patches = ("ConvNeXt",), (1, 4)  # networks, and patches that fit them (behind patches of 2 timm's first stage halves once more)
    paper = Train(epochs=800, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.0)  # TRAINING.md: 1600 for the published
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # main_pretrain.py
    row = ("patches", "random .6, squares of 32 px", "dropped", "ConvNeXt V2 block 512×1", "pixels, per-patch normalised → mse")

    mask_ratio: Ratio = Ratio(0.6, 0.6)  # share of squares hidden: number, range .5-.7 or schedule .5:.75
    norm_pix: bool = True  # normalise each target square by its own mean and standard deviation
    grn: Literal["picture", "batch"] = "picture"  # what the response norm sums over: visible places of a picture, as it will later; official: of the process's batch
    init_std: float = 0.02  # of the first weights; official code: 1, with which a short run does not get below the patch mean
    decoder_width: int | None = None  # paper: 512; not given: two thirds of the encoder's last width where that is below 768
    decoder_depth: int = 1  # blocks of the decoder

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "decoder_width decoder_depth", 1)
        within(self, "init_std", 0, above=True)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Random:
        """Which squares are hidden: features of the last stage, 32 pixels a side."""
        return Random(self.mask_ratio)

    def build(
        self,
        model: str | nn.Module = "convnextv2_atto",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a timm ConvNeXt (V2, or the first); `patch_size`: pixels a token of the first stage (4), a square has eight a side."""
        built = build(model, img_size, in_chans, patch_size, masked="drop", **sizes)
        if not isinstance(built, ConvNeXt):
            raise Refused(f"fcmae is for a ConvNeXt, and this is a {type(built.trunk).__name__}")
        encoder = ConvNeXt(built.trunk, together=self.grn == "batch")
        width = self.decoder_width or default_size(encoder.width)[0]
        decoder = Convolved(encoder.width, patch_values(encoder.patch, encoder.in_chans), width, self.decoder_depth)
        start(encoder.trunk, self.init_std)
        for layer in (decoder.embed, decoder.predict, *(block.conv_dw for block in decoder.blocks)):
            trunc_normal_(layer.weight, std=self.init_std)
            nn.init.zeros_(layer.bias)
        predict = Predict(decoder, Pixels(encoder.patch, self.norm_pix), losses.mse)
        return MaskedModel(encoder, self.strategy(encoder.own_grid, encoder.patch), {"pixels": predict}, pooling="avg")


class Convolved(Decoder):
    """Visible features and a token elsewhere on their grid, ConvNeXt V2 blocks over it, one linear layer."""

    def __init__(self, encoder_width: int, out: int, width: int = 512, depth: int = 1):
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, use_grn=True, ls_init_value=None) for _ in range(depth))
        self.predict = nn.Linear(width, out)

    def forward(self, features, mask):
        x = mask.join(self.embed(features.patches), self.mask_token.expand(*mask.masked_ids.shape, -1))  # (B, N, width)
        x = x.transpose(1, 2).unflatten(2, mask.grid)  # (B, width, H, W)
        for block in self.blocks:
            x = block(x)
        return self.predict(mask.masked(x.flatten(2).transpose(1, 2)))  # (B, M, out)


def start(trunk: nn.Module, std: float) -> None:
    """The official code's initial values (fcmae.py): normal, cut at two; the convolutions between stages have .02, biases 0.

    Its normal has a deviation of 1 where other codes have .02: timm's `trunc_normal_` is called there without one.
    """
    for name, layer in trunk.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            trunc_normal_(layer.weight, std=0.02 if ".downsample." in name else std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
