"""BootMAE's own names, to and from ours: the learner's and, of them, timm's.

Source: LightDXY/BootMAE, models/modeling_pretrain_bootmae.py. Its attention has biases of queries and values only, which stand in our joint
biases beside zeros for the keys: the soft-max does not see those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from unmask.interchange.prefixes import in_ours, in_theirs

PIXELS, FEATURES, TRUNK = "objectives.pixels.decoder.", "objectives.features.predict.decoder.", "encoder.trunk."
ROWS = (  # theirs, ours
    ("decode_blocks_1.", FEATURES + "blocks."),
    ("decode_norm_1.", FEATURES + "norm."),
    ("mask_token_1", FEATURES + "mask_token"),
    ("lm_head_1.", FEATURES + "predict."),
    ("down_1.", FEATURES + "embed."),
    ("decode_blocks.", PIXELS + "blocks."),
    ("decode_norm.", PIXELS + "norm."),
    ("mask_token", PIXELS + "mask_token"),
    ("lm_head.", PIXELS + "predict."),
    ("down.", PIXELS + "embed."),
    *((name, TRUNK + name) for name in ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")),
)
COMPUTED = {"de_pos_embed"}
ATTENTION = re.compile(r"(.*\.(attn|c_attn))\.(qkv\.weight|q_bias|v_bias)$")


def tells(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are BootMAE's."""
    return "decode_norm_1.weight" in state


def ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Official names to those of our learner; second, the keys that no row of the table names."""
    found, left = {}, []
    for key, value in state.items():
        name = in_ours(key, ROWS)
        if name is None:
            left += [key] if key not in COMPUTED else []
            continue
        attention = ATTENTION.fullmatch(key)
        if attention is None:
            found[name] = value
            continue
        stem, part = name[: -len(attention[3])], attention[3]
        if key.startswith("blocks."):  # timm's attention keeps all three together
            if part == "qkv.weight":
                found[name] = value
            elif part == "q_bias":
                values = state.get(key.replace("q_bias", "v_bias"), value)
                found[stem + "qkv.bias"] = torch.cat([value, torch.zeros_like(value), values])
        elif part == "qkv.weight":
            found[stem + "q.weight"], found[stem + "kv.weight"] = value.tensor_split([len(value) // 3])
        elif part == "q_bias":
            found[stem + "q.bias"] = value
        else:
            found[stem + "kv.bias"] = torch.cat([torch.zeros_like(value), value])
    return found, left


def theirs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our learner's names to the official ones, without the table that is computed and without biases of keys, which change nothing."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = in_theirs(key, ROWS)
        if name is None:
            continue
        stem = name.rpartition(".attn.")[0] + ".attn." if ".attn." in name else name.rpartition(".c_attn.")[0] + ".c_attn."
        if name.endswith(".attn.qkv.bias"):
            found[stem + "q_bias"], _, found[stem + "v_bias"] = value.chunk(3)
        elif name.endswith("attn.q.bias"):
            found[stem + "q_bias"] = value
        elif name.endswith("attn.kv.bias"):
            found[stem + "v_bias"] = value.chunk(2)[1]
        elif name.endswith(".attn.q.weight"):
            found[stem + "qkv.weight"] = torch.cat([value, state[key.replace("q.weight", "kv.weight")]])
        elif not name.endswith(".attn.kv.weight"):
            found[name] = value
    return found


def trunk(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder alone by timm's names, and the names that it does not need."""
    found, left = ours(state)
    beside = [key for key in state if not key.startswith(("blocks.", "norm.", "patch_embed.", "cls_token", "pos_embed"))]
    return {key.removeprefix(TRUNK): value for key, value in found.items() if key.startswith(TRUNK)}, sorted({*beside, *left})
