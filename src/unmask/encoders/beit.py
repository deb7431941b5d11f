"""timm's Beit: a plain transformer whose attention adds a learned bias for how far apart two patches lie.

Source: BEiT (arXiv:2106.08254) and its kin, SimMIM, data2vec, BEiT v2: one table of biases shared by all blocks while
pre-training, a table in each block afterwards; both are read here. Where patches are dropped, rows *and* columns of the
bias follow them (proved by the golden `trunks_beit*`); timm's block cannot do that, so its attention is written out here.

timm attributes used that are not public: `pos_drop`, `rel_pos_bias`, `blocks`, `norm`, `grad_checkpointing`, and of a block
`norm1`, `attn`, `drop_path1`, `gamma_1` and their like, of its attention `qkv`, `q_bias`, `k_bias`, `v_bias`,
`relative_position_index`, `relative_position_bias_table`.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import beit
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unmask.encoders.adapter import Adapter, Hiding
from unmask.encoders.features import Features, Layer, kept
from unmask.mask import Mask


class Beit(Adapter):
    """`trunk` with masked patches dropped before the blocks (`"drop"`) or replaced by a learned token (`"token"`).

    `layers` as in `ViT`. Its places are learned for one grid: a picture of another size is a ValueError.
    """

    def __init__(self, trunk: beit.Beit, masked: Hiding = "drop", layers: tuple[Layer, ...] = ()):
        super().__init__(trunk, masked, trunk.embed_dim)
        self.layers = kept(layers, len(trunk.blocks))

    @property
    def width(self) -> int:
        return self.trunk.embed_dim

    @property
    def patch(self) -> tuple[int, int]:
        return tuple(self.trunk.patch_embed.patch_size)

    def grid(self, x: Tensor) -> tuple[int, ...]:
        if tuple(x.shape[2:]) != self.img_size:
            built, given = ("x".join(map(str, size)) for size in (self.img_size, x.shape[2:]))
            raise ValueError(f"this network's relative places were made for pictures of {built}, not of {given}: build it for that size")
        return super().grid(x)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Features:
        trunk, drops = self.trunk, mask is not None and self.hides == "drop"
        x = trunk.patch_embed(x)  # (B, N, D)
        if mask is not None and self.hides == "token":
            x = mask.cover(x, self.mask_token)  # (K·B, N, D)
        x = torch.cat([trunk.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, 1 + N, D)
        x = trunk.pos_drop(x if trunk.pos_embed is None else x + trunk.pos_embed)
        if drops and mask is not None:
            x = torch.cat([mask.fold(x[:, :1]), mask.visible(x[:, 1:])], dim=1)  # (K·B, 1 + V, D)
        x, layers = self.blocks(x, mask if drops else None)
        x = trunk.norm(x)
        return Features(x[:, 1:], x[:, :1], tuple(layer[:, 1:] for layer in layers), tuple(layer[:, :1] for layer in layers))

    def blocks(self, x: Tensor, mask: Mask | None) -> tuple[Tensor, list[Tensor]]:
        """All blocks; with a mask, `x` holds the class token and its visible patches only."""
        shared, layers = self.trunk.rel_pos_bias, [x] if "input" in self.layers else []
        places = None if mask is None else F.pad(mask.visible_ids + 1, (1, 0))  # (B, 1 + V): the class token has place 0
        bias = None if shared is None else shared() if places is None else gathered(shared, places)
        for i, block in enumerate(self.trunk.blocks):
            run = block if places is None else lambda x, bias, block=block: some(block, x, bias, places)
            if self.trunk.grad_checkpointing and self.training:
                x = checkpoint(run, x, bias, use_reentrant=False)
            else:
                x = run(x, bias)
            if i in self.layers:
                layers.append(x)
        return x, layers


def gathered(table: Any, places: Tensor) -> Tensor:
    """The bias (B, heads, n, n) between the tokens at `places` (B, n), out of timm's module that holds the table."""
    index = table.relative_position_index[places.unsqueeze(2), places.unsqueeze(1)]  # (B, n, n)
    return table.relative_position_bias_table[index].permute(0, 3, 1, 2)


def some(block: nn.Module, x: Tensor, shared: Tensor | None, places: Tensor) -> Tensor:
    """timm's block on the tokens (B, n, D) that stand at `places` (B, n)."""
    layer: Any = block
    attended, changed = attend(layer.attn, layer.norm1(x), shared, places), layer.mlp
    if layer.gamma_1 is None:
        x = x + layer.drop_path1(attended)
        return x + layer.drop_path2(changed(layer.norm2(x)))
    x = x + layer.drop_path1(layer.gamma_1 * attended)
    return x + layer.drop_path2(layer.gamma_2 * changed(layer.norm2(x)))


def attend(attention: Any, x: Tensor, shared: Tensor | None, places: Tensor) -> Tensor:
    """timm's attention on the tokens (B, n, D) at `places`, with its own bias and the shared one where there are such."""
    B, n, _ = x.shape
    parts = (attention.q_bias, attention.k_bias, attention.v_bias)
    bias = None if attention.q_bias is None else torch.cat(parts)
    q, k, v = F.linear(x, attention.qkv.weight, bias).reshape(B, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, n, d) each
    far = shared
    if attention.relative_position_bias_table is not None:
        own = gathered(attention, places)
        far = own if far is None else own + far
    dropped = attention.attn_drop.p if attention.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=far, dropout_p=dropped).transpose(1, 2).reshape(B, n, -1)  # (B, n, D)
    return attention.proj_drop(attention.proj(y))
