"""The networks of BEiT's, EVA's, Swin's and data2vec 2.0's kind, and MaskFeat's plain one, that a state dict in timm's names belongs to, read off its tensors.

What a file's own tables tell is taken from them: heads, windows, the grid of relative places, the range of rotary ones. What nothing tells is assumed and said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unmask.errors import Refused
from unmask.interchange.shapes import PUBLISHED, Network, depth_of, grid_of_places, heads_of, network_of, patch_of, ratio

Size = tuple[int, int] | None
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
SWINS: dict[tuple[int, tuple[int, ...]], str] = {(96, (2, 2, 6, 2)): "tiny", (96, (2, 2, 18, 2)): "small", (128, (2, 2, 18, 2)): "base", (192, (2, 2, 18, 2)): "large"}
POST_NORM = tuple(f"data2vec2_{size}_224" for size in ("tiny_patch16", "small_patch16", "base_patch16", "large_patch16", "huge_patch14"))
FREQUENCIES = ("rope.freqs_cos", "rope.freqs_sin")  # EVA-02's tables: cosine and sine of every place and column of a head


def _sizes(state: Mapping[str, Tensor], path: str) -> tuple[dict[str, Any], tuple[int, int], int, int]:
    """Arguments that Beit and Eva share, the patch, the width and the depth; for `img_size` and heads see the callers."""
    patch, width, channels = patch_of(state, path)
    depth = depth_of(state, path)
    kwargs = {
        "in_chans": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "embed_dim": width,
        "depth": depth,
        "mlp_ratio": ratio(state["blocks.0.mlp.fc2.weight"].shape[1], width),
        "use_fc_norm": "fc_norm.weight" in state,
        "num_classes": 0,
    }
    return kwargs, patch, width, depth


def beit_network(state: Mapping[str, Tensor], path: str, img_size: Size = None, heads: int | None = None, beside: Mapping[str, Tensor] | None = None) -> Network:
    """The timm Beit that has exactly these tensors; tables of relative places tell heads and grid, `beside` may hold their indices."""
    kwargs, patch, width, depth = _sizes(state, path)
    tables = [value for key, value in state.items() if key.endswith(TABLE)]
    if tables:
        index = next((value for key, value in (beside or {}).items() if key.endswith(INDEX)), None)
        grid = _grid(len(tables[0]), index, patch, img_size, path)
    elif "pos_embed" in state:
        grid, embedded = grid_of_places(state["pos_embed"].shape[1], 1, patch, img_size, path)
        if not embedded:
            raise Refused(f"{path} has no place for its class token, and a network of BEiT's kind has one: what it computes is not known")
    else:
        raise Refused(f"{path} has neither relative nor absolute places: it is no network of BEiT's kind that this version opens")
    size, usual, doubt = PUBLISHED.get((width, depth), ("", 0, True))
    chosen, assumed = (tables[0].shape[1], []) if tables else heads_of(width, heads, None, usual, doubt)
    kwargs |= {
        "img_size": (grid[0] * patch[0], grid[1] * patch[1]),
        "num_heads": chosen,
        "init_values": 0.1 if "blocks.0.gamma_1" in state else 0.0,  # timm's names say .1 where None is said
        "use_abs_pos_emb": "pos_embed" in state,
        "use_rel_pos_bias": f"blocks.0.attn.{TABLE}" in state,
        "use_shared_rel_pos_bias": f"rel_pos_bias.{TABLE}" in state,
    }
    return Network(f"beit_{'large' if size == 'large' else 'base'}_patch16_224", kwargs, assumed, size in ("base", "large"))


def _grid(rows: int, index: Tensor | None, patch: tuple[int, int], img_size: Size, path: str) -> tuple[int, int]:
    """Rows and columns of patches, out of a table of (2·H − 1)·(2·W − 1) + 3 relative places; its index tells H and W where they differ."""
    side = (math.isqrt(max(rows - 3, 0)) + 1) // 2
    fits = [(side, side)] if (2 * side - 1) ** 2 + 3 == rows else []
    if index is not None and index.shape[0] ** 2 == index.numel():
        count = index.shape[0] - 1  # H·W
        pairs = [(h, count // h) for h in range(2, count + 1) if count % h == 0 and (2 * h - 1) * (2 * (count // h) - 1) + 3 == rows]
        # the first patch and the one below it are (1, 0) apart, which is 2·W − 1 entries; averaging (data2vec) may have lowered an entry by one
        fits = sorted(pairs, key=lambda grid: abs(int(index[1 + grid[1], 1] - index[1, 1]) - (2 * grid[1] - 1)))[:1] or fits
    if img_size is not None and not img_size[0] % patch[0] and not img_size[1] % patch[1]:
        said = (img_size[0] // patch[0], img_size[1] // patch[1])
        fits = [said] if (2 * said[0] - 1) * (2 * said[1] - 1) + 3 == rows else fits
    if not fits:
        raise Refused(f"{path} has {rows} relative places, which belong to no square grid: say the size it was trained on, --img_size HEIGHT WIDTH")
    return fits[0]


def eva_network(state: Mapping[str, Tensor], path: str, img_size: Size = None, heads: int | None = None, beside: Mapping[str, Tensor] | None = None) -> Network:
    """The timm Eva that has exactly these tensors: EVA's where its MLPs are plain, EVA-02's with rotary places where they are gated."""
    kwargs, patch, width, depth = _sizes(state, path)
    grid, embedded = grid_of_places(state["pos_embed"].shape[1], 1, patch, img_size, path)
    if not embedded:
        raise Refused(f"{path} has no place for its class token, and EVA's networks have one: what it computes is not known")
    first = state.get("blocks.0.mlp.fc1.weight")
    gated = first is None or first.shape[0] == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]
    size, usual, doubt = PUBLISHED.get((width, depth), ("", 0, True))
    chosen, assumed = heads_of(width, heads, None, usual, doubt and (width, depth) not in ((192, 12), (384, 12)))
    kwargs |= {
        "img_size": (grid[0] * patch[0], grid[1] * patch[1]),
        "num_heads": chosen,
        "init_values": 0.1 if "blocks.0.gamma_1" in state else None,
        "use_post_transformer_norm": not kwargs["use_fc_norm"],
        "dynamic_img_size": True,
    }
    if not gated:
        return Network("eva_giant_patch14_224", kwargs, assumed, size == "giant")
    rotary = _range(beside or {}, grid[1], chosen, width, path)
    assumed += [] if rotary else ["rotary places of a 16x16 grid assumed, as all published EVA-02 have them: the file has no table of them"]
    kwargs |= {
        "swiglu_mlp": True,
        "scale_mlp": "blocks.0.mlp.norm.weight" in state,
        "qkv_fused": "blocks.0.attn.qkv.weight" in state,
        "use_rot_pos_emb": True,
        "ref_feat_shape": (rotary or 16,) * 2,
    }
    published = size in ("tiny", "small", "base", "large")
    nearest = "small" if kwargs["qkv_fused"] else "base"  # the published ones of its kind: queries, keys and values in one matrix or in three
    return Network(f"eva02_{size if published else nearest}_patch14_224", kwargs, assumed, published)


def _range(beside: Mapping[str, Tensor], columns: int, heads: int, width: int, path: str) -> int | None:
    """The side of the grid whose range the rotary places were squeezed into: row r of a grid turns by r/rows·side; None where no table says it.

    The whole table is compared with the one that is computed, so a file with other frequencies is refused.
    """
    tables = [value.float() for name in FREQUENCIES for key, value in beside.items() if key.endswith(name) and ".attn." not in key]
    if len(tables) != 2 or not bool(tables[0].any()):
        return None
    cosine, sine = tables  # (H·W, d): the first half of the columns turns with the row
    if cosine.shape[0] % columns or cosine.shape[1] != width // heads:
        raise Refused(f"{path} has rotary places of shape {tuple(cosine.shape)}, which fit neither {columns} columns of patches nor {heads} heads: say FILE:heads=N")
    rows, quarter = cosine.shape[0] // columns, cosine.shape[1] // 4
    side = round(rows * float(torch.atan2(sine[columns, 0], cosine[columns, 0]))) if rows > 1 else 0
    angles = (torch.arange(rows) * (side / rows))[:, None] * 10000 ** (-torch.arange(quarter) / quarter)  # (H, d/4)
    turned = angles.repeat_interleave(2, 1)[:, None].expand(-1, columns, -1).flatten(0, 1)  # (H·W, d/2)
    if side < 1 or not torch.allclose(turned.cos(), cosine[:, : 2 * quarter], atol=5e-3):  # files are half precision, too
        raise Refused(f"{path} has rotary places that are not EVA-02's: what it computes is not known")
    return side


def swin_network(state: Mapping[str, Tensor], path: str, img_size: Size = None, heads: int | None = None, beside: Mapping[str, Tensor] | None = None) -> Network:
    """The timm SwinTransformer that has exactly these tensors; masks of shifted windows (`beside`) or the last stage tell the picture's size."""
    patch, width, channels = patch_of(state, path)
    depths: list[int] = []
    for s in range(len({key.split(".")[1] for key in state if key.startswith("layers.")})):
        depths.append(len({key.split(".")[3] for key in state if key.startswith(f"layers.{s}.blocks.")}))
    tables = [state.get(f"layers.{s}.blocks.0.attn.{TABLE}") for s in range(len(depths))]
    if not depths or 0 in depths or any(table is None for table in tables):
        raise Refused(f"{path} has the stages {depths}: some blocks or tables are missing")
    windows = [(math.isqrt(table.shape[0]) + 1) // 2 for table in tables if table is not None]
    if any((2 * window - 1) ** 2 != len(table) for window, table in zip(windows, tables) if table is not None):
        raise Refused(f"{path} has windows that are not square, or no tables of windows: what it computes is not known")
    mask = next((value for key, value in (beside or {}).items() if key.endswith("layers.0.blocks.1.attn_mask")), None)
    side = windows[-1] * 2 ** (len(depths) - 1) if mask is None else math.isqrt(mask.shape[0]) * windows[0]  # patches a side, first stage
    size = (side * patch[0], side * patch[1])
    if img_size is not None and mask is not None and math.prod(-(-length // (part * windows[0])) for length, part in zip(img_size, patch)) == mask.shape[0]:
        size = img_size
    kwargs = {
        "img_size": size,
        "in_chans": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "embed_dim": width,
        "depths": tuple(depths),
        "num_heads": tuple(table.shape[1] for table in tables if table is not None),
        "window_size": max(windows),
        "mlp_ratio": ratio(state["layers.0.blocks.0.mlp.fc1.weight"].shape[0], width),
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in state,
        "drop_path_rate": 0.0,
        "num_classes": 0,
    }
    named = SWINS.get((width, tuple(depths)), "")
    assumed = [f"pictures of {size[0]}x{size[1]} assumed, by its windows"] if mask is None else []
    return Network(f"swin_{named or 'tiny'}_patch4_window7_224", kwargs, assumed, bool(named))


def maskfeat_network(state: Mapping[str, Tensor], path: str, img_size: Size = None, heads: int | None = None, beside: Mapping[str, Tensor] | None = None) -> Network:
    """MaskFeat's plain vision transformer, whose last norm is the first of its head."""
    return network_of(state, path, img_size, heads)


def data2vec2_network(state: Mapping[str, Tensor], path: str, img_size: Size = None, heads: int | None = None, beside: Mapping[str, Tensor] | None = None) -> Network:
    """data2vec 2.0's network: a VisionTransformer's sizes, the norms elsewhere (`encoders/post_norm.py`)."""
    found = network_of({key: value for key, value in state.items() if not key.startswith("norm_pre.")}, path, img_size, heads)
    name = found.name.replace("vit_", "data2vec2_")
    return found._replace(name=name if name in POST_NORM else "data2vec2_base_patch16_224", published=found.published and name in POST_NORM)
