"""A plain transformer whose learned places reach other grids as in DINO's code."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer

from unmask.encoders.adapter import Adapter
from unmask.encoders.vit import ViT
from unmask.patches import resize_places


class Scaled(ViT):
    """Places of another grid are read from the table at multiples of a *scale*, (n + .1) / (rows of the table), bicubic, without antialiasing.

    Of 14 rows read at 6 that is another answer than timm's, which reads by size and antialiases: it matters while local crops train (dino and ibot,
    vision_transformer.py; dinov2 for networks without registers). Elsewhere an encoder's places are timm's.
    """

    def placed(self, x):
        trunk, grid = self.trunk, tuple(x.shape[1:3])
        old, prefix = tuple(trunk.patch_embed.grid_size), 0 if self.trunk.no_embed_class else self.trunk.num_prefix_tokens
        if grid == old:
            return trunk._pos_embed(x)
        places = resize_places(trunk.pos_embed, old, grid, prefix, more=0.1)
        tokens = [token.expand(len(x), -1, -1) for token in (trunk.cls_token, trunk.reg_token) if token is not None]
        x = x.flatten(1, 2)
        x = torch.cat([*tokens, x], dim=1) + places if prefix else torch.cat([*tokens, x + places], dim=1)
        return trunk.pos_drop(x)


def scaled(encoder: Adapter) -> Adapter:
    """The encoder with that way, where it is a plain transformer with a table of learned places."""
    if type(encoder) is not ViT or not isinstance(encoder.trunk, VisionTransformer) or encoder.trunk.pos_embed is None:
        return encoder
    found = Scaled(encoder.trunk, encoder.hides, encoder.layers)
    if encoder.mask_token is not None:
        found.mask_token = encoder.mask_token
    return found
