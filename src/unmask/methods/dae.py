"""The denoising autoencoder (Vincent et al., 2008; Journal of Machine Learning Research 11, 2010): what masked modelling grew out of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unmask import losses, seeds
from unmask.decoders import patch_values
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build
from unmask.encoders.vit import fix_places, mae_init
from unmask.model import Learner, first
from unmask.patches import unpatchify
from unmask.settings import Train, Views, within
from unmask.targets.pixels import Pixels


@dataclass(frozen=True)
class DAE:
    """Spoil every pixel a little, and say what the picture was.

    Nothing is hidden and nothing dropped: the encoder sees all of a noisy picture, and one linear layer says the clean one, patch by patch. A
    baseline, of the paper's idea and not of its networks: theirs had one layer, ours is the transformer that the other methods train. Loss: mean
    squared error over all pixels.
    """

    sentence = "add noise to every pixel, and predict the clean picture with one linear layer"
    source = "Vincent et al. 2008, Extracting and Composing Robust Features with Denoising Autoencoders (ICML), and JMLR 11, 2010"
    standing = "experimental: CIFAR-10, 100,000 pictures seen, kNN 32.0 (30.5) and linear 45.8 (44.8) %; in brackets random weights (docs/evidence.md)"
    # the paper has no such network, hence no such schedule: MAE's
    paper = Train(epochs=800, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.0)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # MAE's
    row = ("patches", "nothing, noise on all pixels", "–", "linear", "clean pixels → mse")

    noise: Literal["gaussian", "masking"] = "gaussian"  # added to every number (2010, section 3.3), or numbers set to the mean
    amount: float | None = None  # standard deviation of the noise, the pictures' own being 1, or share of numbers set; not given: .5, or .25

    def __post_init__(self):
        within(self, "amount", 0, above=True)
        if self.noise == "masking":
            within(self, "amount", 0, 1)

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> Denoiser:
        """A fresh learner over any timm network that the other methods take."""
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", **sizes)
        predict = nn.Linear(encoder.width, patch_values(encoder.patch, encoder.in_chans))
        mae_init(encoder)
        mae_init(predict)
        fix_places(encoder.trunk)
        return Denoiser(encoder, predict, self.noise, self.amount or {"gaussian": 0.5, "masking": 0.25}[self.noise])


class Denoiser(Learner):
    """Every picture is spoilt, encoded whole, and said as it was. The class token is never asked."""

    pooling = "avg"
    KEYS = 2  # uniform numbers a picture, from which the noise of all its pixels follows

    def __init__(self, encoder: Adapter, predict: nn.Linear, noise: str, amount: float):
        super().__init__()
        self.encoder, self.predict, self.noise, self.amount = encoder, predict, noise, amount
        self.target = Pixels(encoder.patch, normalize=False)

    def draws(self, x):
        return self.KEYS

    def spoilt(self, x: Tensor, noise: Tensor) -> Tensor:
        """Noisy pictures (B, C, H, W), a function of the pictures and their numbers `noise` (B, KEYS) alone."""
        uniform = spread(noise, x[0].numel()).unflatten(1, x.shape[1:])  # (B, C, H, W, 2)
        if self.noise == "masking":
            return torch.where(uniform[..., 0] < self.amount, 0, x)
        normal = (-2 * uniform[..., 0].log()).sqrt() * torch.cos(2 * math.pi * uniform[..., 1])  # Box and Muller (1958)
        return x + self.amount * normal

    def forward(self, x, noise=None, mask=None, rows=None):
        x = first(x)
        if noise is None:
            noise = torch.rand(len(x), self.KEYS, device=x.device)
        said = self.predict(self.encoder(self.spoilt(x, noise if rows is None else noise[rows])).patches)  # (B, N, C·p·p)
        loss = losses.mse(said, self.target(x)).mean()
        return {"pixels": loss, "loss": loss}

    @torch.no_grad()
    def baselines(self, x, noise, rows=None):
        x = first(x)
        truth, spoilt = self.target(x), self.target(self.spoilt(x, noise if rows is None else noise[rows]))
        return {"best_constant": self.target.baseline(truth, losses.mse).item(), "copy_noisy": losses.mse(spoilt, truth).mean().item()}

    @torch.no_grad()
    def redrawn(self, x, seed):
        spoilt = self.spoilt(x, seeds.uniform((len(x), self.KEYS), seed, "reconstruct").to(x.device))
        return spoilt, unpatchify(self.predict(self.encoder(spoilt).patches).float(), self.encoder.grid(x), self.encoder.patch)


def spread(keys: Tensor, count: int) -> Tensor:
    """Uniform numbers (B, count, 2) in (0, 1], each a function of its row of `keys` (B, 2) in [0, 1) and of its place.

    Counting and mixing the bits of the count, as counter-based generators do (Salmon et al. 2011); the mixing is Wellons' `lowbias32`. So a
    picture's noise needs two numbers and not one a pixel, and is the same on every machine and in any number of processes.
    """
    places = torch.arange(2 * count, device=keys.device)  # (2·count,)
    one, other = (keys.float() * 2**24).long().unsqueeze(2).unbind(1)  # (B, 1) each
    bits = mixed(mixed(mixed(places ^ mixed(one)) + other & LOW))  # (B, 2·count)
    return (((bits >> 8).float() + 1) / 2**24).unflatten(1, (count, 2))


LOW = 2**32 - 1


def mixed(bits: Tensor) -> Tensor:
    """Each of 32 bits made to depend on all; one to one."""
    bits = (bits ^ bits >> 16) * 0x7FEB352D & LOW
    bits = (bits ^ bits >> 15) * 0x846CA68B & LOW
    return bits ^ bits >> 16
