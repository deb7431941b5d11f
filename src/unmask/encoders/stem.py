"""What looks at the picture first, and at which size: timm's families say it in different places."""

from __future__ import annotations

from typing import Any

from timm.models.convnext import ConvNeXt
from timm.models.hiera import Hiera


def stem(trunk: Any) -> str:
    """The name of the layer that sees pixels."""
    return "stem.0" if isinstance(trunk, ConvNeXt) else "patch_embed.proj"


def in_chans_of(trunk: Any) -> int:
    """Channels of the input."""
    return trunk.get_submodule(stem(trunk)).in_channels


def patch_of(trunk: Any) -> tuple[int, int]:
    """Pixels a token of the first layer stands for, down and across."""
    if isinstance(trunk, Hiera | ConvNeXt):
        return tuple(trunk.get_submodule(stem(trunk)).stride)
    return tuple(trunk.patch_embed.patch_size)


def grid_of_places(trunk: Any) -> tuple[int, int]:
    """Rows and columns of its table of absolute places."""
    return tuple(trunk.tokens_spatial_shape if isinstance(trunk, Hiera) else trunk.patch_embed.grid_size)


def multiple_of(trunk: Any) -> tuple[int, int]:
    """What the sides of a picture are multiples of where nobody masks: patches, mask units of a Hiera; a ConvNeXt takes any."""
    if isinstance(trunk, ConvNeXt):
        return 1, 1
    rows, columns = patch_of(trunk)
    return (rows * trunk.mask_unit_size[0], columns * trunk.mask_unit_size[1]) if isinstance(trunk, Hiera) else (rows, columns)


def size_of(trunk: Any) -> tuple[int, int]:
    """Height and width of the input that it was built for; a ConvNeXt takes any, and remembers which was asked for."""
    if isinstance(trunk, Hiera):
        rows, columns = (side * stride for side, stride in zip(trunk.tokens_spatial_shape, trunk.patch_stride))
        return rows, columns
    if isinstance(trunk, ConvNeXt):
        return tuple(vars(trunk).get("unmask_kwargs", {}).get("img_size", trunk.pretrained_cfg["input_size"][1:]))
    return tuple(trunk.patch_embed.img_size)
