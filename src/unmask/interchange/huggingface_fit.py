"""The class of transformers that computes what a plain trunk computes, its config.json and its weights.

| class | trunk |
|---|---|
| ViTModel | class token, absolute places |
| IJepaModel | the same without a class token |
| Dinov2Model, Dinov2WithRegistersModel | layer scale or a gated MLP; register tokens; square pictures |
| DINOv3ViTModel | DINOv3's rotary places |

What a class lacks and can be had by a neutral number is filled in: a missing bias is 0, a missing layer scale 1, the place of a class token
that has none 0. Sources: transformers 5.23, models/{vit,ijepa,dinov2,dinov2_with_registers,dinov3_vit}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm import layers
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from unmask.errors import Refused
from unmask.interchange import huggingface
from unmask.interchange.timm import Encoder

CLASSES = {"vit": "ViTModel", "ijepa": "IJepaModel", "dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel", "dinov3_vit": "DINOv3ViTModel"}
ELSEWHERE = "; --to onnx and --to timm take every encoder, and transformers opens timm's folder too (TimmWrapperModel, with timm installed)"
BEHIND = ("head.", "fc_norm.", "attn_pool.")  # what stands behind forward_features
NO_PLACE = {  # part of a key -> what no class of transformers computes
    "norm_pre.": "it has a norm before its blocks",
    "attn.norm.": "its attention has an inner norm (sub-LN)",
    "mlp.norm.": "its MLPs have an inner norm (sub-LN)",
    "attn.q_norm.": "its queries and keys are normalised",
    "attn.gate.": "its attention is gated",
    "patch_embed.norm.": "it has a norm behind the patch embedding",
    "rope.": "its rotary places are learned",
}


@dataclass(frozen=True)
class Fit:
    """A class of transformers that computes what a trunk computes: its name, its config.json and its weights in its names."""

    form: str
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def fit(encoder: Encoder) -> Fit:
    """The class whose function is exactly the trunk's; Refused with the reason where there is none."""
    trunk = encoder.model
    if not isinstance(trunk, VisionTransformer | Eva):
        raise refused(f"a {type(trunk).__name__} is no plain vision transformer")
    for key in trunk.state_dict():
        for part, reason in NO_PLACE.items():
            if f".{part}" in f".{key}":
                raise refused(reason)
    if not isinstance(trunk.norm, nn.LayerNorm):
        raise refused("its final norm stands behind the pool (fc_norm)")
    for block in trunk.blocks:
        if type(block) not in (Block, EvaBlock):
            raise refused(f"its blocks are {type(block).__name__}s")
        if block.attn.proj.in_features != trunk.embed_dim:
            raise refused("its heads are not as wide together as the network")
    kind = kind_of(trunk, encoder)
    return Fit(CLASSES[kind], config_of(kind, trunk, encoder), weights(encoder, kind))


def kind_of(trunk: Any, encoder: Encoder) -> str:
    """The `model_type` that fits."""
    registers = trunk.num_prefix_tokens - (trunk.cls_token is not None)
    scaled, gated = any("ls1." in key or "gamma_1" in key for key in trunk.state_dict()), not isinstance(trunk.blocks[0].mlp, layers.Mlp)
    rope = vars(trunk)["_modules"].get("rope")
    if rope is not None:
        return rotary_kind(trunk, rope)
    if trunk.pos_embed is None:
        raise refused("it has no places")
    if trunk.cls_token is None and (scaled or gated or registers):
        raise refused("it has layer scales, gated MLPs or registers, but no class token")
    if not (scaled or gated or registers):
        return "vit" if trunk.cls_token is not None else "ijepa"
    if encoder.img_size[0] != encoder.img_size[1]:
        raise refused("its layer scales, gated MLPs or registers want a Dinov2Model, which takes square pictures only")
    return "dinov2_with_registers" if registers else "dinov2"


def rotary_kind(trunk: Any, rope: Any) -> str:
    """DINOv3's class, where places are rotated as DINOv3 does."""
    name = type(rope).__name__
    if name != "RotaryEmbeddingDinoV3":
        raise refused(f"its rotary places (timm's {name}) are none that a class of transformers computes")
    if trunk.pos_embed is not None or trunk.cls_token is None:
        raise refused("it has DINOv3's rotary places, but " + ("absolute ones too" if trunk.pos_embed is not None else "no class token"))
    if not rope.rotate_half or rope.normalize_coords != "separate" or rope.grid_offset or rope.grid_indexing != "ij" or rope.temperature is None:
        raise refused("its rotary places are not rotated as DINOv3's are")
    return "dinov3_vit"


