"""Any plain transformer of timm (VisionTransformer, Eva) that sees only what a mask shows.

timm's own modules embed, place and compute; this adapter hides patches in between. What has to follow a dropped token is
its rows of the rotary table (proved per family by the golden `trunks_*`). State dict and export are timm's, unchanged.

timm attributes used that are not public: `_pos_embed`, `norm_pre`, `norm`, `blocks`, `rope_mixed`, `num_prefix_tokens`,
`no_embed_class`, `grad_checkpointing`.
"""

from __future__ import annotations

import math

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unmask.encoders.adapter import Adapter, Hiding
from unmask.encoders.features import Features, Layer, kept
from unmask.mask import Mask
from unmask.patches import sincos


class ViT(Adapter):
    """`trunk` with masked patches dropped before the blocks (`"drop"`), replaced by a learned token (`"token"`), or seen only by those after (`"causal"`).

    Causal: what is not masked is seen by all; a patch sees those before it and itself, and its features are handed to the place after it, which
    so returns all that was known before it (the first place: what the last prefix token says, or zero without one). `layers` are not moved.

    `layers` names the blocks whose outputs are kept, in the order of the blocks (negative numbers count from the end); `"input"`: what goes
    into the first block; `"blocks"`: all of them.
    """

    def __init__(self, trunk: VisionTransformer | Eva, masked: Hiding = "drop", layers: tuple[Layer, ...] = ()):
        super().__init__(trunk, masked, trunk.embed_dim)
        self.layers = kept(layers, len(trunk.blocks))

    @property
    def width(self) -> int:
        return self.trunk.embed_dim

    @property
    def patch(self) -> tuple[int, int]:
        return tuple(self.trunk.patch_embed.patch_size)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Features:
        x = self.trunk.patch_embed(x)  # (B, H, W, D): timm flattens after the places are added
        if mask is not None and self.hides == "token":
            x = mask.cover(x.flatten(1, 2), self.mask_token).unflatten(1, x.shape[1:3])
        placed = self.placed(x)
        x, rope = placed if isinstance(placed, tuple) else (placed, None)
        prefix = self.trunk.num_prefix_tokens
        if mask is not None and self.hides == "drop":
            visible = mask.visible(x[:, prefix:])  # (B, V, D)
            x = torch.cat([mask.fold(x[:, :prefix]), visible], dim=1)  # (B, P + V, D)
            rope = None if rope is None else self.visible_rope(rope, mask)
        bias = self.earlier(mask, x) if mask is not None and self.hides == "causal" else None
        x, layers = self.blocks(self.trunk.norm_pre(x), rope, bias)
        x = self.trunk.norm(x)
        if bias is not None:
            x = torch.cat([x[:, :prefix], F.pad(x, (0, 0, 1, 0))[:, prefix:-1]], dim=1)
        return Features(x[:, prefix:], x[:, :prefix], tuple(layer[:, prefix:] for layer in layers), tuple(layer[:, :prefix] for layer in layers))

    def placed(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """Patches (B, H, W, D) with their places, behind the prefix tokens: (B, P + N, D), and the rotary table where there is one."""
        return self.trunk._pos_embed(x)

    def visible_rope(self, rope: Tensor, mask: Mask) -> Tensor:
        """Rows of the rotary table for the visible patches: (B, 1, V, d), or (depth, B, heads, V, d) where each block has its own."""
        if rope.dim() == 2:  # (N, d)
            return rope[mask.visible_ids].unsqueeze(1)
        return rope[:, :, mask.visible_ids].permute(0, 2, 1, 3, 4)  # (depth, heads, B, V, d) turned

    def earlier(self, mask: Mask, x: Tensor) -> Tensor:
        """Who may look at whom, to be added to attention, (B, 1, P + N, P + N): at prefix tokens, at what is not masked, and at those before."""
        known = F.pad(~mask.map, (x.shape[1] - math.prod(mask.grid), 0), value=True)[:, None, None]  # (B, 1, 1, P + N)
        before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        return torch.where(known | before, 0.0, -torch.inf).to(x.dtype)

    def blocks(self, x: Tensor, rope: Tensor | None, bias: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        layers = [x] if "input" in self.layers else []
        for i, block in enumerate(self.trunk.blocks):
            place = {} if rope is None else {"rope": rope[i] if self.trunk.rope_mixed else rope}
            place |= {} if bias is None else {"attn_mask": bias}
            if self.trunk.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False, **place)
            else:
                x = block(x, **place)
            if i in self.layers:
                layers.append(x)
        return x, layers


def fix_places(trunk: nn.Module) -> None:
    """Replace learned absolute places by the fixed sine-cosine table (MAE, appendix A.1); without a table nothing changes."""
    if not isinstance(trunk, VisionTransformer | Eva | Beit) or trunk.pos_embed is None:
        return
    table = torch.zeros_like(trunk.pos_embed)
    rows = sincos(tuple(trunk.patch_embed.grid_size), trunk.embed_dim)
    table[0, table.shape[1] - len(rows) :] = rows  # class and register rows, where the table has them, stay zero
    trunk.pos_embed = nn.Parameter(table, requires_grad=False)


def mae_init(module: nn.Module) -> None:
    """MAE's initial values: every Linear xavier-uniform (qkv as one matrix), biases 0, tokens normal .02.

    The patch convolution is xavier-uniform as the matrix it is; its bias keeps PyTorch's default (models_mae.py).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
            nn.init.ones_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
            nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
    for name, token in module.named_parameters():
        if name.rpartition(".")[2] in ("cls_token", "reg_token", "mask_token"):
            nn.init.normal_(token, std=0.02)
