"""State dicts of the papers' own code, to and from ours: explicit tables of names.

A table is a list of (official prefix, our prefix), tried in order; what no row names is reported, never dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.errors import Refused
from unmask.interchange.families import OTHER_PART, family_of, groups, shortly
from unmask.interchange.weights import Weights

MAE = [
    ("decoder_embed.", "objectives.pixels.decoder.embed."),
    ("decoder_blocks.", "objectives.pixels.decoder.blocks."),
    ("decoder_norm.", "objectives.pixels.decoder.norm."),
    ("decoder_pred.", "objectives.pixels.decoder.predict."),
    ("mask_token", "objectives.pixels.decoder.mask_token"),
    ("cls_token", "encoder.trunk.cls_token"),
    ("pos_embed", "encoder.trunk.pos_embed"),
    ("patch_embed.", "encoder.trunk.patch_embed."),
    ("blocks.", "encoder.trunk.blocks."),
    ("norm.", "encoder.trunk.norm."),
]
MAE_COMPUTED = {"decoder_pos_embed"}  # the sine-cosine table, which we compute

RENAMED = (  # names of plain vision transformers elsewhere -> timm's
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 trains in chunks of blocks, whose inner numbers go on
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # DeiT III
    (r"\.mlp\.w12\.", ".mlp.fc1."),  # DINOv2's gated blocks
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^(dist_token|register_tokens)$", "reg_token"),  # DeiT's distillation token is a second prefix token
)
PLAIN = re.compile(
    r"cls_token|reg_token|pos_embed|patch_embed\.proj\.(weight|bias)|(norm|norm_pre|fc_norm)\.(weight|bias)"
    r"|blocks\.\d+\.((norm1|norm2|attn\.qkv|attn\.proj|attn\.q_norm|attn\.k_norm|mlp\.fc1|mlp\.fc2)\.(weight|bias)|ls[12]\.gamma)"
)  # every name that a plain VisionTransformer of timm may have
BETTER = (("teacher", 0), ("ema", 0), ("target", 0), ("student", 2), ("momentum", 3))  # which of several networks of a file is the encoder


class Parts(NamedTuple):
    """A file's tensors, sorted: the encoder by timm's names, MAE's decoder by MAE's, and the names of what is left."""

    trunk: dict[str, Tensor]
    decoder: dict[str, Tensor]  # decoder_* and mask_token; empty where the file has none
    left: dict[str, list[str]]  # what was left out, by what it is
    family: str = ""  # where the names tell it


def channel_first(rows: Tensor, patch: tuple[int, int]) -> Tensor:
    """Rows (p·p·C, …) of MAE's last layer, channel last within a patch, in our order (C·p·p, …)."""
    return rows.unflatten(0, (*patch, -1)).movedim(2, 0).flatten(0, 2)


def channel_last(rows: Tensor, patch: tuple[int, int]) -> Tensor:
    """The inverse of `channel_first`."""
    return rows.unflatten(0, (-1, *patch)).movedim(0, 2).flatten(0, 2)


