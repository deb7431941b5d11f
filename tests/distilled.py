"""Official names of DINO's, iBOT's and DINOv2's golden files as those of our learner, and a learner filled with them."""

from __future__ import annotations

import re
from dataclasses import replace

import timm
import torch
from golden_files import mask_of
from torch import Tensor

from unmask.mask import Mask
from unmask.self_distillation import SelfDistilled


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def ours(official: dict[str, Tensor], teacher: bool = False, shared: bool = False) -> dict[str, Tensor]:
    """Keys of `student.*` or `teacher.*`; `shared`: the second last layer is the first."""
    table = [(r"^backbone\.(masked_embed|mask_token)$", "encoder.mask_token"), (r"^backbone\.register_tokens$", "encoder.trunk.reg_token"), (r"^backbone\.", "encoder.trunk.")]
    table += [(r"blocks\.\d+\.(\d+)\.", r"blocks.\1."), (r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2."), (r"^dino_head\.", "head."), (r"^ibot_head\.", "patch_head.")]
    found = {}
    for key, value in official.items():
        if shared and ".last_layer2." in key:
            continue
        for old, new in table:
            key = re.sub(old, new, key)
        if teacher and key == "encoder.mask_token":
            continue
        found["teacher." + key if teacher else key] = value.reshape(1, 1, -1) if key == "encoder.mask_token" else value
    if "encoder.trunk.reg_token" in found or "teacher.encoder.trunk.reg_token" in found:  # timm's registers want the class token's place in that token
        root = "teacher.encoder.trunk." if teacher else "encoder.trunk."
        if f"{root}pos_embed" in found and f"{root}cls_token" in found:
            places = found[f"{root}pos_embed"]
            found[f"{root}cls_token"], found[f"{root}pos_embed"] = found[f"{root}cls_token"] + places[:, :1], places[:, 1:]
    return found


def trunk_of(config: dict) -> torch.nn.Module:
    size = {"img_size": config["img_size"], "patch_size": config["patch"], "embed_dim": config["dim"], "depth": config["depth"], "num_heads": config["heads"]}
    more = {"init_values": config["layerscale"]} if "layerscale" in config else {}
    if config.get("registers"):
        more |= {"reg_tokens": config["registers"], "no_embed_class": True}
    if "swiglu" in config.get("ffn", ""):
        hidden = (int(4 * config["dim"] * 2 / 3) + 7) // 8 * 8
        more |= {"mlp_ratio": 2 * hidden / config["dim"], "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True, **size, **more)


def filled(learner: SelfDistilled, tensors: dict[str, Tensor], shared: bool = False) -> SelfDistilled:
    state = ours(part(tensors, "weights.student."), shared=shared) | ours(part(tensors, "weights.teacher."), teacher=True, shared=shared)
    missing, unknown = learner.load_state_dict(state, strict=False)
    states = {"steps", "temperature", "patch_temperature", "centre.mean", "patch_centre.mean"}
    assert not unknown and set(missing) <= states, (missing, unknown)
    return learner.train()


def mean_a_view(map: Tensor) -> Mask:
    """The mask of a golden map (2B, rows, columns), each view's weights one over its count."""
    mask = mask_of(map)
    return replace(mask, weight=mask.weight / mask.weight.sum(1, keepdim=True).clamp(min=1))
