"""Whole training checkpoints of DINO, iBOT and DINOv2, encoder and heads: a table of names, to and from those of our learner.

A student's and a teacher's names are the same, but that only students have a token for what is masked. DINOv2's blocks may stand in chunks, whose inner
numbers go on; iBOT's shared head stands in its files twice. Sources: the main files and heads of facebookresearch/dino, bytedance/ibot, facebookresearch/dinov2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TOKENS = {"dino": "mask_token", "ibot": "masked_embed", "dinov2": "mask_token"}  # what a masked patch is replaced by, in each one's backbone
HEADS = {"dino": ("head.", ""), "ibot": ("head.", ""), "dinov2": ("dino_head.", "ibot_head.")}  # of views, and of patches where that is another
INSIDE = (("register_tokens", "reg_token"), (".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))


def method_of(state: Mapping[str, Tensor]) -> str | None:
    """Whose checkpoint of backbone and head these names are; None where they are none."""
    if "backbone.cls_token" not in state or not any(".last_layer.weight_v" in key for key in state):
        return None
    return "dinov2" if "dino_head.mlp.0.weight" in state else "ibot" if "head.last_layer2.weight_v" in state else "dino"


def ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Official names to those of our learner's student; second, the keys that the table does not know.

    With registers the class token's place is added to that token, as timm's networks have it.
    """
    found, left = {}, []
    method = method_of(state) or "dino"
    views, patches = HEADS[method]
    shared = shares_head(state)
    for key, value in state.items():
        if key == f"backbone.{TOKENS[method]}":
            found["encoder.mask_token"] = value.reshape(1, 1, -1)
        elif key.startswith("backbone."):
            name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key.removeprefix("backbone."))
            for theirs, mine in INSIDE:
                name = name.replace(theirs, mine)
            found["encoder.trunk." + name] = value
        elif key.startswith(views):
            if not (shared and ".last_layer2." in key):
                found["head." + key.removeprefix(views)] = value
        elif patches and key.startswith(patches):
            found["patch_head." + key.removeprefix(patches)] = value
        else:
            left.append(key)
    places, token = found.get("encoder.trunk.pos_embed"), "encoder.trunk.cls_token"
    if "encoder.trunk.reg_token" in found and places is not None:
        found |= {token: found[token] + places[:, :1], "encoder.trunk.pos_embed": places[:, 1:]}
    return found, left


def shares_head(state: Mapping[str, Tensor]) -> bool:
    """Whether class token and patches are compared with the same prototypes."""
    first, second = (state.get(f"head.{name}.weight_v") for name in ("last_layer", "last_layer2"))
    if second is None:
        return "ibot_head.mlp.0.weight" not in state
    return first is not None and first.shape == second.shape and torch.equal(first, second)


def settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The method's settings that tensors tell."""
    method = method_of(state) or "dino"
    views, patches = HEADS[method]
    (prototypes, bottleneck), hidden = state[f"{views}last_layer.weight_v"].shape, len(state[f"{views}mlp.0.weight"])
    found: dict[str, Any] = {"prototypes": prototypes, "hidden": hidden, "bottleneck": bottleneck}
    if method == "dinov2":
        found["registers"] = state["backbone.register_tokens"].shape[1] if "backbone.register_tokens" in state else 0
    else:
        found["norm_last_layer"] = bool((state["head.last_layer.weight_g"] == 1).all())
    if method != "dino":
        found["shared_head"] = shares_head(state)
        last = state.get(f"{patches}last_layer.weight_v" if method == "dinov2" else "head.last_layer2.weight_v")
        if not found["shared_head"] and last is not None:
            found |= {"patch_prototypes": len(last)} | ({"patch_bottleneck": last.shape[1]} if method == "dinov2" else {})
    return found


def theirs(state: Mapping[str, Tensor], method: str, teacher: bool = False) -> dict[str, Tensor]:
    """Our learner's student, or its teacher, in the names of a method's own code: what goes under `student` or `teacher` of its checkpoint.

    With registers the class token's place becomes zero: the token has it.
    """
    found = {}
    views, patches = HEADS[method]
    mine = {key.removeprefix("teacher."): value for key, value in state.items() if key.startswith("teacher.")} if teacher else state
    gated = _gated(mine)
    for key, value in mine.items():
        if key == "encoder.mask_token":
            found[f"backbone.{TOKENS[method]}"] = value.reshape(1, -1)
        elif key.startswith("encoder.trunk."):
            name = key.removeprefix("encoder.trunk.")
            for official, own in INSIDE[: 3 if gated else 1]:
                name = name.replace(own, official)
            found["backbone." + name] = value
        elif key.startswith("head."):
            found[views + key.removeprefix("head.")] = value
        elif key.startswith("patch_head."):
            found[patches + key.removeprefix("patch_head.")] = value
    if "backbone.register_tokens" in found:
        places = found["backbone.pos_embed"]
        found["backbone.pos_embed"] = torch.cat([torch.zeros_like(places[:, :1]), places], dim=1)
    if method == "ibot" and "head.last_layer2.weight_v" not in found:
        found |= {key.replace("last_layer", "last_layer2"): value for key, value in found.items() if ".last_layer." in key}
    return found


def _gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the blocks have DINOv2's gates: two layers in one matrix."""
    first, second = (state.get(f"encoder.trunk.blocks.0.mlp.fc{i}.weight") for i in (1, 2))
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]