def config_of(kind: str, trunk: Any, encoder: Encoder) -> dict[str, Any]:
    """config.json: sizes read off the modules."""
    block, dinov2 = trunk.blocks[0], kind.startswith("dinov2")
    hidden, gated = block.mlp.fc2.in_features, not isinstance(block.mlp, layers.Mlp)
    config = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "hidden_size": trunk.embed_dim,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": activation(block.mlp),
        "layer_norm_eps": epsilon(trunk),
        "image_size": max(encoder.img_size) if kind == "dinov3_vit" else square(encoder.img_size),  # DINOv3's takes any size; 4.x wants one number
        "patch_size": square(tuple(trunk.patch_embed.patch_size)),
        "num_channels": encoder.in_chans,
        "initializer_range": 0.02,
    }
    config |= {"mlp_ratio": whole_ratio(trunk.embed_dim, hidden, gated), "use_swiglu_ffn": gated} if dinov2 else {"intermediate_size": hidden}
    if kind == "dinov3_vit":
        rope = trunk.rope
        config |= huggingface.dinov3_biases(plain_state(trunk)) | {"proj_bias": True, "mlp_bias": True, "use_gated_mlp": gated, "rope_theta": rope.temperature, "pos_embed_rescale": rope.rescale_coords}
    else:
        config |= {"qkv_bias": True} | ({"layerscale_value": 1.0} if dinov2 else {"pooler_act": "linear"} if kind == "vit" else {})
    registers = trunk.num_prefix_tokens - 1
    return config | ({"num_register_tokens": registers} if kind in ("dinov2_with_registers", "dinov3_vit") else {})


def square(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def whole_ratio(width: int, hidden: int, gated: bool) -> int:
    """Dinov2's `mlp_ratio`, a whole number there, that makes its MLPs `hidden` wide."""
    for ratio in range(1, 33):
        wide = width * ratio
        if hidden == ((wide * 2 // 3 + 7) // 8 * 8 if gated else wide):
            return ratio
    raise refused(f"its MLPs are {hidden} wide, which no mlp_ratio of Dinov2Model gives at width {width}")


def epsilon(trunk: Any) -> float:
    """The one epsilon of all norms: transformers has one number for them."""
    found = {layer.eps for layer in trunk.modules() if isinstance(layer, nn.LayerNorm)}
    if len(found) != 1:
        raise refused(f"its norms have several epsilons ({', '.join(map(str, sorted(found)))})")
    return found.pop()


def activation(mlp: Any) -> str:
    """transformers' word for an MLP's activation; a gated MLP has SiLU there."""
    act = mlp.act
    if isinstance(act, nn.GELU | layers.GELU):
        return "gelu_pytorch_tanh" if vars(act).get("approximate") == "tanh" else "gelu"
    words = {layers.GELUTanh: "gelu_pytorch_tanh", layers.QuickGELU: "quick_gelu", nn.SiLU: "silu", nn.ReLU: "relu"}
    if type(act) not in words:
        raise refused(f"its activation is {type(act).__name__}")
    return words[type(act)]


def refused(reason: str) -> Refused:
    return Refused(f"no class of transformers fits this encoder: {reason}{ELSEWHERE}")


def plain_state(trunk: Any) -> dict[str, Tensor]:
    """The state dict in VisionTransformer's names and with every bias: Eva's own names and halves of biases are put right."""
    state = {key: value.detach().cpu() for key, value in trunk.state_dict().items() if not key.startswith(BEHIND)}
    for i in range(len(trunk.blocks)):
        at, mlp = f"blocks.{i}.attn.", f"blocks.{i}.mlp."
        if f"{at}q_proj.weight" in state:
            state[f"{at}qkv.weight"] = torch.cat([state.pop(f"{at}{part}_proj.weight") for part in "qkv"])  # (3D, D)
            if f"{at}q_proj.bias" in state:
                state[f"{at}q_bias"], state[f"{at}v_bias"] = state.pop(f"{at}q_proj.bias"), state.pop(f"{at}v_proj.bias")
        if f"{at}q_bias" in state:
            query, value = state.pop(f"{at}q_bias"), state.pop(f"{at}v_bias")
            state[f"{at}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])  # (3D,)
        for old, new in (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")):
            if f"blocks.{i}.{old}" in state:
                state[f"blocks.{i}.{new}"] = state.pop(f"blocks.{i}.{old}")
        if f"{mlp}fc1_g.weight" in state:  # SwiGLU in two matrices: the gate first, as in one
            for end in ("weight", "bias"):
                state[f"{mlp}fc1.{end}"] = torch.cat([state.pop(f"{mlp}fc1_g.{end}"), state.pop(f"{mlp}fc1_x.{end}")])  # (2H, D) or (2H,)
    for key in [key for key in state if key.endswith(".weight")]:
        state.setdefault(key.removesuffix("weight") + "bias", torch.zeros(len(state[key])))
    return state


def weights(encoder: Encoder, kind: str) -> dict[str, Tensor]:
    """The trunk's tensors in transformers' names."""
    state, grid = plain_state(encoder.model), tuple(encoder.model.patch_embed.grid_size)
    theirs = huggingface.to_dinov3(state) if kind == "dinov3_vit" else huggingface.to_huggingface(state, kind, grid)
    if kind == "vit":  # without a pooler `AutoModel` would draw one at random: this one hands the class token on
        width = state["cls_token"].shape[-1]
        theirs |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    return theirs
