"""The adapter over timm's Hiera: golden vectors of visible units, timm's own forward, units dropped whole, other sizes at run time."""

import pytest
import timm
import torch
from golden_files import check_gradients, names
from torch.testing import assert_close

from unmask.encoders import names as names_of
from unmask.encoders.build import build
from unmask.encoders.hiera import Hiera
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import Random
from unmask.patches import enlarged
from unmask.testing import pictures

CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def make(masked="drop", img_size=(64, 96), q_pool=2, patch_size=4, name="hiera_tiny_224", **more):
    torch.manual_seed(0)
    encoder = build(name, img_size, 5, patch_size, masked=masked, width=24, q_pool=q_pool, **more).eval()
    for value in encoder.parameters():
        value.data.normal_(std=0.2)
    return encoder


def some(encoder, x, rows=2, ratio=0.5):
    strategy = Random(ratio, encoder.unit)
    grid = encoder.grid(x)
    return strategy(grid, torch.rand(rows, strategy.draws(grid), generator=torch.Generator().manual_seed(1)))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("trunks_hiera", "input.keep_units"))
def test_visible_units_equal_the_masked_full_model(golden, name):
    tensors, metadata = golden(name)
    config = {key: value for key, value in metadata["config"].items() if key != "mask_unit_px"}
    trunk = timm.create_model("hiera_tiny_224", **config | {"img_size": tuple(config["img_size"])}).eval()
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    trunk.load_state_dict(weights, strict=False)
    encoder, x, keep = Hiera(trunk), tensors["input.image"], tensors["input.keep_units"]
    assert encoder.patch == (metadata["config"]["mask_unit_px"],) * 2 and encoder.unit == 1
    kept, order = int(keep[0].sum()), keep.argsort(dim=1, descending=True, stable=True)
    mask = Mask(order[:, :kept], order[:, kept:], encoder.grid(x))
    assert_close(encoder(x).patches.unflatten(1, mask.grid), tensors["output.full_map"], **CLOSE)
    visible = encoder(x, mask).patches.reshape(tensors["output.visible"].shape)
    assert_close(visible, tensors["output.visible"], **CLOSE)
    scalar = (visible * tensors["input.grad_weight"]).sum()
    assert_close(scalar, tensors["output.scalar_for_grad"], rtol=1e-5, atol=1e-4)
    scalar.backward()
    check_gradients(trunk, {key.removeprefix("grad."): value for key, value in tensors.items() if key.startswith("grad.")}, 5e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_small_abswin_256"])
@pytest.mark.parametrize("q_pool", [1, 2, 3])
def test_without_a_mask_equals_timm(q_pool, name):
    encoder, x = make(q_pool=q_pool, name=name, layers=(0, -1)), pictures(2, 5, (64, 96))
    side = 8 // 2**q_pool
    assert encoder.grid(x) == (2 * side, 3 * side) and encoder.unit == side and encoder.patch == (32 // side,) * 2
    maps = encoder.trunk.forward_features(x, return_intermediates=True)[1]
    features = encoder(x)
    assert_close(features.patches.unflatten(1, encoder.grid(x)), maps[-1], rtol=0, atol=1e-5)
    assert torch.equal(features.layers[-1], features.patches) and features.prefix.shape == (2, 0, encoder.width)
    per = 2**q_pool  # tokens a side of a feature in the first stage
    if encoder.trunk.stage_ends[0] == 0:
        first = features.layers[0].unflatten(-1, (per, per, -1)).unflatten(1, encoder.grid(x)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        assert_close(first, maps[0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("q_pool", [1, 2, 3])
@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_dropping_equals_timm_without_these_units(q_pool, size):
    """timm's own masked forward gives kept units in raster order; at another size a network of that size, its places interpolated."""
    encoder, x = make(q_pool=q_pool), pictures(2, 5, size)
    mask = some(encoder, x)
    whole = make(q_pool=q_pool, img_size=size)
    whole.trunk.load_state_dict(encoder.trunk.state_dict() | {"pos_embed": encoder.places(tuple(side // 4 for side in size))})
    shown = torch.zeros_like(mask.map).scatter(1, mask.visible_ids, True)
    units = torch.nn.functional.max_pool2d(shown.unflatten(1, (1, *mask.grid)).float(), encoder.unit).flatten(1).bool()  # (B, U)
    wanted = whole.trunk.forward_features(x, mask=units, return_intermediates=True)[1][-1]  # (B, K, h, w, C)
    grid = tuple(side // encoder.unit for side in mask.grid)
    placed = torch.zeros(2, units.shape[1], *wanted.shape[2:])
    placed[units] = wanted.flatten(0, 1)
    placed = placed.unflatten(1, grid).transpose(2, 3).flatten(3, 4).flatten(1, 2).flatten(1, 2)  # (B, N, C)
    assert_close(encoder(x, mask).patches, mask.visible(placed), rtol=1e-4, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("masked", ["drop", "token"])
def test_hidden_pixels_do_not_matter_nor_does_the_order_of_lists(masked):
    encoder, x = make(masked), pictures(2, 5, (64, 96))
    mask = some(encoder, x)
    hidden = enlarged(mask.map, mask.grid, (64, 96)).unsqueeze(1)
    one, other = encoder(x, mask).patches, encoder(torch.where(hidden, torch.nan, x), mask).patches
    assert torch.equal(one, other) and one.shape == (2, 12 if masked == "drop" else 24, 192)
    turned = encoder(x, Mask(mask.visible_ids.flip(1), mask.masked_ids.flip(1), mask.grid)).patches
    assert torch.equal(turned.flip(1) if masked == "drop" else turned, one)


@torch.no_grad()
@pytest.mark.parametrize("masked", ["drop", "token"])
def test_several_masks_a_picture(masked):
    encoder, x = make(masked, q_pool=3), pictures(2, 5, (64, 96))
    mask = some(encoder, x, rows=4)
    assert_close(encoder(x, mask).patches[1:2], encoder(x[:1], mask.rows(torch.tensor([1]))).patches, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", ["drop", "token"])
def test_every_parameter_is_trained_and_recomputing_changes_nothing(masked):
    encoder, x, gradients = make(masked), pictures(2, 5, (64, 96)), []
    mask = some(encoder, x)
    for recompute in (False, True):
        encoder.trunk.set_grad_checkpointing(recompute)
        encoder.train().zero_grad()
        encoder(x, mask).patches.square().sum().backward()
        gradients.append({name: value.grad.clone() for name, value in encoder.named_parameters() if value.requires_grad})
    assert not any(name.startswith("trunk.head") for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_smaller_patches_keep_the_proportion_of_windows():
    encoder = make(img_size=(32, 48), patch_size=2)
    assert encoder.patch == (8, 8) and encoder.trunk.patch_embed.proj.kernel_size == (3, 3) and encoder.grid(pictures(1, 5, (32, 48))) == (4, 6)


def test_what_it_lacks_is_refused():
    with pytest.raises(Refused, match="64 80 is no multiple of 32"):
        make(img_size=(64, 80))
    with pytest.raises(Refused, match="no Hiera"):
        build("vit_tiny_patch16_224", q_pool=2)
    with pytest.raises(Refused, match="stages"):
        make(depth=3)
    with pytest.raises(ValueError, match="mask units of 32x32"):
        make()(pictures(1, 5, (64, 80)))


def test_its_names_are_known_without_torch():
    assert names_of.names()["hiera_tiny_224"] == "Hiera" and "hiera_base_224" in names_of.trainable() and "convnextv2_atto" in names_of.trainable()
    assert names_of.staged("hiera_tiny_224") and names_of.staged("swin_tiny_patch4_window7_224") and not names_of.staged("vit_tiny_patch16_224")
    with pytest.raises(Refused, match=r"choose a Hiera of timm"):
        names_of.check("vit_tiny_patch16_224", kinds=("Hiera",))
