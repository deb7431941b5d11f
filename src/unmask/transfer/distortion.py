"""Random distortions of 8-bit pictures in the workers: RandAugment as fine-tuning uses it, and colour.

RandAugment: Cubuk et al. 2019 (arXiv:1909.13719) in timm's form rand-mM-mstd0.5-inc1. What a distortion does to a picture is timm's
code; which one and how strong comes from the sample's own dice, so that it is a function of (seed, epoch, sample).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP
from torch import Tensor

OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd", "ColorIncreasing"),
    *("ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
LAYERS, CHANCE = 2, 0.5  # operations drawn for a picture, and the chance that each is carried out
SPREAD, MOST = 0.5, 10.0  # of the strength


def argument(name: str, level: float, sign: int) -> tuple[float, ...]:
    """The argument of an operation at a strength of 0 to 10; `sign` (1 or -1) is its direction where it has one."""
    k = level / MOST
    if name in ("AutoContrast", "Equalize", "Invert"):
        return ()
    if name == "PosterizeIncreasing":
        return (4 - int(k * 4),)  # bits that are kept
    if name == "SolarizeIncreasing":
        return (256 - min(256, int(k * 256)),)  # values above are inverted
    if name == "SolarizeAdd":
        return (min(128, int(k * 110)),)  # added to values below 128
    if name.endswith("Increasing"):
        return (max(0.1, 1 + sign * k * 0.9),)  # 1: as it is
    return (sign * k * {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}[name],)


@dataclass(frozen=True)
class Distortion:
    """Distorts one 8-bit picture (C, H, W), C = 1 or 3, by the dice that it is given."""

    strength: float  # of RandAugment, 0 to 10; 0: none
    colour: float  # brightness, contrast and saturation change by up to this share; 0: none
    fill: tuple[int, ...]  # what comes in at the edges: the mean of the pictures, one number a channel

    def __call__(self, x: Tensor, dice: Random) -> Tensor:
        picture = Image.fromarray(x[0].numpy() if len(x) == 1 else np.ascontiguousarray(x.permute(1, 2, 0).numpy()))
        for name, values in self.drawn(dice, len(x)):
            picture = self.done(picture, name, values)
        pixels = np.array(picture).reshape(*x.shape[1:], len(x))  # (H, W, C)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def drawn(self, dice: Random, channels: int = 3) -> list[tuple[str, tuple[float, ...]]]:
        """The operations of one picture, with their arguments."""
        found = []
        for _ in range(LAYERS if self.strength else 0):
            name = OPERATIONS[dice.randrange(len(OPERATIONS))]
            if dice.random() < CHANCE:
                level = min(max(dice.gauss(self.strength, SPREAD), 0.0), MOST)
                found.append((name, argument(name, level, 1 if dice.random() < 0.5 else -1)))
        if self.colour:
            kinds = ["Brightness", "Contrast", "Color"][: 3 if channels == 3 else 2]
            dice.shuffle(kinds)
            found += [(name, (dice.uniform(max(0.0, 1 - self.colour), 1 + self.colour),)) for name in kinds]
        return found

    def done(self, picture: Image.Image, name: str, values: tuple[float, ...]) -> Image.Image:
        """The picture after one operation."""
        if name.startswith("Posterize") and values == (0,):  # black, as older Pillow has it; newer ones (13) refuse to keep no bit
            return Image.new(picture.mode, picture.size)
        fill = self.fill if picture.mode == "RGB" else self.fill[0]
        return NAME_TO_OP[name](picture, *values, fillcolor=fill, resample=Image.Resampling.BICUBIC)
