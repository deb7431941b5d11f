"""timm's VisionTransformer with the norms where data2vec 2.0 has them: after each branch, and once before the first block.

No name of timm builds it, so it has names of its own here (`data2vec2_base_patch16_224`, …), which every verb takes as it takes timm's.
Source: fairseq, examples/data2vec/models/modalities (base.py, images.py, modules.py).
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn


class PostNorm(Block):
    """x ← norm1(x + attention(x)), x ← norm2(x + mlp(x)): timm's block in another order, with the same names."""

    def forward(self, x, attn_mask=None, is_causal=False):
        x = self.norm1(x + self.drop_path1(self.ls1(self.attn(x, attn_mask=attn_mask, is_causal=is_causal))))
        return self.norm2(x + self.drop_path2(self.ls2(self.mlp(x))))


def _post_norm(name: str, arguments: dict[str, Any]) -> VisionTransformer:
    """The network of that name with such blocks: places for patches only, a norm before the blocks, none after."""
    own = {"block_fn": PostNorm, "final_norm": False, "no_embed_class": True}
    trunk = timm.create_model(name, **{key: value for key, value in arguments.items() if key not in ("pretrained_cfg", "pretrained_cfg_overlay")} | own)
    trunk.norm_pre = nn.LayerNorm(trunk.embed_dim, eps=1e-6)  # timm's own `pre_norm` would take the bias of the patch embedding away
    return trunk


@register_model
def data2vec2_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _post_norm("vit_tiny_patch16_224", kwargs)


@register_model
def data2vec2_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _post_norm("vit_small_patch16_224", kwargs)


@register_model
def data2vec2_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _post_norm("vit_base_patch16_224", kwargs)


@register_model
def data2vec2_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _post_norm("vit_large_patch16_224", kwargs)


@register_model
def data2vec2_huge_patch14_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _post_norm("vit_huge_patch14_224", kwargs)
