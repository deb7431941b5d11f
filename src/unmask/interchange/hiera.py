"""Hiera's own names, of its MAE and of its classifier, to and from ours; and the network that a state dict belongs to.

Source: facebookresearch/hiera, hiera.py and hiera_mae.py. Its MAE pools twice and its classifier three times: the same weights fit both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unmask.errors import Refused
from unmask.interchange.prefixes import in_ours, in_theirs
from unmask.interchange.shapes import Network

TRUNK, PIXELS = "encoder.trunk.", "objectives.pixels."
ROWS = (  # (theirs, ours), of what stands beside the trunk
    ("multi_scale_fusion_heads.", PIXELS + "through.scales."),
    ("encoder_norm.", PIXELS + "through.norm."),
    ("decoder_pos_embed", PIXELS + "decoder.places"),
    ("decoder_embed.", PIXELS + "decoder.embed."),
    ("decoder_blocks.", PIXELS + "decoder.blocks."),
    ("decoder_norm.", PIXELS + "decoder.norm."),
    ("decoder_pred.", PIXELS + "decoder.predict."),
    ("mask_token", PIXELS + "decoder.mask_token"),
)
BODY = ("pos_embed", "patch_embed.", "blocks.")
LEFT = (  # what stands beside the trunk
    (r"^decoder_|^mask_token$", "the decoder, not needed for an encoder"),
    (r"^multi_scale_fusion_heads\.|^encoder_norm\.", "what joins the stages for the decoder"),
    (r"^head\.(projection|fc)\.", "a classifier"),
)
NAMED: dict[tuple[int, tuple[int, ...]], tuple[str, int]] = {  # width of the first stage and blocks a stage -> size, attention heads of the first stage
    (96, (1, 2, 7, 2)): ("tiny", 1),
    (96, (1, 2, 11, 2)): ("small", 1),
    (96, (2, 3, 16, 3)): ("base", 1),
    (112, (2, 3, 16, 3)): ("base_plus", 2),
    (144, (2, 6, 36, 4)): ("large", 2),
    (256, (2, 6, 36, 4)): ("huge", 4),
}


def tells(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a Hiera: its own, or timm's."""
    return "patch_embed.proj.weight" in state and any(re.fullmatch(r"blocks\.\d+\.proj\.weight", key) for key in state)


def trunk(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder by timm's names, with the norm behind the pool; second, the names of what stands beside it."""
    named = {("head." + key if key.startswith("norm.") else key): key for key in state}
    found = {name: state[key] for name, key in named.items() if name.startswith((*BODY, "head.norm."))}
    return (found if "head.norm.weight" in found else completed(found)), [key for name, key in named.items() if name not in found]


def ours(state: Mapping[str, Tensor], like: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """A whole MAE by the names of our learner; second, names that no row knows. Its own shapes are not asked for."""
    found, left = {}, []
    for key, value in state.items():
        name = in_ours(key, ROWS)
        if name is not None:  # a convolution of step 4 or 2 is one layer on the tokens side by side
            found[name] = value.permute(0, 2, 3, 1).flatten(1) if value.dim() == 4 else value
        elif key.startswith(BODY):
            found[TRUNK + key] = value
        else:
            left.append(key)
    return found, left


def theirs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our learner by Hiera's own names; the norm of timm's head, which is not trained, has none."""
    found = {}
    for key, value in state.items():
        name = in_theirs(key, ROWS)
        if name is not None:
            if name.startswith("multi_scale") and value.dim() == 2:
                last = starts(state)[int(name.split(".")[1])] - 1  # of the stage
                side = math.isqrt(value.shape[1] // len(state[f"{TRUNK}blocks.{last}.mlp.fc2.bias"]))
                value = value.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2).contiguous()
            found[name] = value
        elif key.startswith(tuple(TRUNK + name for name in BODY)):
            found[key.removeprefix(TRUNK)] = value
    return found


def starts(state: Mapping[str, Tensor]) -> list[int]:
    """The first block of each stage but the first: they alone have a projection beside their attention."""
    found = (re.search(r"blocks\.(\d+)\.proj\.weight$", key) for key in state if "decoder" not in key)
    return sorted(int(match[1]) for match in found if match)


def completed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the norm behind the pool, which an MAE does not have: one without scale and shift, as when fine-tuning begins."""
    like = state[f"blocks.{depth(state) - 1}.norm2.weight"]
    return {"head.norm.weight": torch.ones_like(like), "head.norm.bias": torch.zeros_like(like)} | state


def depth(state: Mapping[str, Tensor]) -> int:
    return 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))


def network(state: Mapping[str, Tensor], path: str, img_size: tuple[int, int] | None = None, heads: int | None = None, beside: Sequence[str] = ()) -> Network:
    """The timm Hiera that has these tensors, by timm's names; `beside`: an MAE's other parts, which tell that it pools once less."""
    if "pos_embed" not in state or state["patch_embed.proj.weight"].dim() != 4:
        raise Refused(f"{path} holds a Hiera for video: this version opens those for pictures")
    if state["pos_embed"].dim() != 3:
        raise Refused(f"{path} holds a Hiera with places of windows, which is one of timm's: say FILE:model=NAME")
    first = starts(state)
    stages = tuple(after - before for before, after in zip([0, *first], [*first, depth(state)]))
    width, channels, kernel, _ = state["patch_embed.proj.weight"].shape
    patch, rows = (kernel + 1) // 2, state["pos_embed"].shape[1]
    side = math.isqrt(rows)
    if side * side != rows and (img_size is None or math.prod(img_size) != rows * patch**2):
        raise Refused(f"{path} has {rows} places, which are no square: say the height and width of its pictures, --img_size")
    size = (side * patch, side * patch) if side * side == rows else img_size
    name, usual = NAMED.get((width, stages), ("", 1))
    kwargs = {"img_size": size, "in_chans": channels, "num_classes": 0, "embed_dim": width, "stages": stages, "num_heads": heads or usual}
    assumed = [] if name or heads else ["one attention head in the first stage assumed: the file does not tell (FILE:heads=N says it)"]
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    kwargs |= {"mlp_ratio": hidden / width} if hidden != 4 * width else {}
    if patch != 4:
        kwargs |= {"patch_stride": (patch, patch), "patch_kernel": (kernel, kernel), "patch_padding": (patch - 1, patch - 1)}
    if any(key.startswith("multi_scale_fusion_heads.") for key in beside):
        kwargs["q_pool"] = 2
        assumed.append("it pools twice, as it was pre-trained; a classifier pools three times, with the same weights")
    return Network(f"hiera_{name or 'tiny'}_224", kwargs, assumed, bool(name))
