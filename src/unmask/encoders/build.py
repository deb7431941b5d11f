"""A timm model's name, or a timm model, to an encoder that can be masked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm
from timm.layers import DropPath
from timm.models import beit, convnext, hiera
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from unmask.encoders import coded, post_norm
from unmask.encoders.adapter import Adapter, Hiding
from unmask.encoders.beit import Beit
from unmask.encoders.convnext import ConvNeXt
from unmask.encoders.features import Layer
from unmask.encoders.hiera import Hiera
from unmask.encoders.swin import Swin
from unmask.encoders.vit import ViT
from unmask.errors import Refused

FAMILIES: dict[str, dict[str, Any]] = {  # module of timm's constructor -> how the final norm is kept before the pool; any size of input
    "timm.models.vision_transformer": {"fc_norm": False},
    "timm.models.deit": {"fc_norm": False},
    "timm.models.eva": {"use_fc_norm": False, "use_post_transformer_norm": True},
    post_norm.__name__: {},
    coded.__name__: {},
}
FIXED: dict[str, dict[str, Any]] = {  # families whose places are made for one size of input
    # one table of relative places for all blocks, as every paper that pre-trains this network has it; timm's default is a table a block
    "timm.models.beit": {"use_fc_norm": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    "timm.models.swin_transformer": {"drop_path_rate": 0.0},  # timm's .1 is for training with labels
}
STAGED = ("timm.models.hiera", "timm.models.convnext")  # families whose early stages keep finer maps
REGISTERS = {"timm.models.vision_transformer": "reg_tokens", "timm.models.deit": "reg_tokens", "timm.models.eva": "num_reg_tokens"}  # what families call them
KINDS = (VisionTransformer, Eva, beit.Beit, SwinTransformer, hiera.Hiera, convnext.ConvNeXt)
CHOICE = "a VisionTransformer, Eva, Beit, Swin, Hiera or ConvNeXt of timm: unmask models"


def create_trunk(
    model: str,
    img_size: tuple[int, int],
    in_chans: int,
    patch_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    registers: int | None = None,
    q_pool: int | None = None,
) -> nn.Module:
    """The timm model without a head, at this input size; plain transformers but Beit take any other size as well (`dynamic_img_size`).

    `width`, `depth`, `heads` and `registers` (prefix tokens beside the class token) replace the model's own; `q_pool` is how often a Hiera halves its
    map. The arguments it was built with are kept in `trunk.unmask_kwargs`, so that an exported file can say them.
    """
    name = model.split(".")[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models("*vit*") + timm.list_models("*ei*") + timm.list_models("*eva*") + [name for family in ("swin*", "hiera*", "convnext*") for name in timm.list_models(family)], 1)
        raise Refused(f"no model '{model}' in timm {timm.__version__}" + (f": did you mean {near[0]}?" if near else ""))
    module = timm.model_entrypoint(name).__module__
    if module not in (*FAMILIES, *FIXED, *STAGED):
        raise Refused(f"--model {model} cannot be masked (its file is {module}); choose {CHOICE}")
    if module in (SwinTransformer.__module__, *STAGED) and (depth or heads):
        raise Refused(f"--model {model} has stages: --depth and --heads do not fit it; --width is the width of its first stage")
    if q_pool is not None and module != hiera.__name__:
        raise Refused(f"--model {model} is no Hiera: choose a hiera_*")
    if registers is not None and module not in REGISTERS:
        raise Refused(f"--model {model} takes no registers or further class tokens: choose a plain vit_* or eva*")
    own = {REGISTERS.get(module, "registers"): registers, "patch_size": patch_size, "embed_dim": width, "depth": depth, "num_heads": heads, "q_pool": q_pool}
    arguments: dict[str, Any] = {"img_size": tuple(img_size), "in_chans": in_chans, "num_classes": 0}
    arguments |= FAMILIES[module] | {"dynamic_img_size": True} if module in FAMILIES else FIXED.get(module, {})
    arguments |= {name: value for name, value in own.items() if value is not None}
    try:
        arguments = in_stages(arguments, module)
        trunk = timm.create_model(name, **constructor(name, arguments))
        if module in FAMILIES and trunk.attn_pool is not None:  # a pooling head that nothing would train
            trunk = timm.create_model(name, **(arguments := arguments | {"global_pool": "avg"}))
    except (AssertionError, TypeError, RuntimeError, ValueError) as error:
        raise Refused(f"--model {model} cannot be built for {img_size[0]}x{img_size[1]} pictures: {error}") from None
    if not isinstance(trunk, KINDS) or type(trunk).__name__.endswith("Distilled"):
        raise Refused(f"--model {model} is a {type(trunk).__name__}: choose {CHOICE}")
    trunk.unmask_kwargs = {"model": name, **arguments}
    return trunk


def in_stages(arguments: dict[str, Any], module: str) -> dict[str, Any]:
    """Patch and width by the words of Hiera and ConvNeXt: strides of overlapping windows, and a width a stage."""
    patch, width = arguments.get("patch_size"), arguments.get("embed_dim")
    if module == hiera.__name__ and patch is not None:  # 4 pixels, seen through windows of 7; others in the same proportion
        arguments = {name: value for name, value in arguments.items() if name != "patch_size"}
        arguments |= {"patch_stride": (patch, patch), "patch_kernel": (2 * patch - 1,) * 2, "patch_padding": (patch - 1,) * 2}
    if module == convnext.__name__ and width is not None:
        arguments = {name: value for name, value in arguments.items() if name != "embed_dim"} | {"dims": tuple(width * 2**stage for stage in range(4))}
    return arguments


def sizes_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same back: `width`, `depth`, `heads` and `patch_size` of the arguments that a network was built with, those that are one number."""
    own = {"embed_dim": arguments.get("dims", (None,))[0], "patch_size": arguments.get("patch_stride", (None,))[0]} | dict(arguments)
    names = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "patch_size": "patch_size"}
    staged = any(word in own for word in ("stages", "depths"))  # heads of the first of several stages are no word of ours
    return {name: own[theirs] for name, theirs in names.items() if isinstance(own.get(theirs), int) and not (staged and name == "heads")}


