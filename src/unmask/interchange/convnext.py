"""ConvNeXt V2's own names, sparse as its pre-training saves them and dense as they are published, to and from ours; and the network that they belong to.

Source: facebookresearch/ConvNeXt-V2, fcmae.py, convnextv2_sparse.py, convnextv2.py and utils.py (remap_checkpoint_keys).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import timm
import torch
from torch import Tensor

from unmask.encoders.build import constructor
from unmask.interchange.official import channel_first, channel_last
from unmask.interchange.shapes import Network

TRUNK, DECODER = "encoder.trunk.", "objectives.pixels.decoder."
RENAMED = (  # theirs to timm's, one after the other
    (r"^downsample_layers\.0\.(\d)", r"stem.\1"),
    (r"^downsample_layers\.(\d)\.(\d)", r"stages.\1.downsample.\2"),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
)
BACK = (
    (r"^stem\.(\d)", r"downsample_layers.0.\1"),
    (r"^stages\.(\d)\.downsample\.(\d)", r"downsample_layers.\1.\2"),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
)
BESIDE = (("proj.", "embed."), ("pred.", "predict."), ("mask_token", "mask_token"))  # of the decoder, whose blocks are the trunk's kind
NAMED: dict[tuple[tuple[int, ...], int], str] = {  # blocks of a stage, width of the first
    ((2, 2, 6, 2), 40): "atto",
    ((2, 2, 6, 2), 48): "femto",
    ((2, 2, 6, 2), 64): "pico",
    ((2, 2, 8, 2), 80): "nano",
    ((3, 3, 9, 3), 96): "tiny",
    ((3, 3, 27, 3), 128): "base",
    ((3, 3, 27, 3), 192): "large",
    ((3, 3, 27, 3), 352): "huge",
}


LEFT = (  # what stands beside the trunk
    (r"^(proj|pred|decoder\.\d+)\.|^mask_token$", "the decoder, not needed for an encoder"),
    (r"^head\.(?!norm)", "a classifier"),
)


def tells(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a ConvNeXt V2: its own, sparse or dense, or timm's."""
    return any(key.removeprefix("encoder.") in ("downsample_layers.0.0.weight", "stem.0.weight") for key in state) and any(".grn." in key for key in state)


def trunk(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder by timm's names, with the norm behind the pool; second, the names of what stands beside it."""
    inside = re.compile(r"(encoder\.)?(downsample_layers|stages|stem|norm|head\.norm)\.")
    found = timms({key.removeprefix("encoder."): value for key, value in state.items() if inside.match(key)})
    found = found if "head.norm.weight" in found else completed(found)
    kind = network(found, "")
    with torch.device("meta"):
        like = timm.create_model(kind.name, **constructor(kind.name, kind.kwargs)).state_dict()
    return fitted(found, like), [key for key in state if not inside.match(key)]


def timms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A trunk of theirs by timm's names and shapes; a sparse kernel's places count down each column first."""
    found = {}
    for key, value in state.items():
        name = key.replace(".linear.", ".").replace(".ln.", ".")
        if name.endswith(".kernel"):
            name, side = name.removesuffix("kernel") + "weight", round(value.shape[0] ** 0.5)
            value = value.unflatten(0, (side, side)).transpose(0, 1)  # (row, column, [in,] out)
            value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value.permute(2, 0, 1).unsqueeze(1)  # (out, in or 1, row, column)
        for theirs, ours in RENAMED:
            name = re.sub(theirs, ours, name)
        found[name] = value.reshape(-1) if name.endswith(("bias", "grn.weight", "norm.weight")) else value
    return found


def fitted(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers as the network has them: the smaller ones of timm compute their linear layers as convolutions of one pixel."""
    return {name: value.reshape(like[name].shape) if name in like and value.numel() == like[name].numel() else value for name, value in state.items()}


def ours(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A whole FCMAE by the names of our learner, whose own weights are `like`; second, names that no row knows."""
    inner = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith(("encoder.", "downsample_layers.", "stages."))}
    found, left = {TRUNK + key: value for key, value in timms(inner).items()}, []
    patch = tuple(8 * side for side in found[TRUNK + "stem.0.weight"].shape[2:])
    for key, value in state.items():
        row = next((row for row in BESIDE if key.startswith(row[0])), None)
        if row is not None:
            value = value.flatten(1) if value.dim() == 4 and key != "mask_token" else value.reshape(1, 1, -1) if key == "mask_token" else value
            found[DECODER + row[1] + key[len(row[0]) :]] = channel_first(value, patch) if key.startswith("pred.") else value
        elif key.startswith("decoder."):
            name = next(iter(timms({"stages.0." + key.removeprefix("decoder."): value})))
            found[DECODER + name.removeprefix("stages.0.")] = value
        elif not key.startswith(("encoder.", "downsample_layers.", "stages.")):
            left.append(key)
    return fitted(found, like), left


def theirs(state: Mapping[str, Tensor], patch: tuple[int, int]) -> dict[str, Tensor]:
    """Our learner by the names of the published files, dense; timm's head, which is not trained, has none."""
    found = {}
    for key, value in state.items():
        if key.startswith(TRUNK) and not key.startswith(TRUNK + "head."):
            name = key.removeprefix(TRUNK)
        elif key.startswith(DECODER + "blocks."):
            name = "stages.0." + key.removeprefix(DECODER)
        else:
            row = next((row for row in BESIDE if key.startswith(DECODER + row[1])), None)
            if row is not None:
                value = channel_last(value, patch) if row[0] == "pred." else value
                wide = value.reshape(1, -1, 1, 1) if row[0] == "mask_token" else value[..., None, None] if value.dim() == 2 else value
                found[row[0] + key[len(DECODER + row[1]) :]] = wide
            continue
        for ours_, own in BACK:
            name = re.sub(ours_, own, name)
        value = value.flatten(1) if "pwconv" in name and value.dim() == 4 else value.reshape(1, 1, 1, -1) if ".grn." in name else value
        found["decoder." + name.removeprefix("stages.0.") if key.startswith(DECODER) else name] = value
    return found


def completed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the norm behind the pool, which a pre-trained network does not have: one without scale and shift, as when fine-tuning begins."""
    last = max(int(key.split(".")[3]) for key in state if key.startswith("stages.3.blocks."))
    like = state[f"stages.3.blocks.{last}.norm.weight"]
    return {"head.norm.weight": torch.ones_like(like), "head.norm.bias": torch.zeros_like(like)} | state


def network(state: Mapping[str, Tensor], path: str, img_size: tuple[int, int] | None = None, heads: int | None = None, beside: Sequence[str] = ()) -> Network:
    """The timm ConvNeXt V2 that has these tensors, by timm's names. It takes pictures of any size."""
    depths = tuple(1 + max(int(key.split(".")[3]) for key in state if key.startswith(f"stages.{stage}.blocks.")) for stage in range(4))
    dims = tuple(state[f"stages.{stage}.blocks.0.norm.weight"].shape[0] for stage in range(4))
    _, channels, patch, _ = state["stem.0.weight"].shape
    named = NAMED.get((depths, dims[0]), "")
    kwargs = {"img_size": img_size or (224, 224), "in_chans": channels, "num_classes": 0, "depths": depths, "dims": dims}
    kwargs |= {"patch_size": patch} if patch != 4 else {}
    assumed = [] if img_size else ["pictures of 224x224 assumed: any size fits"]
    return Network(f"convnextv2_{named or 'tiny'}", kwargs, assumed, bool(named))
