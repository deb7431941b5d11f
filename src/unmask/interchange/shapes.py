"""The network that a state dict belongs to, read off the shapes of its tensors; what shapes do not tell is assumed and said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from unmask.errors import Refused

PUBLISHED = {  # (width, blocks): what timm calls the size, its heads, whether other head counts are about (MAE-Lite, MoCo v3: 12)
    (192, 12): ("tiny", 3, True),
    (384, 12): ("small", 6, True),
    (768, 12): ("base", 12, False),
    (1024, 24): ("large", 16, False),
    (1280, 32): ("huge", 16, False),
    (1408, 40): ("giant", 16, False),
    (1664, 48): ("gigantic", 16, False),
    (1536, 40): ("dinov2 giant", 24, False),
    (1536, 48): ("", 24, False),  # Pixio 1B
    (3072, 48): ("", 32, False),  # Pixio 5B
}
SCALED = ("small", "base", "large", "dinov2 giant")  # sizes that timm has with DINOv2's layer scales


class Network(NamedTuple):
    """timm's name of a network, the arguments that build it, and what was assumed about it."""

    name: str
    kwargs: dict[str, Any]
    assumed: list[str]
    published: bool = True  # whether the name says the size, too


def network_of(state: Mapping[str, Tensor], path: str, img_size: tuple[int, int] | None = None, heads: int | None = None, hint: int | None = None) -> Network:
    """The timm VisionTransformer that has exactly these tensors (timm's names).

    `img_size` says the grid where it is not square; `heads` what shapes never tell; `hint`: the heads that the file's family
    has. Raises `Refused` where the tensors are not those of a plain vision transformer.
    """
    patch, width, channels = patch_of(state, path)
    depth = depth_of(state, path)
    prefix = sum(state[name].shape[1] for name in ("cls_token", "reg_token") if name in state)
    rows, own = state["pos_embed"].shape[1:]
    if own != width:
        raise Refused(f"{path} has places of width {own} beside blocks of width {width}: SatMAE's network for dates, or another that this version does not open")
    if "norm_pre.weight" in state:
        raise Refused(f"{path} has a norm before its blocks, as CLIP's networks have, whose activation no shape tells: say FILE:model=NAME")
    grid, embedded = grid_of_places(rows, prefix, patch, img_size, path)
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    size, usual, doubt = PUBLISHED.get((width, depth), ("", 0, True))
    chosen, assumed = heads_of(width, heads, hint, usual, doubt)
    kwargs: dict[str, Any] = {
        "img_size": (grid[0] * patch[0], grid[1] * patch[1]),
        "in_chans": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": chosen,
        "mlp_ratio": ratio(hidden, width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "class_token": "cls_token" in state,
        "reg_tokens": state["reg_token"].shape[1] if "reg_token" in state else 0,
        "no_embed_class": prefix > 0 and not embedded,
        "fc_norm": "fc_norm.weight" in state,
        "global_pool": "avg" if "fc_norm.weight" in state or "cls_token" not in state else "token",
        "num_classes": 0,
        "dynamic_img_size": True,
    }
    return Network(_name(size, kwargs, hidden == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]), kwargs, assumed, bool(size))


def _name(size: str, kwargs: Mapping[str, Any], gated: bool) -> str:
    """timm's name of the network, or of the nearest one: its arguments say the rest."""
    registers = "_reg4" if kwargs["reg_tokens"] == 4 and kwargs["no_embed_class"] else ""
    if gated:
        return f"vit_giant_patch14{registers}_dinov2"
    if kwargs["init_values"] and size in SCALED:
        return f"vit_{size.removeprefix('dinov2 ')}_patch14{registers}_dinov2"
    size = "base" if size in ("", "dinov2 giant") else size
    return f"vit_{size}_patch{14 if size in ('huge', 'giant', 'gigantic') else 16}_224"


def patch_of(state: Mapping[str, Tensor], path: str) -> tuple[tuple[int, int], int, int]:
    """Patch sides, width and channels."""
    weight = state["patch_embed.proj.weight"]
    if weight.dim() != 4:
        what = "a network for video or volumes" if weight.dim() == 5 else "an embedding that is no convolution"
        raise Refused(f"{path} embeds patches by weights of shape {tuple(weight.shape)}: {what}, which this version does not open")
    width, channels, *sides = weight.shape
    return (sides[0], sides[1]), width, channels


def depth_of(state: Mapping[str, Tensor], path: str) -> int:
    """How many blocks there are; each must have what the first has."""
    inner: dict[int, set[str]] = {}
    for name in state:
        if found := re.match(r"blocks\.(\d+)\.(.+)", name):
            inner.setdefault(int(found[1]), set()).add(found[2])
    if sorted(inner) != list(range(len(inner))) or not inner:
        raise Refused(f"{path} has the blocks {sorted(inner)}: some are missing")
    lacking = [f"blocks.{i}.{name}" for i, names in sorted(inner.items()) for name in sorted(inner[0] - names)]
    if lacking:
        raise Refused(f"{path} lacks {', '.join(lacking[:4])}: the file is cut, or its last block is a stump as in MAE-Lite's distilled network")
    return len(inner)


def grid_of_places(rows: int, prefix: int, patch: tuple[int, int], img_size: tuple[int, int] | None, path: str) -> tuple[tuple[int, int], bool]:
    """Rows and columns of patches, and whether prefix tokens have a place of their own."""
    for count, embedded in ((rows - prefix, True), (rows, False)):
        if img_size is not None and img_size[0] * img_size[1] == count * patch[0] * patch[1] and not img_size[0] % patch[0] and not img_size[1] % patch[1]:
            return (img_size[0] // patch[0], img_size[1] // patch[1]), embedded
        side = math.isqrt(max(count, 0))
        if count > 0 and side * side == count:
            return (side, side), embedded
    raise Refused(f"{path} has {rows - prefix} places, which is no square grid: say the size it was trained on, --img_size HEIGHT WIDTH (AudioMAE: 1024 128)")


def heads_of(width: int, said: int | None, hint: int | None, usual: int, doubt: bool) -> tuple[int, list[str]]:
    """The number of heads: said, known from the family, usual at this width, or 64 columns each."""
    heads = said or hint or usual or max(1, round(width / 64))
    if width % heads:
        if said:
            raise Refused(f"heads={heads} does not divide the width {width}")
        heads = next(count for count in range(heads, 0, -1) if width % count == 0)
    if said or hint or not doubt:
        return heads, []
    return heads, [f"{heads} heads assumed, {width // heads} columns each: the file does not tell (FILE:heads=N says another)"]


def ratio(hidden: int, width: int) -> float:
    """The ratio from which timm computes this number of hidden columns (it cuts off the fraction)."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def heads_of_family(family: str, trunk: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> int | None:
    """The heads that are known from elsewhere in the file: MoCo v3's ViT-S and MAE-Lite's ViT-T and ViT-S have 12."""
    width = trunk["patch_embed.proj.weight"].shape[0]
    lite = "decoder_embed.weight" in decoder and tuple(decoder["decoder_embed.weight"].shape) in ((96, 192), (192, 384)) and "decoder_blocks.1.norm1.weight" not in decoder
    return 12 if lite or (family == "MoCo v3" and width == 384) else None
