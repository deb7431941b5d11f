"""State dicts of CAE's own code (lxtGH/CAE, models/modeling_cae.py), to and from ours.

Its blocks have no bias of keys, which softmax takes away: ours is zero there. Its class token has a row of places that is zero, ours has none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unmask.errors import Refused

CODES = "objectives.codes."
PARTS = (  # (theirs, ours, whether a block there asks others, or itself)
    ("pretext_neck.regressor_blocks.", f"{CODES}through.blocks.", "others"),
    ("pretext_neck.decoder_blocks.", f"{CODES}decoder.blocks.", "itself"),
    ("pretext_neck.norm2.", f"{CODES}decoder.norm.", ""),
    ("pretext_neck.norm.", f"{CODES}through.norm.", ""),
    ("pretext_neck.head.", f"{CODES}decoder.predict.", ""),
    ("mask_token", f"{CODES}through.mask_token", ""),
    ("encoder.", "encoder.trunk.", "itself"),
)
INSIDE = {
    "others": (
        ("norm1_q.", "norm_q."),
        ("norm1_k.", "norm_k."),
        ("norm1_v.", "norm_v."),
        ("norm2_cross.", "norm."),
        ("cross_attn.q_bias", "q.bias"),
        ("cross_attn.v_bias", "v.bias"),
        ("cross_attn.", ""),
        ("gamma_1_cross", "gamma_1"),
        ("gamma_2_cross", "gamma_2"),
        ("mlp_cross.fc1.", "mlp.0."),
        ("mlp_cross.fc2.", "mlp.2."),
    ),
    "itself": (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")),
    "": (),
}
ASKED = ("q.", "k.", "v.", "proj.")  # ours, where theirs stand under cross_attn.


def from_cae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names as those of our learner; the copy of the encoder that a live model holds is left out."""
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("teacher.") or (key.endswith("attn.v_bias") and "cross" not in key):
            continue
        theirs, start, kind = next((row for row in PARTS if key.startswith(row[0])), ("", "", None))
        if kind is None:
            raise Refused(f"CAE has no {key}: what it computes is not known")
        where, inner = _split(key[len(theirs) :])
        row = next((row for row in INSIDE[kind] if inner.startswith(row[0])), ("", ""))
        name = start + where + row[1] + inner[len(row[0]) :]
        if name.endswith("attn.q_bias"):
            name, value = name.replace("q_bias", "qkv.bias"), torch.cat([value, torch.zeros_like(value), state[key.replace("q_bias", "v_bias")]])
        elif key == "encoder.pos_embed":
            if float(value[:, 0].abs().max()) > 1e-6:
                raise Refused("this CAE's class token has a place of its own, which the paper's has not")
            value = value[:, 1:]
        ours[name] = value
    return ours


def to_cae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, without what only our run needs."""
    theirs: dict[str, Tensor] = {}
    for key, value in state.items():
        found = next((row for row in PARTS if key.startswith(row[1])), None)
        if found is None:
            continue
        start, ours, kind = found
        where, inner = _split(key[len(ours) :])
        row = next((row for row in INSIDE[kind] if row[1] and inner.startswith(row[1])), ("", ""))
        if kind == "others" and row == ("", "") and inner.startswith(ASKED):
            row = ("cross_attn.", "")
        name = start + where + row[0] + inner[len(row[1]) :]
        if name.endswith("attn.qkv.bias"):
            query, _, values = value.chunk(3)
            theirs |= {name.replace("qkv.bias", "q_bias"): query.clone(), name.replace("qkv.bias", "v_bias"): values.clone()}
        elif name == "encoder.pos_embed":
            theirs[name] = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
        else:
            theirs[name] = value
    return theirs


def _split(inner: str) -> tuple[str, str]:
    """`blocks.0.` or `0.`, where a block is said, and what stands behind it."""
    words = inner.split(".")
    at = next((i for i, word in enumerate(words) if word.isdigit()), None)
    if at is None or at > 1 or (at == 1 and words[0] != "blocks"):
        return "", inner
    return ".".join(words[: at + 1]) + ".", ".".join(words[at + 1 :])
