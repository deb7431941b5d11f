"""The contract of an encoder: a new one joins by a row of `ENCODERS`."""

import pytest
import timm
import torch

from unmask import seeds
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build
from unmask.mask import Mask
from unmask.testing import pictures

MODELS = [  # learned, fixed, rotary (axial, mixed, DINOv3's) and no absolute places; class, register and no prefix tokens; SwiGLU; layer scale
    "vit_tiny_patch16_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_xp_224",
    "vit_medium_patch16_gap_256",
    "vit_wee_patch16_reg1_gap_256",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_reg4_dinov2",
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "eva02_tiny_patch14_224",
    "eva02_base_patch14_224",
    "eva_giant_patch14_224",
    "vit_small_patch16_rope_224",
    "vit_small_patch16_rope_ape_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_medium_patch16_rope_reg1_gap_256",
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3",
    "vit_pe_core_tiny_patch16_384",
]
FIXED = ["beit_base_patch16_224", "beitv2_base_patch16_224"]  # relative places, made for one size of input
SIZE = {"patch_size": 8, "width": 48, "depth": 2, "heads": 3}
ENCODERS = [pytest.param(model, masked, id=f"{model}-{masked}") for model in MODELS + FIXED for masked in ("drop", "token")]


def make(model, masked="drop", img_size=(32, 48), in_chans=5, **more) -> Adapter:
    """A tiny encoder whose every weight is redrawn: no norm is the identity, no table zero."""
    torch.manual_seed(0)
    if timm.__version__ < "1.0.30" and not timm.is_model(model):
        pytest.skip(f"timm {timm.__version__} has no {model}")
    encoder = build(model, img_size, in_chans, masked=masked, **SIZE | more).eval()
    for value in encoder.parameters():
        value.data.normal_(std=0.2)
    return encoder


def tensors(features):
    return [features.patches, features.prefix, *features.layers]


def near(one, other, tolerance=1e-5):
    for left, right in zip(tensors(one), tensors(other), strict=True):
        assert left.shape == right.shape and ((left - right).abs().max() <= tolerance * right.abs().max() if right.numel() else True)


