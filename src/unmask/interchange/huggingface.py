"""Hugging Face's names of plain vision transformers, to and from timm's: explicit tables, both ways.

Our side speaks timm's names, and MAE's own for its decoder (`decoder_blocks.0.norm1.weight`). Their side: transformers 4.x names,
which the hub's files have and which 5.x reads and writes too; the names that 5.x has in memory are read as well. A row is
(ours, theirs, their other spellings …); the first of theirs is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from unmask.errors import Refused
from unmask.patches import sincos

Rows = tuple[tuple[str, ...], ...]

OUTSIDE: Rows = (
    ("cls_token", "embeddings.cls_token"),
    ("reg_token", "embeddings.register_tokens"),
    ("dist_token", "embeddings.distillation_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("norm.", "layernorm."),
)
DECODER: Rows = (  # of ViTMAEForPreTraining; its blocks are those of VIT
    ("mask_token", "mask_token"),
    ("decoder_pos_embed", "decoder_pos_embed"),
    ("decoder_embed.", "decoder_embed."),
    ("decoder_norm.", "decoder_norm."),
    ("decoder_pred.", "decoder_pred."),
)
ATTENTION: Rows = (  # ours is one matrix: rows 0..D query, D..2D key, 2D..3D value
    ("attn.qkv.", "attention.attention.query.", "attention.q_proj."),
    ("attn.qkv.", "attention.attention.key.", "attention.k_proj."),
    ("attn.qkv.", "attention.attention.value.", "attention.v_proj."),
)
VIT: Rows = (
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("attn.proj.", "attention.output.dense.", "attention.o_proj."),
    ("mlp.fc1.", "intermediate.dense.", "mlp.fc1."),
    ("mlp.fc2.", "output.dense.", "mlp.fc2."),
)
DINO: Rows = (
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
    ("attn.proj.", "attention.output.dense.", "attention.o_proj."),
    ("mlp.fc1.", "mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2."),
)
SWIGLU: Rows = (("mlp.fc1.", "mlp.weights_in."), ("mlp.fc2.", "mlp.weights_out.", "mlp.down_proj."))  # DINOv2 giant: gate and input in one matrix
GATED: Rows = (("mlp.fc1.", "mlp.gate_proj."), ("mlp.fc1.", "mlp.up_proj."))  # the same, as 5.x has it in memory
BLOCKS: dict[str, Rows] = {"vit_mae": VIT, "vit": VIT, "deit": VIT, "vit_msn": VIT, "ijepa": VIT, "dinov2": DINO, "dinov2_with_registers": DINO}
DINOV3: Rows = (  # DINOv3ViTModel: the blocks are `layer.0.`, the gated MLP is `GATED`
    ("cls_token", "embeddings.cls_token"),
    ("reg_token", "embeddings.register_tokens"),
    ("patch_embed.proj.", "embeddings.patch_embeddings."),
    ("norm.", "norm."),
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
    ("attn.proj.", "attention.o_proj."),
    ("mlp.fc1.", "mlp.up_proj."),
    ("mlp.fc2.", "mlp.down_proj."),
)
LAYERS = re.compile(r"(?:encoder\.layer|encoder\.layers|layers|decoder_layers|decoder_encoder\.layer)\.(\d+)\.")  # every way to say "block"
ENDS = ("weight", "bias", "")  # what may follow a name that ends in a dot, or nothing


def from_huggingface(state: Mapping[str, Tensor], kind: str) -> tuple[dict[str, Tensor], list[str]]:
    """Their state dict in our names, function unchanged; second, the keys that no row names (heads, poolers, mask tokens).

    `kind`: the `model_type` of their config.json, a key of `BLOCKS`. A distillation token (DeiT) is returned as the second
    prefix token `reg_token`; a place that only the class token has (DINOv2 with registers) is added to that token.
    """
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}  # what is one matrix with us and several with them
    left = []
    for key, value in state.items():
        found = _ours(key, kind)
        if found is None:
            left.append(key)
        elif found[1] is None:
            ours[found[0]] = value
        else:
            parts.setdefault(found[0], {})[found[1]] = value
    for name, rows in parts.items():
        ours[name] = torch.cat([rows[place] for place in sorted(rows)])  # (3D, D) or (3D,); gated: (2H, D) or (2H,)
    if kind == "dinov2_with_registers":
        ours["cls_token"] = ours["cls_token"] + ours["pos_embed"][:, :1]
        ours["pos_embed"] = ours["pos_embed"][:, 1:]  # (1, N, D): timm's `no_embed_class`
    if "dist_token" in ours:
        ours["reg_token"] = ours.pop("dist_token")
    return ours, left


def _ours(key: str, kind: str) -> tuple[str, int | None] | None:
    """Our name of one of their keys, and which part of it the key holds (None: all)."""
    decoder = kind == "vit_mae" and key.startswith("decoder.")
    inner = key.removeprefix("decoder.") if decoder else re.sub(r"^(vit|deit|ijepa|dinov2|dinov2_with_registers|vit_msn|vit_mae)\.", "", key)
    block = LAYERS.match(inner)
    if block is None:
        found = row_of(inner, DECODER if decoder else OUTSIDE)
        return None if found is None else (found, None)
    where, inner = f"{'decoder_' * decoder}blocks.{block[1]}.", inner[block.end() :]
    for table in (ATTENTION, GATED):
        for place, row in enumerate(table):
            found = row_of(inner, (row,))
            if found is not None:
                return where + found, place
    found = row_of(inner, BLOCKS[kind] + SWIGLU * (BLOCKS[kind] is DINO))
    return None if found is None else (where + found, None)


def row_of(key: str, rows: Rows) -> str | None:
    """Our name of `key` (inside a block, or outside) where a row names it."""
    for ours, *theirs in rows:
        for name in theirs:
            if key == name or (name.endswith(".") and key.startswith(name) and key[len(name) :] in ENDS):
                return ours + key[len(name) :]
    return None


def to_huggingface(state: Mapping[str, Tensor], kind: str, grid: tuple[int, int], prefix: str = "") -> dict[str, Tensor]:
    """A VisionTransformer's state dict (with MAE's decoder where it has one) in their 4.x names, function unchanged.

    `kind`: the `model_type` that is written; `grid`: rows and columns of patches; `prefix`: `vit.` for ViTMAEForPreTraining,
    nothing for bare models. Registers without a place of their own, and layer scales that are absent, are written as
    zeros and ones where the kind wants them. What the kind cannot compute is refused.
    """
    state = _fitted(dict(state), kind, grid)
    theirs: dict[str, Tensor] = {}
    for key, value in state.items():
        block = re.match(r"(decoder_)?blocks\.(\d+)\.", key)
        decoder = key.startswith("decoder_") or (key == "mask_token" and kind == "vit_mae")
        start = "decoder." if decoder else prefix
        if block is None:
            theirs[start + _theirs(key, DECODER if decoder else OUTSIDE, kind)] = value
            continue
        start += f"decoder_layers.{block[2]}." if decoder else f"encoder.layer.{block[2]}."
        inner = key[block.end() :]
        if inner.startswith("attn.qkv."):
            for (_, name, _), rows in zip(ATTENTION, value.chunk(3)):
                theirs[start + name + inner.removeprefix("attn.qkv.")] = rows.clone()
        else:
            gated = kind.startswith("dinov2") and inner.startswith("mlp.") and _is_gated(state)
            theirs[start + _theirs(inner, SWIGLU if gated else BLOCKS[kind], kind)] = value
    if kind.startswith("dinov2"):
        theirs[prefix + "embeddings.mask_token"] = torch.zeros(1, state["cls_token"].shape[-1])
    return theirs


def _theirs(key: str, rows: Rows, kind: str) -> str:
    """Their name of `key`."""
    for ours, theirs, *_ in rows:
        if key == ours or (ours.endswith(".") and key.startswith(ours)):
            return theirs + key[len(ours) :]
    raise Refused(f"Hugging Face's {kind} has no place for {key}")


def _is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the blocks' first matrix holds gate and input: twice as many rows as the second has columns."""
    return state["blocks.0.mlp.fc1.weight"].shape[0] == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]


