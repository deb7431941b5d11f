"""Initial values of the papers' own code, where they are not timm's; MAE's stand in `vit.py`."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import SwiGLU
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from unmask.encoders.adapter import Adapter
from unmask.encoders.vit import fix_places, mae_init
from unmask.patches import row_first

TOKENS = ("cls_token", "reg_token", "mask_token", "pos_embed")


def spread(width: int, asked: float | None, papers: int = 768) -> float:
    """The deviation of first weights: what was asked for, or the papers' .02, and for networks narrower than the `papers`' smallest more.

    So each layer passes on as large a share of what it gets as ViT-B's. With .02 at width 96 branches add nearly nothing, and all pictures look
    alike to a teacher that is a copy of such an encoder: I-JEPA then starts from features of rank 2.9, with .06 from 8.9.
    """
    return asked or 0.02 * max(1.0, math.sqrt(papers / width))


def cut_normal(module: nn.Module, std: float = 0.02) -> None:
    """Weights and tokens normal and *cut at one standard deviation* (so .0108 where .02 is said), biases 0, norms 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=std, a=-std, b=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
            nn.init.ones_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for name, token in module.named_parameters():
        if name.rpartition(".")[2] in TOKENS:
            nn.init.trunc_normal_(token, std=std, a=-std, b=std)


def beit_init(encoder: Adapter, std: float = 0.02) -> None:
    """BEiT's initial values (modeling_pretrain.py), which SimMIM, data2vec, BEiT v2 and EVA took over.

    Cut normal, patch convolution and tokens too; the layers that end a branch of block i (from 1) are divided by √(2i). Bias
    tables and layer scales keep what they are built with.
    """
    cut_normal(encoder, std)
    with torch.no_grad():
        for i, block in enumerate(encoder.trunk.blocks):
            block.attn.proj.weight.div_(math.sqrt(2 * (i + 1)))
            block.mlp.fc2.weight.div_(math.sqrt(2 * (i + 1)))


def plain_normal(trunk: Any, std: float = 0.02) -> None:
    """BEiT v2's tokenizer: Linear weights and tokens normal, not cut, biases 0, the patch convolution PyTorch's; branch ends of block i divided by √(2i)."""
    for layer in trunk.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    trunk.patch_embed.proj.reset_parameters()
    for name, token in trunk.named_parameters():
        if name.rpartition(".")[2] in TOKENS:
            nn.init.trunc_normal_(token, std=std)
    with torch.no_grad():
        for i, block in enumerate(trunk.blocks):
            block.attn.proj.weight.div_(math.sqrt(2 * (i + 1)))
            block.mlp.fc2.weight.div_(math.sqrt(2 * (i + 1)))


def dino_init(encoder: Adapter, asked: float | None = None, tokens: float = 0.02) -> None:
    """DINO's, iBOT's and DINOv2's initial values: Linear weights and places normal .02, biases 0, the patch convolution PyTorch's, the mask token 0.

    `asked`: another deviation of Linear weights; not given, networks narrower than ViT-S get more than .02. `tokens`: that of class and register tokens
    (DINOv2: 1e-6).
    """
    std = spread(encoder.width, asked, papers=384)
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    for name, token in encoder.named_parameters():
        last = name.rpartition(".")[2]
        if last == "mask_token":
            nn.init.zeros_(token)
        elif last in TOKENS:
            nn.init.trunc_normal_(token, std=0.02 if last == "pos_embed" else tokens)


def default_linear(blocks: nn.Module, before: int) -> None:
    """BEiT v2's blocks for aggregation, which its code makes after the others got their values: PyTorch's own, with branch ends divided by √(2i), i = `before` + 1, ….
    """
    for layer in blocks.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    with torch.no_grad():
        for i, block in enumerate(blocks.children()):
            block.attn.proj.weight.div_(math.sqrt(2 * (before + i + 1)))
            block.mlp.fc2.weight.div_(math.sqrt(2 * (before + i + 1)))


def each_by_itself(module: nn.Module) -> None:
    """Queries, keys and values xavier-uniform, each matrix by itself; MAE's code takes the three for one."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(("attn.qkv", "attn.kv")) and not name.endswith("c_attn.kv"):
            for rows in layer.weight.data.chunk(3 if name.endswith("qkv") else 2):
                nn.init.xavier_uniform_(rows)


def moco_init(encoder: Adapter) -> None:
    """MoCo v3's (vits.py): MAE's, but queries, keys and values each by themselves, no bias in the patch embedding, the class token next to zero, and in fixed places
    the row's half first.
    """
    mae_init(encoder)
    each_by_itself(encoder)
    trunk: Any = encoder.trunk
    if trunk.patch_embed.proj.bias is not None:
        nn.init.zeros_(trunk.patch_embed.proj.bias)
    for name, token in trunk.named_parameters():
        if name.endswith("cls_token"):
            nn.init.normal_(token, std=1e-6)
    fix_places(trunk)
    if not isinstance(trunk, SwinTransformer) and trunk.pos_embed is not None:
        trunk.pos_embed.data.copy_(row_first(trunk.pos_embed.data))


def layer_scale(encoder: Adapter, value: float) -> None:
    """Start every branch at `value` of its size, where the network scales its branches at all. The trunk remembers it as what it was built with, so that
    a network whose weights are drawn anew begins there too.
    """
    scales = [weight for name, weight in encoder.trunk.named_parameters() if name.rpartition(".")[2] in ("gamma", "gamma_1", "gamma_2")]  # of timm's VisionTransformer, Eva and Beit
    for weight in scales:
        nn.init.constant_(weight, value)
    arguments = vars(encoder.trunk).get("unmask_kwargs")
    if scales and arguments is not None:
        arguments["init_values"] = value


def attention_dropout(encoder: Adapter, rate: float) -> None:
    """While training, drop this share of the attention weights; like `drop_path`, it is no part of what the trunk is built from."""
    for block in encoder.trunk.blocks:
        block.attn.attn_drop.p = rate


def eva02_init(encoder: Adapter) -> None:
    """EVA-02's initial values (modeling_pretrain.py): Linear weights xavier-normal, the patch convolution xavier-uniform, tokens cut normal .02.

    Where the feed-forward branch has an inner norm (Base, Large) its layers, and the values and projections of attention, are √(ln 2·depth)
    times larger.
    """
    cut_normal(encoder)
    blocks = list(encoder.trunk.blocks)
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
        elif isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
    grown = math.sqrt(math.log(2 * len(blocks)))
    with torch.no_grad():
        for block in blocks:
            if isinstance(block.mlp, SwiGLU) and not isinstance(block.mlp.norm, nn.Identity):
                for name, weight in block.named_parameters():
                    if weight.dim() > 1 and name.startswith(("mlp.fc", "attn.proj", "attn.v_proj")):
                        weight.mul_(grown)
