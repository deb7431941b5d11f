"""The adapter over timm's ConvNeXt: golden vectors of masked dense convolutions, timm's own forward, hidden places that matter to nobody."""

import pytest
import torch
from golden_files import check_gradients, names
from timm.models.convnext import ConvNeXt as Network
from torch.testing import assert_close

from unmask.encoders.build import build
from unmask.encoders.convnext import ConvNeXt
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.patches import enlarged
from unmask.testing import pictures

CLOSE = {"rtol": 1e-5, "atol": 3e-5}
MODELS = ["convnextv2_atto", "convnextv2_tiny", "convnext_tiny", "convnext_tiny_hnf"]  # layers as convolutions or not; V1 with scales; a norm before the pool


def make(model="convnextv2_atto", masked="drop"):
    torch.manual_seed(0)
    encoder = build(model, (64, 96), 5, masked=masked, width=8).eval()
    for value in encoder.parameters():
        value.data.normal_(std=0.2)
    return encoder


def some(rows=2, grid=(2, 3)):
    order = torch.rand(rows, grid[0] * grid[1], generator=torch.Generator().manual_seed(1)).argsort(1)
    return Mask(order[:, :3], order[:, 3:], grid)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("trunks_convnextv2", "input.keep_units"))
def test_visible_squares_equal_the_masked_full_model(golden, name):
    tensors, metadata = golden(name)
    config = {key: value for key, value in metadata["config"].items() if key not in ("mask_unit_px", "img_size")}
    trunk = Network(**config).eval()
    trunk.load_state_dict({key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}, strict=False)
    encoder, x, keep = ConvNeXt(trunk), tensors["input.image"], tensors["input.keep_units"]
    assert encoder.patch == (metadata["config"]["mask_unit_px"],) * 2
    kept, order = int(keep[0].sum()), keep.argsort(dim=1, descending=True, stable=True)
    mask = Mask(order[:, :kept], order[:, kept:], encoder.grid(x))
    assert_close(encoder(x).patches, tensors["output.full_map"].flatten(2).transpose(1, 2), **CLOSE)
    visible = encoder(x, mask).patches
    assert_close(visible, mask.visible(tensors["output.visible_map"].flatten(2).transpose(1, 2)), **CLOSE)
    scalar = (visible * mask.visible(tensors["input.grad_weight"].flatten(2).transpose(1, 2))).sum()
    assert_close(scalar, tensors["output.scalar_for_grad"], rtol=1e-5, atol=1e-4)
    scalar.backward()
    check_gradients(trunk, {key.removeprefix("grad."): value for key, value in tensors.items() if key.startswith("grad.")}, 5e-5)


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS)
def test_without_a_mask_equals_timm_to_the_last_bit_at_any_size(model):
    encoder = make(model)
    for size in ((64, 96), (96, 32)):
        x = pictures(2, 5, size)
        assert torch.equal(encoder(x).patches, encoder.trunk.forward_features(x).flatten(2).transpose(1, 2))
    assert encoder.img_size == (64, 96) and encoder.in_chans == 5 and encoder.patch == (32, 32) and encoder.width == 64


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS)
def test_dropping_nothing_equals_timm(model):
    encoder, x = make(model), pictures(2, 5, (64, 96))
    everything = Mask.all(2, (2, 3))
    found = encoder(x, Mask(everything.visible_ids, everything.masked_ids[:, :1], (2, 3), torch.zeros(2, 1))).patches
    assert_close(found, encoder(x).patches, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("masked", ["drop", "token"])
def test_hidden_pixels_do_not_matter(model, masked):
    encoder, x, mask = make(model, masked), pictures(2, 5, (64, 96)), some()
    other = torch.where(enlarged(mask.map, mask.grid, (64, 96)).unsqueeze(1), torch.nan, x)
    assert torch.equal(encoder(x, mask).patches, encoder(other, mask).patches)
    assert encoder(x, mask).patches.shape == (2, 3 if masked == "drop" else 6, 64)


@torch.no_grad()
def test_several_masks_a_picture_each_by_itself():
    encoder, x, mask = make(), pictures(2, 5, (64, 96)), some(4)
    assert_close(encoder(x, mask).patches[1:2], encoder(x[:1], mask.rows(torch.tensor([1]))).patches, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_together_the_norm_sums_over_the_batch():
    alone, x, mask = make(), pictures(2, 5, (64, 96)), some()
    both = ConvNeXt(alone.trunk, together=True)
    assert (both(x, mask).patches - alone(x, mask).patches).abs().max() > 1e-2
    one = mask.rows(torch.tensor([0]))
    assert_close(both(x[:1], one).patches, alone(x[:1], one).patches, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("masked", ["drop", "token"])
def test_every_parameter_is_trained_and_recomputing_changes_nothing(model, masked):
    encoder, x, mask, gradients = make(model, masked), pictures(2, 5, (64, 96)), some(), []
    for recompute in (False, True):
        encoder.trunk.set_grad_checkpointing(recompute)
        encoder.train().zero_grad()
        encoder(x, mask).patches.square().sum().backward()
        gradients.append({name: value.grad.clone() for name, value in encoder.named_parameters() if value.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_what_it_lacks_is_refused():
    with pytest.raises(Refused, match="cuts the picture into patches"):
        build("convnext_atto_ols", (64, 64))
    with pytest.raises(Refused, match="no inner layers"):
        build("convnextv2_atto", (64, 64), layers=(0,))
    with pytest.raises(Refused, match="no multiple"):
        build("convnextv2_atto", (64, 80))
