"""AIM: Scalable Pre-training of Large Autoregressive Image Models (El-Nouby et al., 2024, arXiv:2401.08541)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from unmask import losses
from unmask.decoders import Decoder, patch_values
from unmask.encoders.build import build
from unmask.encoders.vit import fix_places, mae_init
from unmask.masking import Prefix
from unmask.model import MaskedModel, Predict
from unmask.patches import sincos
from unmask.settings import Train, Views, within
from unmask.targets.pixels import Pixels


@dataclass(frozen=True)
class AIM:
    """Read a picture patch by patch, as a text is read, and say the pixels of the next one.

    A first stretch of any length is seen both ways, and nothing is asked about it: so the network can later look at a whole picture both
    ways, too. Places after it see what stands before them. The published code holds neither loss nor head: both follow the paper's words. Loss:
    mean squared error over the patches after the stretch.
    """

    sentence = "read the patches in order, and predict the pixels of the next one; a first stretch is seen both ways"
    source = "El-Nouby et al. 2024, arXiv:2401.08541"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 34.4 (30.5) and linear 46.7 (44.8) %; in brackets random weights (docs/evidence.md)"
    # the paper counts steps, not epochs: 1e-3 at 4,096 pictures; its longest runs see two billion pictures two and a half times
    paper = Train(epochs=300, batch_size=4096, base_lr=6.25e-5, warmup_epochs=19, weight_decay=0.05, betas=(0.9, 0.95), clip=1.0)
    views = Views(scale=(0.4, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")
    row = ("patches", "all after a stretch of any length", "causal", "perceptrons 2048×12", "next patch, per-patch normalised → mse")

    norm_pix: bool = True  # normalise each target patch by its own mean and standard deviation
    head_width: int | None = None  # paper: 2048; not given: twice the encoder's width below ViT-B
    head_depth: int | None = None  # residual perceptrons of the head; paper: 12; not given: 2 below ViT-B

    def __post_init__(self):
        within(self, "head_width head_depth", 1)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Prefix:
        """Which patches are hidden."""
        return Prefix()

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over a timm VisionTransformer or Eva; the paper's have neither class token nor biases in their blocks."""
        encoder = build(model, img_size, in_chans, patch_size, masked="causal", **sizes)
        large = encoder.width >= 768
        grid = encoder.own_grid
        width, depth = self.head_width or (2048 if large else 2 * encoder.width), self.head_depth or (12 if large else 2)
        decoder = Perceptrons(encoder.width, patch_values(encoder.patch, encoder.in_chans), grid, width, depth)
        mae_init(encoder)
        mae_init(decoder)
        fix_places(encoder.trunk)
        predict = Predict(decoder, Pixels(encoder.patch, self.norm_pix), losses.mse)
        return MaskedModel(encoder, self.strategy(grid, encoder.patch), {"pixels": predict}, pooling="avg")


class Perceptrons(Decoder):
    """Each place by itself: its features and where it is, through residual perceptrons (AIM, section 3.2)."""

    def __init__(self, encoder_width: int, out: int, grid: tuple[int, ...], width: int = 2048, depth: int = 12, ratio: int = 4):
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, ratio * width, bias=False), nn.GELU(), nn.Linear(ratio * width, width, bias=False))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, out)
        self.grid = tuple(grid)
        self.register_buffer("places", sincos(self.grid, width).unsqueeze(0), persistent=False)  # (1, N, width)

    def forward(self, features, mask):
        places = self.places if mask.grid == self.grid else sincos(mask.grid, self.places.shape[-1]).unsqueeze(0).to(self.places)
        x = self.embed(mask.masked(features.patches)) + mask.masked(places.expand(len(mask.masked_ids), -1, -1))  # (B, M, width)
        for block in self.blocks:
            x = x + block(x)
        return self.predict(self.norm(x))  # (B, M, out)
