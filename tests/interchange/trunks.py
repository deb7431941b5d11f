"""Trunks of every family for the tests of exports: small, with weights that are none of anybody's initial values."""

from __future__ import annotations

from pathlib import Path

import torch

from unmask.encoders.build import create_trunk
from unmask.interchange.encoder import load_encoder, save_encoder
from unmask.interchange.timm import Encoder, rebuild

TRUNKS: dict[str, tuple] = {  # name: architecture, img_size, in_chans, patch_size, sizes, further arguments of timm
    "square": ("vit_tiny_patch16_224", (64, 64), 3, 8, {"depth": 2}),
    "not square, 13 channels": ("vit_tiny_patch16_224", (64, 32), 13, None, {"depth": 2}),
    "grey, narrow": ("vit_tiny_patch16_224", (32, 32), 1, 4, {"depth": 2, "width": 48, "heads": 3}),
    "no class token": ("vit_base_patch16_siglip_gap_224", (32, 48), 3, None, {"depth": 1, "width": 96, "heads": 3}),
    "layer scale": ("deit3_small_patch16_224", (64, 64), 3, None, {"depth": 2}),
    "layer scale, class token with a place": ("vit_small_patch14_dinov2", (56, 56), 3, None, {"depth": 2}),
    "registers": ("vit_small_patch14_reg4_dinov2", (56, 56), 3, None, {"depth": 2}),
    "registers, not square": ("vit_small_patch14_reg4_dinov2", (56, 28), 3, None, {"depth": 2}),
    "gated": ("vit_giant_patch14_reg4_dinov2", (28, 28), 3, None, {"depth": 1, "width": 192, "heads": 3}),
    "half of the biases": ("eva_large_patch14_196", (28, 42), 3, None, {"depth": 1, "width": 96, "heads": 3}),
    "DINOv3's places": ("vit_small_patch16_dinov3", (48, 32), 4, None, {"depth": 2}),
    "DINOv3's places, biases": ("vit_small_patch16_dinov3_qkvb", (48, 32), 3, None, {"depth": 2}),
    "DINOv3's places, gated": ("vit_small_plus_patch16_dinov3", (48, 32), 3, None, {"depth": 2}),
    "rotary and sub-LN": ("eva02_base_patch14_224", (56, 42), 3, None, {"depth": 1, "width": 96, "heads": 3}),
    "rotary": ("vit_small_patch16_rope_224", (48, 48), 3, 8, {"depth": 2}),
    "rotary, mixed": ("vit_small_patch16_rope_mixed_ape_224", (48, 48), 3, 8, {"depth": 2}),
    "norm before the blocks": ("vit_base_patch32_clip_224", (64, 64), 3, None, {"depth": 1, "width": 96, "heads": 3}),
    "relative places": ("beit_base_patch16_224", (64, 64), 3, None, {"depth": 2, "width": 96, "heads": 3}),
    "relative places a block, and absolute ones": (
        "beit_base_patch16_224",
        (64, 64),
        3,
        None,
        {"depth": 2, "width": 96, "heads": 3},
        {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False, "use_abs_pos_emb": True, "init_values": None},
    ),
    "relative places, not square": ("beit_base_patch16_224", (64, 32), 3, None, {"depth": 1, "width": 96, "heads": 3}),
    "windows": ("swin_tiny_patch4_window7_224", (224, 224), 3, None, {"width": 12}),
    "windows of two sizes": ("swin_tiny_patch4_window7_224", (96, 96), 3, None, {"width": 24}),
    "registers, no class token": ("vit_mediumd_patch16_reg4_gap_256", (64, 64), 3, None, {"depth": 1}),
}


def encoder_of(case: str, folder: Path) -> Encoder:
    """The encoder of a run's file: no weight, bias, scale or token has the value that some class would draw for it."""
    model, img_size, in_chans, patch_size, more, *own = TRUNKS[case]
    torch.manual_seed(3)
    trunk = create_trunk(model, img_size, in_chans, patch_size, **more)
    if own:
        kwargs = trunk.unmask_kwargs | own[0]
        trunk = rebuild(model, {name: value for name, value in kwargs.items() if name != "model"})
    for name, weight in trunk.named_parameters():
        if weight.dim() < 2 or name.endswith("table") or name in ("cls_token", "reg_token", "pos_embed"):
            weight.data.add_(torch.randn_like(weight) * 0.1)
    save_encoder(folder / "encoder.safetensors", trunk, {"method": "mae", "mean": [0.4] * in_chans, "std": [0.2] * in_chans})
    return load_encoder(folder)
