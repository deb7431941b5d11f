"""A timm model's name, or a timm model, to an encoder that can be masked."""

from __future__ import annotations

import difflib
from typing import Any, Literal

import timm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from unmask.encoders.vit import ViT
from unmask.errors import Refused

FAMILIES = {  # module of timm's constructor -> how the final norm is kept before the pool
    "timm.models.vision_transformer": {"fc_norm": False},
    "timm.models.deit": {"fc_norm": False},
    "timm.models.eva": {"use_fc_norm": False, "use_post_transformer_norm": True},
}


def create_trunk(
    model: str,
    img_size: tuple[int, int],
    in_chans: int,
    patch_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
) -> nn.Module:
    """The timm model without a head, at this input size; any other size is taken as well (`dynamic_img_size`).

    `width`, `depth` and `heads` replace the model's own. The arguments it was built with are kept in
    `trunk.unmask_kwargs`, so that an exported file can say them.
    """
    name = model.split(".")[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models("*vit*") + timm.list_models("*eva*"), 1)
        raise Refused(f"no model '{model}' in timm {timm.__version__}" + (f": did you mean {near[0]}?" if near else ""))
    module = timm.model_entrypoint(name).__module__
    if module not in FAMILIES:
        raise Refused(f"--model {model} is no plain vision transformer (its file is {module}); choose a timm VisionTransformer or Eva: unmask models")
    own = {"patch_size": patch_size, "embed_dim": width, "depth": depth, "num_heads": heads}
    arguments = FAMILIES[module] | {"img_size": tuple(img_size), "in_chans": in_chans, "num_classes": 0, "dynamic_img_size": True}
    arguments |= {name: value for name, value in own.items() if value is not None}
    try:
        trunk = timm.create_model(name, **arguments)
        if trunk.attn_pool is not None:  # a pooling head that nothing would train
            trunk = timm.create_model(name, **(arguments := arguments | {"global_pool": "avg"}))
    except (AssertionError, TypeError, RuntimeError, ValueError) as error:
        raise Refused(f"--model {model} cannot be built for {img_size[0]}x{img_size[1]} pictures: {error}") from None
    if not isinstance(trunk, VisionTransformer | Eva) or type(trunk).__name__.endswith("Distilled"):
        raise Refused(f"--model {model} is a {type(trunk).__name__}: choose a timm VisionTransformer or Eva: unmask models")
    trunk.unmask_kwargs = {"model": name, **arguments}
    return trunk


def build(
    model: str | nn.Module,
    img_size: tuple[int, int] = (224, 224),
    in_chans: int = 3,
    patch_size: int | None = None,
    masked: Literal["drop", "token"] = "drop",
    layers: tuple[int, ...] = (),
    **sizes: Any,
) -> ViT:
    """An encoder over the timm model of that name (or over a timm model, taken as it is); its trunk is `.trunk`.

    `sizes`: width, depth and heads, where they are not the model's own.
    """
    trunk = create_trunk(model, img_size, in_chans, patch_size, **sizes) if isinstance(model, str) else model
    if not isinstance(trunk, VisionTransformer | Eva):
        raise Refused(f"a {type(trunk).__name__} cannot be masked: give a timm VisionTransformer or Eva")
    if not trunk.dynamic_img_size:
        raise Refused("build the timm model with dynamic_img_size=True, or its places ignore the size of the input")
    sides = tuple(trunk.patch_embed.patch_size)
    if any(side % patch for side, patch in zip(trunk.patch_embed.img_size, sides)):
        height, width = trunk.patch_embed.img_size
        raise Refused(f"--img_size {height} {width} is no multiple of the model's patch {sides[0]}: change it, or give --patch_size")
    return ViT(trunk, masked=masked, layers=layers)