def from_mae(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Official MAE names to those of our learner; second, the keys that no row of the table names."""
    patch = tuple(state["patch_embed.proj.weight"].shape[2:])
    ours, left = {}, []
    for key, value in state.items():
        if key in MAE_COMPUTED:
            continue
        row = next(((theirs, name) for theirs, name in MAE if key.startswith(theirs)), None)
        if row is None:
            left.append(key)
            continue
        ours[row[1] + key[len(row[0]) :]] = channel_first(value, patch) if key.startswith("decoder_pred.") else value
    return ours, left


def to_mae(state: Mapping[str, Tensor], patch: tuple[int, int]) -> dict[str, Tensor]:
    """Our learner's names to the official ones (without the decoder's computed table)."""
    official = {}
    for key, value in state.items():
        row = next(((theirs, name) for theirs, name in MAE if key.startswith(name)), None)
        if row is not None:
            name = row[0] + key[len(row[1]) :]
            official[name] = channel_last(value, patch) if name.startswith("decoder_pred.") else value
    return official


def take_apart(weights: Weights, plain: bool = True) -> Parts:
    """The encoder, the decoder and the rest of a file, whatever prefix its training put before the encoder.

    `plain`: refuse names that a plain vision transformer does not have; without, they are kept (a network that was named).
    """
    state, path = weights.state, weights.path
    family = family_of(state)
    if plain and family is not None:
        raise Refused(
            f"{path} holds {family}: this version opens plain vision transformers (MAE, CrossMAE, DINO, DINOv2, iBOT, MoCo v3, I-JEPA, DeiT, Pixio, MaskFeat), BEiT, BEiT v2, data2vec, SimMIM, CAE, EVA, Swin, Hiera and ConvNeXt V2; "
            "timm's own files of other networks as FILE:model=NAME"
        )
    if any(".layernorm_before." in name or name.endswith("embeddings.cls_token") for name in state):
        raise Refused(f"{path} has Hugging Face's names: give the folder that holds it and its config.json, which says the sizes")
    prefix = _prefix(weights, plain)
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    outside = [name for name in state if not name.startswith(prefix)]
    left = groups(outside, OTHER_PART)
    decoder = {name: value for name, value in inside.items() if name.startswith("decoder_") or name == "mask_token"}
    decoder = decoder if "decoder_embed.weight" in decoder else {}
    rest = {name: value for name, value in inside.items() if name not in decoder}
    harmless = groups(rest, "")
    harmless.pop("", None)
    trunk = {name: value for name, value in rest.items() if not any(name in names for names in harmless.values())}
    for what, names in harmless.items():
        left.setdefault(what, []).extend(prefix + name for name in names)
    if plain:
        trunk = _renamed(trunk, path)
    if any(name.startswith("wfm.") for name in inside):
        like = trunk["blocks.0.norm1.weight"]
        return Parts(trunk | {"norm.weight": torch.ones_like(like), "norm.bias": torch.zeros_like(like)}, decoder, left, "CrossMAE")
    family = "MoCo v3" if any("momentum_encoder." in name for name in outside) else "MAE" if decoder else ""
    return Parts(trunk, decoder, left, family)


def _prefix(weights: Weights, plain: bool) -> str:
    """What stands before the names of the encoder; of several networks the averaged one, then the plainest."""
    tail = "patch_embed.proj.weight"
    found = [name.removesuffix(tail) for name in weights.state if name.endswith(tail)]
    if not found and plain:
        some = ", ".join(list(weights.state)[:4])
        raise Refused(f"{weights.path} is no vision transformer: it has no {tail} (it has {some}, …); of another network say FILE:model=NAME")
    rank = lambda prefix: (next((place for word, place in BETTER if word in prefix), 1), len(prefix))  # noqa: E731
    return min(found, key=rank) if found else ""


def _renamed(trunk: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """timm's names, with the same function: several class tokens become registers, places of a token that has its own are added to it."""
    ours: dict[str, Tensor] = {}
    registers = "register_tokens" in trunk
    for name, value in trunk.items():
        for theirs, timms in RENAMED:
            name = re.sub(theirs, timms, name)
        ours[name] = value
    unknown = [name for name in ours if not PLAIN.fullmatch(name)]
    if unknown:
        raise Refused(f"{path} has {shortly(unknown)}, which no plain vision transformer has: what it computes is not known; if timm has the network, say FILE:model=NAME")
    if "pos_embed" not in ours:
        raise Refused(f"{path} has no table of places (pos_embed): it is no MAE or other plain vision transformer; of another network that timm has say FILE:model=NAME")
    if registers:  # DINOv2: registers have no place, the class token's is added to it
        ours["cls_token"] = ours["cls_token"] + ours["pos_embed"][:, :1]
        ours["pos_embed"] = ours["pos_embed"][:, 1:]
    if "cls_token" in ours and ours["cls_token"].shape[1] > 1:  # Pixio
        ours["reg_token"] = torch.cat([ours["cls_token"][:, 1:], *([ours["reg_token"]] if "reg_token" in ours else [])], dim=1)
        ours["cls_token"] = ours["cls_token"][:, :1]
    return ours
