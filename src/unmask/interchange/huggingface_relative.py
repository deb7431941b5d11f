"""BeitModel, Data2VecVisionModel (the same function) and SwinModel of transformers: networks whose attention adds a learned bias for how far apart two patches lie.

Sources: transformers 5.23, models/{beit,data2vec,swin}/modeling_*.py. All take what the papers' code takes: square pictures, and windows of one
size in all stages; timm also builds others.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from unmask.interchange.huggingface import ATTENTION, VIT
from unmask.interchange.huggingface_fit import Fit, activation, epsilon, refused, square
from unmask.interchange.timm import Encoder

SCALE = 0.1  # BeitConfig's word for "there are layer scales" is a number above 0; their values are in the weights
TABLE = "relative_position_bias_table"


def fit_beit(encoder: Encoder, kind: str = "beit") -> Fit:
    """BeitModel around timm's Beit, or, for `data2vec-vision`, Data2VecVisionModel; Refused with the reason where it computes something else."""
    form = "Data2VecVisionModel" if kind == "data2vec-vision" else "BeitModel"
    trunk: Any = encoder.model
    block, state = trunk.blocks[0], {key: value.detach().cpu() for key, value in trunk.state_dict().items()}
    if encoder.img_size[0] != encoder.img_size[1]:
        raise refused(f"{form} reads the table of relative places for square pictures only")
    config = {
        "hidden_size": trunk.embed_dim,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc2.in_features,
        "use_absolute_position_embeddings": trunk.pos_embed is not None,
        "use_relative_position_bias": block.attn.relative_position_bias_table is not None,
        "use_shared_relative_position_bias": trunk.rel_pos_bias is not None,
        "layer_scale_init_value": 0.0 if block.gamma_1 is None else SCALE,
        "use_mean_pooling": isinstance(trunk.norm, nn.Identity),  # then the norm stands behind the mean, in their pooler
        "use_mask_token": False,
    }
    theirs: dict[str, Tensor] = {}
    for key, value in state.items():
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
        theirs |= beit_outside(key, value) if found is None else beit_inside(f"encoder.layer.{found[1]}.", found[2], value)
    return Fit(form, common(kind, form, encoder, block.mlp, epsilon(trunk)) | config, theirs)


def beit_outside(key: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor outside of the blocks, in BeitModel's names; nothing for what stands behind the features."""
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings", f"rel_pos_bias.{TABLE}": f"encoder.relative_position_bias.{TABLE}"}
    for ours, theirs in (("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("norm.", "layernorm."), ("fc_norm.", "pooler.layernorm.")):
        if key.startswith(ours):
            return {theirs + key.removeprefix(ours): value}
    if key in names:
        return {names[key]: value}
    if key.startswith("head."):
        return {}
    raise refused(f"BeitModel has no place for {key}")


def beit_inside(start: str, inner: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor of a block: the query, key and value that timm has in one matrix are three there, and the key has no bias."""
    names = {"gamma_1": "lambda_1", "gamma_2": "lambda_2", f"attn.{TABLE}": f"attention.attention.relative_position_bias.{TABLE}"}
    names |= {"attn.q_bias": "attention.attention.query.bias", "attn.v_bias": "attention.attention.value.bias"}
    if inner == "attn.qkv.weight":
        return {f"{start}{row[1]}weight": rows for row, rows in zip(ATTENTION, value.chunk(3))}
    for ours, theirs, *_ in VIT:
        if inner.startswith(ours):
            return {start + theirs + inner.removeprefix(ours): value}
    if inner in names:
        return {start + names[inner]: value}
    raise refused(f"BeitModel has no place for {inner}")


def fit_swin(encoder: Encoder) -> Fit:
    """SwinModel around timm's SwinTransformer; Refused with the reason where it computes something else."""
    trunk: Any = encoder.model
    windows = {tuple(block.window_size) for stage in trunk.layers for block in stage.blocks}
    first = trunk.layers[0].blocks[0]
    if len(windows) != 1 or len(set(first.window_size)) != 1:
        raise refused(f"its windows are {', '.join('x'.join(map(str, size)) for size in sorted(windows))}, and SwinModel has one square size for all stages")
    if epsilon(trunk) != 1e-5:
        raise refused(f"its norms add {epsilon(trunk):g} to the variance, and some of SwinModel's always 1e-05")
    config = {
        "embed_dim": trunk.patch_embed.proj.out_channels,
        "depths": [len(stage.blocks) for stage in trunk.layers],
        "num_heads": [stage.blocks[0].attn.num_heads for stage in trunk.layers],
        "window_size": first.window_size[0],
        "mlp_ratio": first.mlp.fc1.out_features / first.mlp.fc1.in_features,
        "use_absolute_embeddings": False,
    }
    theirs: dict[str, Tensor] = {}
    for key, value in trunk.state_dict().items():
        theirs |= swin_named(key, value.detach().cpu())
    for s, stage in enumerate(trunk.layers):  # transformers 4.x has the index in its files, 5.x computes it
        theirs |= {f"encoder.layers.{s}.blocks.{b}.attention.self.relative_position_index": block.attn.relative_position_index for b, block in enumerate(stage.blocks)}
    return Fit("SwinModel", common("swin", "SwinModel", encoder, first.mlp, 1e-5) | config, theirs)


def swin_named(key: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor in SwinModel's names. timm merges patches at the start of a stage, transformers at the end of the one before."""
    merged = re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", key)
    if merged:
        return {f"encoder.layers.{int(merged[1]) - 1}.downsample.{merged[2]}": value}
    found = re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.(.+)", key)
    if found:
        start, inner = f"encoder.layers.{found[1]}.blocks.{found[2]}.", found[3]
        if inner.startswith("attn.qkv."):
            end = inner.removeprefix("attn.qkv.")
            return {f"{start}attention.self.{name}.{end}": rows for name, rows in zip(("query", "key", "value"), value.chunk(3))}
        if inner == f"attn.{TABLE}":
            return {f"{start}attention.self.{TABLE}": value}
        return {start + theirs + inner.removeprefix(ours): value for ours, theirs, *_ in VIT if inner.startswith(ours)}
    for ours, theirs in (("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("patch_embed.norm.", "embeddings.norm."), ("norm.", "layernorm.")):
        if key.startswith(ours):
            return {theirs + key.removeprefix(ours): value}
    if key.startswith("head."):
        return {}
    raise refused(f"SwinModel has no place for {key}")


def common(kind: str, form: str, encoder: Encoder, mlp: Any, eps: float) -> dict[str, Any]:
    """What both say in config.json."""
    return {
        "architectures": [form],
        "model_type": kind,
        "hidden_act": activation(mlp),
        "layer_norm_eps": eps,
        "image_size": square(encoder.img_size),
        "patch_size": square(tuple(encoder.model.patch_embed.patch_size)),
        "num_channels": encoder.in_chans,
        "drop_path_rate": 0.0,
        "initializer_range": 0.02,
    }
