"""A network of timm that no mask can go into (a ResNet, a ConvNeXt, …), as fine-tuning sees it: whole pictures to features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unmask.encoders.features import Features
from unmask.errors import Refused


class Whole(nn.Module):
    """Pictures (B, C, H, W) to Features without a prefix; `trunk` is timm's network, unchanged.

    Where a mean is wanted it is the network's own pooling, with what timm keeps behind it, and `patches` is (B, 1, D): the features of
    `evaluate`. With `places` they are the places of its last map, (B, N, D).
    """

    def __init__(self, trunk: Any, img_size: tuple[int, int], in_chans: int, places: bool = False):
        super().__init__()
        self.trunk, self.img_size, self.in_chans, self.places = trunk, tuple(img_size), in_chans, places
        training = trunk.training
        with torch.enable_grad():
            found = trunk.eval().forward_features(torch.zeros(1, in_chans, *img_size))
            columns = found.shape[1] if isinstance(found, Tensor) and found.dim() == 4 else 0
            self.last = columns != trunk.num_features  # which axis of the map holds the columns
            if places and (not isinstance(found, Tensor) or found.dim() < 3 or (self.last and found.shape[-1] != trunk.num_features)):
                raise Refused(f"--pooling attentive: a {type(trunk).__name__} gives no map of features; use avg")
            used = found if places else trunk.forward_head(found, pre_logits=True)
        named = [] if torch.is_inference_mode_enabled() else list(trunk.named_parameters())  # there nothing is trained
        grads = torch.autograd.grad(used.sum(), [parameter for _, parameter in named], allow_unused=True) if named else []
        self.unused = frozenset(name for (name, _), grad in zip(named, grads) if grad is None)
        self.width = int(trunk.num_features if places else used.shape[1])
        trunk.train(training)

    def leave_unused(self) -> None:
        """Freeze what has no part in the features (timm's layers behind the map, where its places are taken)."""
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in self.unused)

    def take(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        return next(iter(x.values())) if isinstance(x, dict) else x

    def forward(self, x: Tensor) -> Features:
        x = self.trunk.forward_features(x)
        if not self.places:
            x = self.trunk.forward_head(x, pre_logits=True).unsqueeze(1)  # (B, 1, D)
        else:
            x = (x if self.last else x.permute(0, 2, 3, 1)).reshape(len(x), -1, self.width)  # (B, N, D)
        return Features(x, x[:, :0])
