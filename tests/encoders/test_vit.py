"""The adapter over timm's trunks: golden vectors of visible tokens, initial values, building and refusing. Its laws: laws/test_encoders.py."""

import pytest
import timm
import torch
from golden_files import names
from torch import nn
from torch.testing import assert_close

from unmask.encoders.build import build, create_trunk
from unmask.encoders.vit import ViT, fix_places, mae_init
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.patches import resize_places, sincos

TINY = {"patch_size": 8, "width": 48, "depth": 2, "heads": 3}
CLOSE = {"rtol": 1e-5, "atol": 2e-5}  # the note's: timm itself is off by 7e-6 in float64


@pytest.mark.golden
@pytest.mark.parametrize("name", [name for name in names("trunks_", "input.visible_ids") if "beit" not in name])
def test_visible_tokens_equal_the_masked_full_model(golden, name):
    """Features, gradients and the rotary table of timm's trunks on half of the tokens (BEiT's bias comes with its own adapter)."""
    tensors, metadata = golden(name)
    config = metadata["config"]
    own = {key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")} | {"img_size": tuple(config["img_size"])}
    trunk = timm.create_model(config["model"], num_classes=0, dynamic_img_size=True, **own).eval()
    trunk.load_state_dict({key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")})
    encoder, x, ids = ViT(trunk), tensors["input.image"], tensors["input.visible_ids"]
    grid = encoder.grid(x)
    hidden = torch.stack([torch.tensor(sorted(set(range(grid[0] * grid[1])) - set(row))) for row in ids.tolist()])
    whole, some = encoder(x), encoder(x, Mask(ids, hidden, grid))
    assert_close(torch.cat([whole.prefix, whole.patches], 1), tensors["output.full"], **CLOSE)
    visible = torch.cat([some.prefix, some.patches], 1)
    assert_close(visible, tensors["output.visible"], **CLOSE)
    if "output.rope_sin_cos" in tensors:
        assert_close(trunk.rope.get_embed(shape=grid), tensors["output.rope_sin_cos"], rtol=0, atol=1e-6)
    scalar = (visible * tensors["input.grad_weight"]).sum()
    assert_close(scalar, tensors["output.scalar_for_grad"], rtol=1e-5, atol=1e-4)
    scalar.backward()
    gradients = {key.removeprefix("grad."): value for key, value in tensors.items() if key.startswith("grad.")}
    assert gradients
    for key, gradient in gradients.items():
        assert_close(trunk.get_parameter(key).grad, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item(), msg=lambda said, key=key: f"{key}: {said}")


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224", "vit_base_patch16_siglip_224"])
def test_fixed_places_lie_on_the_patches(model):
    trunk = create_trunk(model, (32, 48), 3, **TINY)
    fix_places(trunk)
    table, rows = trunk.pos_embed, sincos((4, 6), 48)
    assert not table.requires_grad and torch.equal(table[0, -24:], rows) and not table[0, :-24].any()


def test_without_absolute_places_nothing_is_fixed():
    trunk = create_trunk("vit_small_patch16_rope_224", (32, 48), 3, **TINY)
    fix_places(trunk)
    assert trunk.pos_embed is None


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "eva02_base_patch14_224", "vit_small_patch16_dinov3"])
def test_initial_values(model):
    torch.manual_seed(0)
    encoder = build(model, (32, 48), 5, masked="token", **TINY)
    mae_init(encoder)
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            assert 0.95 * bound < layer.weight.abs().max() <= bound and (layer.bias is None or not layer.bias.any())
    assert 0.012 < encoder.mask_token.std() < 0.03 and 0.012 < encoder.trunk.cls_token.std() < 0.03
    convolution = encoder.trunk.patch_embed.proj
    fan = convolution.weight[0].numel()
    assert convolution.weight.abs().max() <= (6 / (fan + 48)) ** 0.5 and 0 < convolution.bias.abs().max() <= fan**-0.5


def test_kept_layers_come_in_the_order_of_the_blocks():
    encoder = build("vit_tiny_patch16_224", (32, 32), 3, layers=(-1, 0), **TINY).eval()
    x = torch.randn(2, 3, 32, 32)
    features = encoder(x)
    assert len(features.layers) == 2
    assert_close(encoder.trunk.norm(torch.cat([features.prefix * 0, features.layers[1]], 1))[:, 1:], features.patches)  # the last block's is un-normed
    short = build("vit_tiny_patch16_224", (32, 32), 3, **TINY | {"depth": 1}).eval()
    short.load_state_dict(encoder.state_dict(), strict=False)
    assert_close(short.trunk.blocks(short.trunk._pos_embed(short.trunk.patch_embed(x)))[:, 1:], features.layers[0])


def test_another_size_at_run_time_equals_a_model_built_for_it():
    """With places resized as timm does; a table resized as MAE does is `patches.resize_places`."""
    small, large = (build("vit_small_patch16_rope_224", size, 3, **TINY).eval() for size in ((32, 48), (64, 40)))
    large.load_state_dict(small.state_dict())
    x = torch.randn(2, 3, 64, 40)
    assert torch.equal(small(x).patches, large(x).patches)
    table = build("vit_tiny_patch16_224", (32, 48), 3, **TINY).trunk.pos_embed
    assert resize_places(table, (4, 6), (8, 5), prefix=1).shape == (1, 41, 48)


def test_the_trunk_stays_timms():
    """Its state dict opens in a plain timm model of the same arguments, and none of its keys is ours."""
    encoder = build("vit_small_patch14_reg4_dinov2", (28, 42), 4, masked="token", width=48, depth=2, heads=3)
    arguments = dict(encoder.trunk.unmask_kwargs)
    again = timm.create_model(arguments.pop("model"), **arguments).eval()
    again.load_state_dict(encoder.trunk.state_dict())
    x = torch.randn(1, 4, 28, 42)
    assert torch.equal(again.forward_features(x)[:, 5:], encoder.eval()(x).patches)


def test_a_model_of_ones_own_is_taken_as_it_is():
    trunk = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0, dynamic_img_size=True)
    assert build(trunk).trunk is trunk
    with pytest.raises(Refused, match="dynamic_img_size=True"):
        build(timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0))
    with pytest.raises(Refused, match="ResNet cannot be masked"):
        build(timm.create_model("resnet18", num_classes=0))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"model": "vit_tiny_patch16_242"}, "did you mean"),
        ({"model": "resnet18"}, "cannot be masked"),
        ({"model": "deit_tiny_distilled_patch16_224"}, "Distilled"),
        ({"model": "vit_tiny_patch16_224", "img_size": (100, 96)}, "no multiple of the model's patch 16"),
        ({"model": "vit_tiny_patch16_224", "heads": 5}, "cannot be built"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(words, said):
    with pytest.raises(Refused, match=said) as refusal:
        build(**{"img_size": (32, 32)} | words)
    assert "\n" not in str(refusal.value)
