"""Image GPT's network as timm's VisionTransformer: it looks at codes of colours, one pixel a patch, and its blocks are not the usual ones.

Norms without mean and bias, quick GELU, no biases. No name of timm builds it, so it has names of its own here (`igpt_small_patch1_32`, …). Source:
openai/image-gpt, src/model.py (Chen et al. 2020, Generative Pretraining from Pixels).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import RmsNorm, to_2tuple
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.patches import grid_of


def regular(in_chans: int, wanted: int = 512) -> Tensor:
    """Colours (K, C) on a regular grid, as many levels a channel as keep K at most `wanted`, but two."""
    levels = max(2, int(wanted ** (1 / in_chans) + 1e-6))
    if levels**in_chans > 2**13:
        raise ValueError(f"a palette of {in_chans} channels would have {levels**in_chans:,} colours")
    steps = (torch.arange(levels) + 0.5) / levels
    return torch.cartesian_prod(*[steps] * in_chans).reshape(-1, in_chans)


def distances(x: Tensor, colours: Tensor) -> Tensor:
    """Squared distances (B, H, W, K) of pixels (B, C, H, W) to colours (K, C), but for the squares of the pixels, which all have."""
    return colours.square().sum(1) - 2 * x.float().movedim(1, -1) @ colours.T


class Vocabulary(nn.Embedding):
    """A vector a code; `in_channels`: those of the pictures that the codes are made of."""

    in_channels: int = 3


class Coded(nn.Module):
    """Pictures (B, C, H, W) to the vectors of their codes: what timm calls a patch embedding. Of larger patches the mean colour is coded."""

    def __init__(self, img_size: Any = 32, patch_size: Any = 1, in_chans: int = 3, embed_dim: int = 512, output_fmt: str | None = None, **others: Any):
        super().__init__()
        self.img_size, self.patch_size = to_2tuple(img_size), to_2tuple(patch_size)
        self.grid_size = grid_of(self.img_size, self.patch_size)
        self.num_patches, self.flatten = self.grid_size[0] * self.grid_size[1], output_fmt is None
        self.register_buffer("colours", regular(in_chans))  # (K, C) in 0..1
        self.proj = Vocabulary(len(self.colours), embed_dim)
        self.proj.in_channels = in_chans
        nn.init.normal_(self.proj.weight, std=0.02)
        self.register_buffer("mean", torch.zeros(1, in_chans, 1, 1))
        self.register_buffer("std", torch.ones(1, in_chans, 1, 1))

    def sees(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """How the pictures were normalised, a number a channel."""
        for name, given in (("mean", mean), ("std", std)):
            buffer = self.get_buffer(name)
            buffer.copy_(torch.tensor(tuple(given)).float().expand(buffer.shape[1]).reshape(buffer.shape))

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> Any:
        return max(self.patch_size) if as_scalar else self.patch_size

    def forward(self, x: Tensor) -> Tensor:
        grid = grid_of(tuple(x.shape[2:]), self.patch_size)
        pixels = x.float() * self.std + self.mean  # 0..1
        if tuple(x.shape[2:]) != grid:
            pixels = F.interpolate(pixels, size=grid, mode="bicubic", antialias=True)
        found = self.proj(distances(pixels.clamp(0, 1), self.colours).argmin(-1))  # (B, H, W, D)
        return found.flatten(1, 2) if self.flatten else found


def _igpt(arguments: dict[str, Any], **own: Any) -> VisionTransformer:
    own |= {"img_size": 32, "patch_size": 1, "embed_layer": Coded, "norm_layer": partial(RmsNorm, eps=1e-5), "act_layer": "quick_gelu"}
    own |= {"qkv_bias": False, "proj_bias": False}
    own |= {key: value for key, value in arguments.items() if key not in ("pretrained_cfg", "pretrained_cfg_overlay")}
    return timm.create_model("vit_base_patch16_224", **own)


@register_model
def igpt_small_patch1_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _igpt(kwargs, embed_dim=512, depth=24, num_heads=8)


@register_model
def igpt_medium_patch1_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _igpt(kwargs, embed_dim=1024, depth=36, num_heads=8)


@register_model
def igpt_large_patch1_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _igpt(kwargs, embed_dim=1536, depth=48, num_heads=16)
