"""Attention and patch features: what timm itself computes, with class tokens, registers, rotary places or none."""

import pytest
import timm
import torch

from unmask.errors import Refused
from unmask.visualize.attention import attention, components, show_attention, show_features

NAMES = ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"]


def model(name, **more):
    torch.manual_seed(0)
    made = timm.create_model(name, num_classes=0, dynamic_img_size=True, depth=2, **more)
    with torch.no_grad():
        for weight in made.parameters():  # sharper than at the start, so that a wrong map shows
            weight.copy_(torch.randn_like(weight) * 0.1)
    return made


def unfused(made, x):
    """timm's own softmax, read from its dropout in the path that is not fused."""
    block, kept = made.blocks[-1].attn, []
    block.fused_attn = False
    hook = block.attn_drop.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        made.eval().forward_features(x)
    hook.remove()
    block.fused_attn = True
    return kept[-1]


@pytest.mark.parametrize("name", NAMES)
def test_the_map_is_timms_own_softmax(name):
    made = model(name)
    side = made.patch_embed.patch_size[0]
    x = torch.randn(2, 3, 3 * side, 5 * side)
    answer, truth = attention(made, x), unfused(made, x)
    assert answer.maps.shape == (2, truth.shape[1], 3, 5) and "class token" in answer.asks
    assert torch.allclose(answer.maps.flatten(2), truth[:, :, 0, made.num_prefix_tokens :], atol=1e-5)


def test_without_a_class_token_the_received_attention_is_shown():
    made = model("vit_base_patch16_gap_224", embed_dim=96, num_heads=3)
    x = torch.randn(1, 3, 48, 64)
    answer = attention(made, x)
    assert "mean over all patches" in answer.asks
    assert torch.allclose(answer.maps.flatten(2), unfused(made, x).mean(2), atol=1e-5)


def test_the_model_stays_as_it_was():
    made = model(NAMES[0]).train()
    made.blocks[-1].attn.fused_attn = False
    attention(made, torch.randn(1, 3, 32, 32))
    assert made.training and made.blocks[-1].attn.fused_attn is False and not made.blocks[-1]._forward_pre_hooks


@pytest.mark.parametrize("name", NAMES[:2])
def test_components_are_the_principal_ones(name):
    made = model(name)
    side = made.patch_embed.patch_size[0]
    x = torch.randn(3, 3, 4 * side, 2 * side)
    scores, share = components(made, x)
    assert scores.shape == (3, 3, 4, 2)
    with torch.no_grad():
        features = made.eval().forward_features(x)[:, made.num_prefix_tokens :].flatten(0, 1)
    values = torch.linalg.svdvals((features - features.mean(0)).double()) ** 2
    assert torch.allclose(share.double(), values[:3] / values.sum(), atol=1e-5)
    flat = scores.permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose((flat**2).sum(1).double(), values[:3], rtol=1e-3) and abs(flat.mean(1)).max() < 1e-3


def test_sheets_are_drawn(tmp_path):
    made, x = model(NAMES[0]), torch.randn(2, 3, 32, 48)
    for show in (show_attention, show_features):
        drawn = show(made, x, ["a", "b"], mean=[0.5] * 3, std=[0.2] * 3, out=tmp_path / f"{show.__name__}.png")
        assert min(drawn.size) >= 100 and (tmp_path / f"{show.__name__}.png").is_file()
    show_features(made, x, ["a", "b"], mean=None, std=None)


def test_other_networks_are_refused():
    with pytest.raises(Refused, match="ResNet"):
        attention(timm.create_model("resnet10t"), torch.randn(1, 3, 64, 64))