def _fitted(state: dict[str, Tensor], kind: str, grid: tuple[int, int]) -> dict[str, Tensor]:
    """The same function with exactly the tensors that the kind has: its places, registers, layer scales and decoder table."""
    patches, places = grid[0] * grid[1], state["pos_embed"]
    before = places.shape[1] - patches  # rows of prefix tokens in the table
    registers = state.get("reg_token")
    if kind == "ijepa" and before == 0 and "cls_token" not in state:
        return state
    if before not in (0, 1, 1 + (0 if registers is None else registers.shape[1])) or "cls_token" not in state:
        raise Refused(f"Hugging Face's {kind} wants a class token and one table of places, which this encoder lacks")
    own = places[:, :1] if before else torch.zeros_like(places[:, :1])
    if registers is not None:
        if kind != "dinov2_with_registers":
            raise Refused(f"Hugging Face's {kind} has no register tokens, and this encoder has {registers.shape[1]}")
        state["reg_token"] = registers + places[:, 1:before] if before > 1 else registers
    state["pos_embed"] = torch.cat([own, places[:, before:]], dim=1)  # (1, 1 + N, D)
    if kind.startswith("dinov2"):
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        scales = {f"blocks.{i}.ls{j}.gamma": torch.ones(places.shape[-1]) for i in range(depth) for j in (1, 2)}
        state = scales | state
    if "mask_token" in state and kind == "vit_mae" and "decoder_pos_embed" not in state:
        table = sincos(grid, state["mask_token"].shape[-1])
        state["decoder_pos_embed"] = torch.cat([torch.zeros_like(table[:1]), table])[None]  # (1, 1 + N, width)
    return state


