"""A pooling that learns where to look: one query asks all tokens of a picture.

Source: V-JEPA, src/models/attentive_pooler.py (Bardes et al. 2024, arXiv:2404.08471); golden vectors `attentive_probe*`.
"""

from __future__ import annotations

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5  # of every LayerNorm here


class Asking(nn.Module):
    """Queries (B, Q, D) ask tokens (B, N, D): multi-head attention without a map of the answer (the official code owns one and never uses it)."""

    def __init__(self, width: int, heads: int, bias: bool = True):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width, bias=bias), nn.Linear(width, 2 * width, bias=bias)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        B, Q, D = query.shape
        q = self.q(query).reshape(B, Q, self.heads, -1).transpose(1, 2)  # (B, heads, Q, d)
        k, v = self.kv(tokens).reshape(B, tokens.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, Q, D)


class AttentivePool(nn.Module):
    """Tokens (B, N, D) -> one vector a picture (B, D).

    `complete`: the query is added to what it learnt, and an MLP follows; only keys and values are normalised. Else the answer is
    taken as it is. `depth` - 1 ordinary blocks follow, on that one token.
    """

    def __init__(self, width: int, heads: int, depth: int = 1, mlp_ratio: float = 4.0, bias: bool = True, complete: bool = True):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.asking = Asking(width, heads, bias)
        self.norm1 = nn.LayerNorm(width, eps=EPS) if complete else None
        self.norm2 = nn.LayerNorm(width, eps=EPS) if complete else None
        self.mlp = Mlp(width, int(width * mlp_ratio)) if complete else None
        norm = nn.LayerNorm  # its own eps is EPS
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, qkv_bias=bias, norm_layer=norm) for _ in range(depth - 1))
        self.start()

    def start(self) -> None:
        """Initial values: normal .02 everywhere, biases 0, what is added to a residual divided by √(2 · its block)."""
        nn.init.trunc_normal_(self.query, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            if self.mlp is not None:
                self.mlp.fc2.weight.div_(2.0**0.5)
            for i, block in enumerate(self.blocks, start=2):
                block.attn.proj.weight.div_((2.0 * i) ** 0.5)
                block.mlp.fc2.weight.div_((2.0 * i) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query.expand(len(tokens), -1, -1)  # (B, 1, D)
        if self.norm1 is None or self.norm2 is None or self.mlp is None:
            x = self.asking(query, tokens)
        else:
            x = query + self.asking(query, self.norm1(tokens))
            x = x + self.mlp(self.norm2(x))
        for block in self.blocks:
            x = block(x)
        return x[:, 0]  # (B, D)
