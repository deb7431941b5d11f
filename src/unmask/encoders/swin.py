"""timm's SwinTransformer: attention within windows that shift from block to block, and patches merged two by two between stages.

A feature of the last stage stands for a square of pixels (32 a side with patches of 4 and four stages). Those squares are what
is masked; the mask is spread to the finer tokens of the stages before. Source: SimMIM (arXiv:2111.09886), where masked tokens are
replaced after the patch embedding's norm; for hiding without a token, keys are closed (proved by the golden `trunks_swin`).

timm attributes used that are not public: `layers`, `norm`, of a stage `downsample`, `blocks`, `grad_checkpointing`, of a block
`norm1`, `attn`, `drop_path1` and their like, `window_size`, `shift_size`, `attn_mask`.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer, window_partition, window_reverse
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unmask.encoders.adapter import Adapter, Hiding
from unmask.encoders.features import Features
from unmask.mask import Mask
from unmask.patches import enlarged


class Swin(Adapter):
    """`trunk` with masked squares replaced by a learned token (`"token"`), or looked at by nobody (`"drop"`).

    With `"drop"` nothing is saved: windows stay whole, and what is hidden is computed and thrown away.
    """

    def __init__(self, trunk: SwinTransformer, masked: Hiding = "token"):
        super().__init__(trunk, masked, trunk.patch_embed.proj.out_channels)

    @property
    def width(self) -> int:
        return self.trunk.num_features

    @property
    def patch(self) -> tuple[int, int]:
        rows, columns = self.trunk.patch_embed.patch_size
        merged = 2 ** (len(self.trunk.layers) - 1)
        return rows * merged, columns * merged

    def grid(self, x: Tensor) -> tuple[int, ...]:
        if tuple(x.shape[2:]) != self.img_size:
            built, given = ("x".join(map(str, size)) for size in (self.img_size, x.shape[2:]))
            raise ValueError(f"this network's windows were made for pictures of {built}, not of {given}: build it for that size")
        return super().grid(x)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Features:
        x = self.trunk.patch_embed(x)  # (B, H, W, C)
        if mask is None:
            return self.features(self.trunk.norm(self.trunk.layers(x)))
        hidden = spread(mask, x.shape[1:3])  # (B, H, W)
        if self.mask_token is not None:
            x = torch.where(hidden.unsqueeze(-1), self.mask_token.to(x.dtype).unsqueeze(1), mask.fold(x))
            return self.features(self.trunk.norm(self.trunk.layers(x)))
        x = torch.where(hidden.unsqueeze(-1), 0, mask.fold(x))  # nobody looks there: not even at an infinity
        for stage in self.trunk.layers:
            x = stage.downsample(x)
            hidden = spread(mask, x.shape[1:3])
            for block in stage.blocks:
                x = checkpoint(closed, block, x, hidden, use_reentrant=False) if stage.grad_checkpointing and self.training else closed(block, x, hidden)
        features = self.features(self.trunk.norm(x))
        return features._replace(patches=mask.visible(features.patches))

    def features(self, x: Tensor) -> Features:
        """Features of a map (B, h, w, D)."""
        x = x.flatten(1, 2)  # (B, N, D)
        return Features(x, x[:, :0])

    def as_timm(self, features: Features, grid: tuple[int, ...]) -> Tensor:
        return features.patches.unflatten(1, grid)  # (B, h, w, D)


def spread(mask: Mask, size: tuple[int, ...]) -> Tensor:
    """The mask of squares as one of the finer grid (B, *size), True = masked."""
    return enlarged(mask.map, mask.grid, tuple(size))


def closed(block: Any, x: Tensor, hidden: Tensor) -> Tensor:
    """timm's block on a map (B, H, W, C), where nobody looks at the places `hidden` (B, H, W); they look at themselves."""
    B, H, W, _ = x.shape
    (h, w), shift = block.window_size, block.shift_size
    back = [-step for step in shift]

    def windows(values: Tensor) -> Tensor:  # (B, H, W, K) -> (B·windows, h·w, K)
        values = F.pad(torch.roll(values, back, (1, 2)), (0, 0, 0, -W % w, 0, -H % h))
        return window_partition(values, (h, w)).flatten(1, 2)

    away = windows(hidden.unsqueeze(-1).to(x.dtype)).transpose(1, 2).bool()  # (B·windows, 1, h·w)
    away = away & ~torch.eye(h * w, dtype=torch.bool, device=x.device)
    bias = torch.zeros(away.shape, dtype=x.dtype, device=x.device).masked_fill(away, -torch.inf)
    if block.attn_mask is not None:
        bias = bias + block.attn_mask.repeat(B, 1, 1)
    y = block.attn(windows(block.norm1(x)), mask=bias).unflatten(1, (h, w))
    y = window_reverse(y, (h, w), H + -H % h, W + -W % w)[:, :H, :W]
    x = x + block.drop_path1(torch.roll(y, shift, (1, 2)))
    return x + block.drop_path2(block.mlp(block.norm2(x)))
