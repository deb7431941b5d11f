"""Who looks at whom: the attention of timm's blocks, read where timm computes it.

timm attributes used that are not public: `attn.fused_attn`, `attn.qkv`, `attn.q_norm`, `attn.k_norm`, `attn.scale`, `norm1`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from unmask.errors import Refused


class _Queries(TorchFunctionMode):
    """Keep the queries and keys of every fused attention, exactly as they were used: scaled, normed, rotated; and what was added to their products."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, float | None, Tensor | None]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.calls.append((args[0], args[1], kwargs.get("scale"), kwargs.get("attn_mask")))
        return func(*args, **kwargs)


@contextmanager
def _fused(block: nn.Module):
    """timm's fused attention path in one block, put back afterwards: the only path that shows queries and keys."""
    attention: Any = block.attn
    was, attention.fused_attn = attention.fused_attn, True
    try:
        yield
    finally:
        attention.fused_attn = was


@torch.no_grad()
def looked(trunk: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """`trunk.forward_features(x)` of pictures (B, C, H, W), and who looks at whom in its last block: (B, heads, P + N, P + N), rows sum to 1.

    Softmax of scaled queries times keys, as timm computes it without its fused kernel. Of any network of timm whose last block has one such softmax.
    """
    last = trunk.blocks[-1]
    with _fused(last), _Queries() as seen:
        hook = last.register_forward_pre_hook(lambda block, inputs: seen.calls.clear())
        features = trunk.forward_features(x)
        hook.remove()
    if len(seen.calls) != 1:
        raise Refused(f"the attention of {type(last.attn).__name__} cannot be drawn: it is no single softmax of queries and keys")
    queries, keys, scale, added = seen.calls[0]  # (B, heads, P + N, d)
    products = queries.float() @ keys.float().mT * (scale or queries.shape[-1] ** -0.5)
    return features, (products if added is None else products + added).softmax(-1)


def products(block: Any, x: Tensor) -> Tensor:
    """Scaled products of queries and keys, before the softmax, of a plain block of timm for what goes into it, `x` (B, T, D): (B, heads, T, T). With gradient."""
    attention = block.attn
    if type(attention) is not Attention:
        raise Refused(f"the attention of {type(attention).__name__} is not read before its softmax: choose a plain vit_*")
    qkv = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, T, d)
    return attention.q_norm(qkv[0]) * attention.scale @ attention.k_norm(qkv[1]).mT
