"""How deep in a network a parameter lies, told by its name."""

from __future__ import annotations

import re


def layer_of(name: str, depth: int) -> int:
    """The layer of a ViT's parameter for layer-wise decay, as MAE's fine-tuning counts (util/lr_decay.py).

    Layer 0: tokens, places, patch embedding and what else stands before the blocks; block j: j + 1; the rest (norms after the blocks, head): depth + 1.
    """
    if name in ("cls_token", "pos_embed", "reg_token", "dist_token", "mask_token") or name.startswith(("patch_embed", "norm_pre", "rope")):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1
