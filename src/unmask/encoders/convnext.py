"""timm's ConvNeXt, V2 before all, computing what a sparse convolution would: hidden places are zero before every convolution that looks around.

A feature of the last stage stands for a square of 32 pixels. Source: Woo et al. 2023, ConvNeXt V2 (arXiv:2301.00808), section 3.1: the same as
masking before and after dense convolutions, which needs no sparse library; proved by the goldens `fcmae` and `trunks_convnextv2`.

timm attributes used that are not public: `stem`, `stages`, `norm_pre`, of a stage `downsample`, `blocks`, `grad_checkpointing`, of a block `conv_dw`,
`norm`, `mlp` and its parts, `gamma`, `use_conv_mlp`, `drop_path`, `shortcut`.
"""

from __future__ import annotations

from typing import Any

import timm.models.convnext
import torch
from timm.layers import GlobalResponseNormMlp
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unmask.encoders.adapter import Adapter, Hiding
from unmask.encoders.features import Features
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.patches import enlarged


class ConvNeXt(Adapter):
    """`trunk` with hidden squares seen by nobody (`"drop"`), or replaced by a learned token behind the stem (`"token"`).

    With `"drop"` nothing is saved: hidden places are computed and thrown away. The global response norm sums over the visible places of a picture; with
    `together`, of all pictures of a batch, as the official pre-training does. The norm of timm's head is no part of the features; it is not trained.
    """

    def __init__(self, trunk: timm.models.convnext.ConvNeXt, masked: Hiding = "drop", together: bool = False):
        stem = trunk.stem[0]
        super().__init__(trunk, masked, stem.out_channels)
        if len(trunk.stem) != 2 or stem.kernel_size != stem.stride:
            raise Refused("a ConvNeXt is masked only where its stem cuts the picture into patches: choose a convnextv2_*")
        self.together = together
        trunk.head.requires_grad_(False)

    @property
    def width(self) -> int:
        return self.trunk.num_features

    @property
    def patch(self) -> tuple[int, int]:
        return (self.trunk.feature_info[-1]["reduction"],) * 2

    def forward(self, x: Tensor, mask: Mask | None = None) -> Features:
        grid, trunk = self.grid(x), self.trunk
        x = trunk.stem(x)  # (B, C, H, W)
        if mask is None:
            return self.features(trunk.norm_pre(trunk.stages(x)))
        if self.mask_token is not None:
            hidden = enlarged(mask.map, grid, tuple(x.shape[2:])).unsqueeze(1)  # (B, 1, H, W)
            x = torch.where(hidden, self.mask_token.to(x.dtype).reshape(1, -1, 1, 1), mask.fold(x))
            return self.features(trunk.norm_pre(trunk.stages(x)))
        shown = torch.zeros_like(mask.map).scatter(1, mask.visible_ids, True)  # (B, N)
        seen = enlarged(shown, grid, tuple(x.shape[2:])).unsqueeze(1)
        x = torch.where(seen, mask.fold(x), 0)
        for stage in trunk.stages:
            x = stage.downsample(x)
            seen = enlarged(shown, grid, tuple(x.shape[2:])).unsqueeze(1)
            x = torch.where(seen, x, 0)
            for block in stage.blocks:
                recompute = stage.grad_checkpointing and self.training
                x = checkpoint(self.sparse, block, x, seen, use_reentrant=False) if recompute else self.sparse(block, x, seen)
        features = self.features(trunk.norm_pre(x))
        return features._replace(patches=mask.visible(features.patches))

    def features(self, x: Tensor) -> Features:
        """Features of a map (B, D, h, w)."""
        x = x.flatten(2).transpose(1, 2)  # (B, N, D)
        return Features(x, x[:, :0])

    def as_timm(self, features: Features, grid: tuple[int, ...]) -> Tensor:
        return features.patches.transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)

    def sparse(self, block: Any, x: Tensor, seen: Tensor) -> Tensor:
        """timm's block on a map (B, C, H, W) that is zero where nothing is `seen` (B, 1, H, W), and stays so."""
        y = block.conv_dw(x)
        if block.use_conv_mlp:
            y = self.mlp(block.mlp, block.norm(y), seen)
        else:
            y = self.mlp(block.mlp, block.norm(y.permute(0, 2, 3, 1)), seen.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if block.gamma is not None:
            y = y * block.gamma.reshape(1, -1, 1, 1)
        return torch.where(seen, block.drop_path(y) + block.shortcut(x), 0)

    def mlp(self, mlp: Any, x: Tensor, seen: Tensor) -> Tensor:
        """A block's two layers, where the norm between them sums over what is seen."""
        if not isinstance(mlp, GlobalResponseNormMlp):
            return mlp(x)
        x = torch.where(seen, mlp.drop1(mlp.act(mlp.fc1(x))), 0)
        if self.together:  # the batch as one tall picture
            tall = x.transpose(0, 1).flatten(1, 2) if mlp.grn.channel_dim == 1 else x.flatten(0, 1)  # (C, B·H, W), or (B·H, W, C)
            tall = mlp.grn(tall.unsqueeze(0))[0]
            x = tall.unflatten(1, (len(x), -1)).transpose(0, 1) if mlp.grn.channel_dim == 1 else tall.unflatten(0, (len(x), -1))
        else:
            x = mlp.grn(x)
        return mlp.drop2(mlp.fc2(x))
