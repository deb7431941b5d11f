"""AIM's published networks as timm's VisionTransformer: no class token, no biases in the blocks, a norm on the embedded patches.

Source: apple/ml-aim, aim-v1. The files hold no table of places (sines and cosines, which we compute) and no trace of the prefix: published
networks look at a picture both ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unmask.errors import Refused
from unmask.interchange.prefixes import in_ours, in_theirs
from unmask.interchange.shapes import Network, ratio
from unmask.patches import sincos

HEADS = {1536: 12, 2048: 16, 3072: 24, 4096: 32}  # by width: 600M, 1B, 3B, 7B
ROWS = (  # theirs, ours
    ("preprocessor.patchifier.", "patch_embed."),
    ("trunk.post_trunk_norm.", "norm."),
    ("trunk.blocks.", "blocks."),
)
OURS = {"norm_1": "norm1", "norm_2": "norm2"}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def tells(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are AIM's."""
    return "preprocessor.patchifier.proj.weight" in state


def ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Official names to timm's; second, those that are no part of the encoder: the probe, and masks that are computed."""
    found, left = {}, []
    for key, value in state.items():
        name = in_ours(key, ROWS)
        if name is None or key.endswith("attn_mask"):
            left.append(key)
        else:
            found[re.sub(r"norm_[12]", lambda norm: OURS[norm[0]], name)] = value
    return found, left


def theirs(trunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's names to the official ones; a trunk that has more than AIM's is refused."""
    found = {}
    for key, value in trunk.items():
        if key == "pos_embed":
            continue
        name = in_theirs(key, ROWS)
        if name is None or re.search(r"(qkv|attn\.proj|fc1|fc2)\.bias$", key):
            raise Refused(f"{key} has no place in AIM's network")
        found[re.sub(r"(blocks\.\d+\.)(norm[12])\.", lambda norm: f"{norm[1]}{THEIRS[norm[2]]}.", name)] = value
    return found


def network(state: Mapping[str, Tensor], img_size: tuple[int, int] | None = None, heads: int | None = None) -> Network:
    """timm's network for the tensors (timm's names) of an AIM."""
    weight = state["patch_embed.proj.weight"]  # (D, C, p, p)
    width, depth = weight.shape[0], 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    chosen = heads or HEADS.get(width) or max(1, width // 64)
    if width % chosen:
        raise Refused(f"heads={chosen} does not divide the width {width}")
    kwargs: dict[str, Any] = {
        "img_size": img_size or (224, 224),
        "in_chans": weight.shape[1],
        "patch_size": weight.shape[2],
        "embed_dim": width,
        "depth": depth,
        "num_heads": chosen,
        "mlp_ratio": ratio(state["blocks.0.mlp.fc1.weight"].shape[0], width),
        "qkv_bias": False,
        "proj_bias": False,
        "embed_norm_layer": "layernorm",
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "num_classes": 0,
        "dynamic_img_size": True,
    }
    assumed = [] if heads or width in HEADS else [f"{chosen} heads assumed, {width // chosen} columns each: the file does not tell (FILE:heads=N says another)"]
    return Network("vit_base_patch16_224", kwargs, assumed, False)


def places(found: Network) -> Tensor:
    """The table (1, N, D) that the files leave out."""
    rows, columns = (side // found.kwargs["patch_size"] for side in found.kwargs["img_size"])
    return sincos((rows, columns), found.kwargs["embed_dim"]).unsqueeze(0).to(torch.float32)