def halves(x, grid):
    """A mask of half of the patches, rows of different patches."""
    N = grid[0] * grid[1]
    order = seeds.uniform((len(x), N), 0, "halves").argsort(1)
    return Mask(order[:, : N // 2], order[:, N // 2 :], grid)


@torch.no_grad()
@pytest.mark.parametrize(("model", "masked"), ENCODERS)
def test_shapes_and_nothing_masked(model, masked):
    encoder, x = make(model, masked, layers=(0, -1)), pictures(2, 5, (32, 48))
    assert encoder.grid(x) == (4, 6) and encoder.patch == (8, 8) and encoder.in_chans == 5 and encoder.img_size == (32, 48)
    whole, P = encoder(x), encoder.trunk.num_prefix_tokens
    assert whole.patches.shape == (2, 24, encoder.width) and whole.prefix.shape == (2, P, encoder.width)
    assert [layer.shape for layer in whole.layers] == [whole.patches.shape] * 2
    mask = Mask.all(2, (4, 6))
    near(encoder(x, Mask(mask.visible_ids, mask.masked_ids[:, :3], mask.grid, torch.zeros(2, 3))), whole)  # all are padding
    assert torch.equal(encoder({"image": x, "other": None}["image"]).patches, encoder(encoder.take({"image": x, "other": x.flip(0)})).patches)


@torch.no_grad()
@pytest.mark.parametrize(("model", "masked"), ENCODERS)
def test_the_order_of_visible_patches_means_nothing(model, masked):
    encoder, x = make(model, masked, layers=(0,)), pictures(2, 5, (32, 48))
    mask = halves(x, (4, 6))
    one = encoder(x, mask)
    other = encoder(x, Mask(mask.visible_ids.flip(1), mask.masked_ids.flip(1), mask.grid))
    if masked == "drop":  # the features come in the order of the list
        assert one.patches.shape[1] == 12
        other = other._replace(patches=other.patches.flip(1), layers=tuple(layer.flip(1) for layer in other.layers))
    near(one, other)


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS)
def test_dropping_equals_attention_that_looks_away(model):
    """timm's own blocks on all tokens, where nobody may attend to a dropped patch, give the visible ones the same features."""
    encoder, x = make(model), pictures(2, 5, (32, 48))
    trunk, mask = encoder.trunk, halves(x, (4, 6))
    found, P = encoder(x, mask), trunk.num_prefix_tokens
    placed = trunk._pos_embed(trunk.patch_embed(x))
    tokens, rope = placed if isinstance(placed, tuple) else (placed, None)
    gone = torch.cat([torch.zeros(2, P, dtype=torch.bool), mask.map], 1)  # (B, P + N)
    closed = gone[:, None, None, :] & ~torch.eye(P + 24, dtype=torch.bool)  # (B, 1, P + N, P + N); the diagonal stays open
    bias, tokens = torch.zeros(closed.shape).masked_fill(closed, -torch.inf), trunk.norm_pre(tokens)
    for i, block in enumerate(trunk.blocks):
        tokens = block(tokens, attn_mask=bias, **({} if rope is None else {"rope": rope[i] if trunk.rope_mixed else rope}))
    tokens = trunk.norm(tokens)
    for left, right in ((found.prefix, tokens[:, :P]), (found.patches, mask.visible(tokens[:, P:]))):
        assert not right.numel() or (left - right).abs().max() <= 2e-5 * right.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("built", [(32, 48), (24, 64), (32, 32)])
@pytest.mark.parametrize("model", MODELS)
def test_without_a_mask_equals_timm_to_the_last_bit(model, built):
    encoder = make(model, img_size=built)
    for size in ((32, 48), (32, 32), (64, 24)):  # its own and others at run time
        x = pictures(2, 5, size)
        features = encoder(x)
        assert torch.equal(torch.cat([features.prefix, features.patches], 1), encoder.trunk.forward_features(x))


@torch.no_grad()
@pytest.mark.parametrize("model", FIXED)
def test_without_a_mask_equals_timm_at_the_size_it_was_built_for(model):
    encoder, x = make(model, layers=(0,)), pictures(2, 5, (32, 48))
    features = encoder(x)
    assert torch.equal(torch.cat([features.prefix, features.patches], 1), encoder.trunk.forward_features(x))
    assert torch.equal(features.layers[0], encoder.trunk.forward_intermediates(x, indices=[0], output_fmt="NLC", intermediates_only=True)[0])


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS + FIXED)
def test_hidden_pixels_do_not_matter(model):
    x = pictures(2, 5, (32, 48))
    for masked in ("drop", "token"):
        encoder, mask = make(model, masked), halves(x, (4, 6))
        hidden = mask.map.reshape(2, 1, 4, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)
        other = torch.where(hidden, torch.nan if masked == "drop" else 99.0, x)
        assert torch.equal(encoder(x, mask).patches, encoder(other, mask).patches)


@pytest.mark.parametrize("masked", ["drop", "token"])
@pytest.mark.parametrize("model", MODELS + FIXED)
def test_every_parameter_is_trained_and_recomputing_changes_nothing(model, masked):
    encoder, x = make(model, masked), pictures(2, 5, (32, 48))
    mask, gradients = halves(x, (4, 6)), []
    for recompute in (False, True):
        encoder.trunk.set_grad_checkpointing(recompute)
        encoder.train().zero_grad()
        features = encoder(x, mask)
        torch.cat([features.prefix, features.patches], 1).square().sum().backward()
        gradients.append({name: value.grad.clone() for name, value in encoder.named_parameters() if value.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.any(), f"{name} gets no gradient"
        assert (gradients[1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-6, name