def to_dinov3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a trunk with DINOv3's rotary places in the names of DINOv3ViTModel, function unchanged.

    Registers and layer scales that are absent are written as none and as ones; biases of q, k and v that are all zero are left out.
    """
    width, gated, biased = state["cls_token"].shape[-1], _is_gated(state), dinov3_biases(state)
    theirs = {"embeddings.mask_token": torch.zeros(1, 1, width), "embeddings.register_tokens": torch.zeros(1, 0, width)}
    for key, value in state.items():
        block = re.match(r"blocks\.(\d+)\.", key)
        start, inner = (f"layer.{block[1]}.", key[block.end() :]) if block else ("", key)
        part, _, end = inner.rpartition(".")
        if part == "attn.qkv":
            parts = zip("qkv", value.chunk(3), biased.values())
            theirs |= {f"{start}attention.{name}_proj.{end}": rows.clone() for name, rows, has in parts if end == "weight" or has}
        elif part == "mlp.fc1" and gated:
            theirs |= {f"{start}{row[1]}{end}": rows.clone() for row, rows in zip(GATED, value.chunk(2))}
        else:
            theirs[start + _theirs(inner, DINOV3, "dinov3_vit")] = value
    scales = (f"layer.{key.split('.')[1]}.layer_scale{i}.lambda1" for key in state if key.endswith(".norm1.weight") for i in (1, 2))
    return {name: torch.ones(width) for name in scales} | theirs


def dinov3_biases(state: Mapping[str, Tensor]) -> dict[str, bool]:
    """Which of query, key and value have a bias in any block, in the words of DINOv3ViTConfig."""
    found = [value.unflatten(0, (3, -1)).ne(0).any(dim=1) for key, value in state.items() if key.endswith(".attn.qkv.bias")]
    return {f"{name}_bias": any(bool(row[i]) for row in found) for i, name in enumerate(("query", "key", "value"))}


def from_dinov3(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The inverse of `to_dinov3`, in the names of timm's Eva; second, the keys that no row names. A bias of keys must be zero: Eva has none."""
    ours: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    left = []
    for key, value in state.items():
        block = re.match(r"(?:model\.)?layer\.(\d+)\.", key)
        start, inner = (f"blocks.{block[1]}.", key[block.end() :]) if block else ("", key)
        part = re.fullmatch(r"attention\.([qkv])_proj\.(weight|bias)", inner)
        gated = re.fullmatch(r"mlp\.(gate|up)_proj\.(weight|bias)", inner) if f"{key.rpartition('.mlp.')[0]}.mlp.gate_proj.weight" in state else None
        found = row_of(inner, DINOV3)
        if part and part[2] == "weight":
            attention.setdefault(f"{start}attn.qkv.weight", {})[part[1]] = value
        elif part and part[1] != "k":
            ours[f"{start}attn.{part[1]}_bias"] = value
        elif part:
            left += [key] if bool(value.any()) else []
        elif gated:
            ours[f"{start}mlp.fc1_{gated[1].replace('gate', 'g').replace('up', 'x')}.{gated[2]}"] = value
        elif found is None:
            left.append(key)
        elif value.shape[1:2] != (0,):  # no register tokens at all
            ours[start + found.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = value
    return ours | {name: torch.cat([rows[part] for part in "qkv"]) for name, rows in attention.items()}, left
