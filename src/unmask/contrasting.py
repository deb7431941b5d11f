"""A learner that tells pictures apart, and notices when it no longer does: MoCo v3, SimCLR and MAE-CT."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.model import MaskedModel
from unmask.settings import Train

REMEDY = "or a lower --method.temperature, which pushes them further; and leave --method.freeze_patches on, for training breaks there first"  # MoCo v3's and SimCLR's


class Watched(nn.Module):
    """How alike different pictures are to the encoder, and what the loss is beside that of guessing, of the last step: signs of a collapse.

    The rank of a collapsed encoder's features need not be small, and batch norm spreads what is left of them; but their directions are nearly one. A tiny network
    at a rate of 5: a mean cosine of .98 to 1.0, and a loss of 1.0 to 3.6 times that of guessing. At the usual rate: cosines of .05 to .55.
    """

    ALIKE, GUESSED = 0.97, 0.9

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("told", torch.zeros(2), persistent=False)

    @torch.no_grad()
    def look(self, features: Tensor, loss: Tensor, choices: int) -> None:
        """Note one view's features (b, D), and the loss of finding the right one of `choices`."""
        if self.training:
            x, rows = F.normalize(features.detach().float(), dim=-1), len(features)
            alike = (x.sum(0).square().sum() - rows) / max(rows * (rows - 1), 1)  # mean cosine of different rows
            self.told.copy_(torch.stack([alike, loss.detach() / math.log(max(choices, 2))]))


class Contrasting(MaskedModel):
    """Its objective `contrast` is watched (`.watched`); `remedy` names the settings that keep pictures apart."""

    def __init__(self, *parts: Any, remedy: str, again: float = 0.0, **named: Any):
        super().__init__(*parts, **named)
        self.again = again
        self.remedy = f"Start again with a lower --lr, a longer warm-up, a larger --batch_size (other pictures keep features apart) {remedy}."

    def signs(self):
        """Mean cosine of different pictures' features, and the loss beside that of guessing (1)."""
        alike, guessed = self.objectives["contrast"].watched.told.tolist()
        return {"pictures_alike": alike, "loss_of_guessing": guessed}

    def collapsed(self):
        alike, guessed = self.signs().values()
        if alike < Watched.ALIKE or guessed < Watched.GUESSED:
            return None
        return f"no picture is told from another: the mean cosine of their features is {alike:.3f} and the loss is {guessed:.2f} of that of guessing", self.remedy


def all_decay(learner: nn.Module, train: Train) -> list[dict[str, Any]]:
    """One group: everything that is trained decays, vectors and biases too (moco-v3, main_moco.py)."""
    return [{"params": [weight for weight in learner.parameters() if weight.requires_grad], "weight_decay": train.weight_decay}]