def constructor(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's constructor takes of the arguments that a network is remembered by: networks of convolutions have no word for the size of their input."""
    module = timm.model_entrypoint(name.split(".")[0]).__module__
    return {word: value for word, value in arguments.items() if word != "img_size" or module in (*FAMILIES, *FIXED, hiera.__name__)}


def build(
    model: str | nn.Module,
    img_size: tuple[int, int] = (224, 224),
    in_chans: int = 3,
    patch_size: int | None = None,
    masked: Hiding = "drop",
    layers: tuple[Layer, ...] = (),
    **sizes: Any,
) -> Adapter:
    """An encoder over the timm model of that name (or over a timm model, taken as it is); its trunk is `.trunk`.

    `sizes`: width, depth, heads, registers and q_pool, where they are not the model's own.
    """
    trunk = create_trunk(model, img_size, in_chans, patch_size, **sizes) if isinstance(model, str) else model
    return adapted(trunk, masked, layers)


def adapted(trunk: nn.Module, masked: Hiding = "drop", layers: tuple[Layer, ...] = ()) -> Adapter:
    """The adapter of a timm model's family."""
    encoder: Adapter
    if masked == "causal" and not isinstance(trunk, VisionTransformer | Eva):
        raise Refused(f"a {type(trunk).__name__} cannot look at what came before only: choose a plain vit_* or eva*")
    if isinstance(trunk, beit.Beit):
        encoder = Beit(trunk, masked, layers)
    elif isinstance(trunk, hiera.Hiera):
        encoder = Hiera(trunk, masked, layers)
    elif isinstance(trunk, SwinTransformer | convnext.ConvNeXt):
        if layers:
            raise Refused(f"a {type(trunk).__name__} keeps no inner layers of one size: give a plain vision transformer")
        encoder = Swin(trunk, masked) if isinstance(trunk, SwinTransformer) else ConvNeXt(trunk, masked)
    elif not isinstance(trunk, VisionTransformer | Eva):
        raise Refused(f"a {type(trunk).__name__} cannot be masked: give {CHOICE}")
    elif not trunk.dynamic_img_size:
        raise Refused("build the timm model with dynamic_img_size=True, or its places ignore the size of the input")
    else:
        encoder = ViT(trunk, masked, layers)
    if any(side % patch for side, patch in zip(encoder.img_size, encoder.patch)):
        (height, width), patch = encoder.img_size, encoder.patch[0]
        said = "choose another --model" if isinstance(trunk, SwinTransformer) else "give --patch_size"
        raise Refused(f"--img_size {height} {width} is no multiple of the model's patch {patch}: change it, or {said}")
    return encoder


def drop_path(encoder: Adapter, rate: float, rising: bool = True) -> None:
    """While training, leave out whole residual branches (Huang et al. 2016): with chance 0 in the first block, rising evenly to `rate` in the last.

    Without `rising` with the same chance in all (DINOv2).

    It is no part of what the trunk is built from, so that an encoder that is handed on does not bring it along.
    """
    blocks = [block for name, block in encoder.trunk.named_modules() if name.rpartition(".")[0].endswith("blocks")]
    for i, block in enumerate(blocks):
        chance = rate * (i / max(len(blocks) - 1, 1) if rising else 1)
        for name in [name for name, _ in block.named_children() if name.startswith("drop_path")]:
            block.register_module(name, DropPath(chance) if chance else nn.Identity())
