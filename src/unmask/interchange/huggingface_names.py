"""Hugging Face's names of Beit, of data2vec's vision network (the same function) and of Swin, to timm's.

Sources: transformers 4.x and 5.23, models/{beit,data2vec,swin}/modeling_*.py; both spellings are read. The other way stands in huggingface_relative.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unmask.errors import Refused
from unmask.interchange.huggingface import LAYERS, VIT, Rows, row_of
from unmask.interchange.networks import TABLE, beit_network, swin_network
from unmask.interchange.published import BEIT, SWIN, reasons
from unmask.interchange.shapes import Network

PREFIXES = {"beit": "beit.", "data2vec-vision": "data2vec_vision.", "swin": "swin."}  # of models with a head, by model_type
PARTS = {  # (which rows of the one matrix that timm has, whose): their names of it
    "q": ("attention.attention.query.", "attention.self.query.", "attention.q_proj."),
    "k": ("attention.attention.key.", "attention.self.key.", "attention.k_proj."),
    "v": ("attention.attention.value.", "attention.self.value.", "attention.v_proj."),
}
BEIT_OUTSIDE: Rows = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    (f"rel_pos_bias.{TABLE}", f"encoder.relative_position_bias.{TABLE}", f"shared_position_bias.{TABLE}"),
    ("norm.", "layernorm."),
    ("fc_norm.", "pooler.layernorm."),
)
BEIT_BLOCK: Rows = (
    ("gamma_1", "lambda_1"),
    ("gamma_2", "lambda_2"),
    (f"attn.{TABLE}", f"attention.attention.relative_position_bias.{TABLE}", f"relative_position_bias.{TABLE}"),
    *VIT,
)
SWIN_OUTSIDE: Rows = (
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("patch_embed.norm.", "embeddings.norm."),
    ("norm.", "layernorm."),
)
SWIN_BLOCK: Rows = ((f"attn.{TABLE}", f"attention.self.{TABLE}", f"attention.relative_position_bias.{TABLE}"), *VIT)


def from_beit(state: Mapping[str, Tensor], kind: str) -> tuple[dict[str, Tensor], list[str]]:
    """Their state dict in the names of timm's Beit, function unchanged; second, the keys that no row names.

    Of a model that predicts codes the norm before its prediction is the encoder's last one, where the encoder itself has none.
    """
    ours: dict[str, Tensor] = {}
    left = []
    inside, outside = parted(state, PREFIXES[kind])
    weights: dict[str, dict[str, Tensor]] = {}
    for key, value in inside.items():
        block = LAYERS.match(key)
        start, inner = (f"blocks.{block[1]}.", key[block.end() :]) if block else ("", key)
        part = part_of(inner) if block else None
        found = row_of(inner, BEIT_BLOCK if block else BEIT_OUTSIDE)
        if part and part[1] == "weight":
            weights.setdefault(start, {})[part[0]] = value
        elif part and part[0] != "k":
            ours[f"{start}attn.{part[0]}_bias"] = value
        elif found is not None:
            ours[start + found] = value
        else:
            left.append(key)
    ours |= {f"{start}attn.qkv.weight": torch.cat([parts[part] for part in "qkv"]) for start, parts in weights.items() if len(parts) == 3}  # (3D, D)
    for key, value in outside.items():
        if key.startswith("layernorm.") and "layernorm.weight" not in inside:
            ours[key.replace("layernorm.", "norm.")] = value
        else:
            left.append(key)
    return ours, left


def from_swin(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Their state dict in the names of timm's SwinTransformer, which merges patches at the start of a stage; second, the keys that no row names."""
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    inside, outside = parted(state, PREFIXES["swin"])
    left = list(outside)
    for key, value in inside.items():
        block = re.match(r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.", key)
        merged = re.fullmatch(r"encoder\.layers\.(\d+)\.downsample\.(.+)", key)
        start, inner = (f"layers.{block[1]}.blocks.{block[2]}.", key[block.end() :]) if block else ("", key)
        part = part_of(inner) if block else None
        found = row_of(inner, SWIN_BLOCK if block else SWIN_OUTSIDE)
        if merged:
            ours[f"layers.{int(merged[1]) + 1}.downsample.{merged[2]}"] = value
        elif part:
            parts.setdefault(f"{start}attn.qkv.{part[1]}", {})[part[0]] = value
        elif found is not None:
            ours[start + found] = value
        else:
            left.append(key)
    return ours | {name: torch.cat([rows[part] for part in "qkv"]) for name, rows in parts.items() if len(rows) == 3}, left


def parted(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The bare model's tensors, and what stands beside them in a model with a head."""
    if not any(key.startswith(prefix) for key in state):
        return dict(state), {}
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, {key: value for key, value in state.items() if not key.startswith(prefix)}


def part_of(inner: str) -> tuple[str, str] | None:
    """Which of query, key and value a name of a block holds, and whether weight or bias."""
    for part, theirs in PARTS.items():
        for name in theirs:
            if inner in (f"{name}weight", f"{name}bias"):
                return part, inner.removeprefix(name)
    return None


def taken(state: Mapping[str, Tensor], config: Mapping[str, Any], kind: str, folder: str, img_size: tuple[int, int]) -> tuple[dict[str, Tensor], Network, dict[str, list[str]]]:
    """The trunk, its network and what was left out, of a folder whose config says `kind`; Refused where timm computes something else."""
    if config.get("hidden_act", "gelu") != "gelu":
        raise Refused(f"{folder} has the activation {config['hidden_act']}, which timm's network of that kind does not have")
    if kind == "swin":
        trunk, names = from_swin(state)
        network = swin_network(trunk, folder)
        if network.kwargs["img_size"] != img_size or config.get("layer_norm_eps", 1e-5) != 1e-5:
            raise Refused(f"{folder} has windows that do not fit pictures of {img_size[0]}x{img_size[1]} as timm's do, or norms that do not add 1e-5")
        said = [*network.assumed[1:]]
        return trunk, network._replace(assumed=said), reasons(names, "", SWIN, folder)
    trunk, names = from_beit(state, kind)
    if "norm.weight" not in trunk and "fc_norm.weight" not in trunk:
        raise Refused(f"{folder} has no final norm (transformers keeps it in a pooler, which was not saved): its features are not those of a whole network")
    network = beit_network(trunk, folder, img_size, config.get("num_attention_heads", 12))
    network.kwargs["norm_eps"] = float(config.get("layer_norm_eps", 1e-12))
    return trunk, network, reasons(names, "", BEIT, folder)
