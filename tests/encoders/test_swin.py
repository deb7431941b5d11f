"""The adapter over timm's SwinTransformer: golden vectors of visible squares, masks spread to finer tokens, timm's own forward."""

import pytest
import torch
from golden_files import check_gradients, names
from timm.models.swin_transformer import SwinTransformer
from torch.testing import assert_close

from unmask.encoders.build import build
from unmask.encoders.swin import Swin, spread
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.testing import pictures

CLOSE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.fixture
def make():
    def made(masked, img_size=(32, 64)):
        torch.manual_seed(0)
        encoder = build("swin_tiny_patch4_window7_224", img_size, 5, 2, masked=masked, width=24).eval()
        for value in encoder.parameters():
            value.data.normal_(std=0.2)
        return encoder

    return made


def some(count, N, kept, grid):
    order = torch.rand(count, N, generator=torch.Generator().manual_seed(1)).argsort(1)
    return Mask(order[:, :kept], order[:, kept:], grid)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("trunks_swin", "input.keep_units"))
def test_visible_squares_equal_the_masked_full_model(golden, name):
    tensors, metadata = golden(name)
    config = {key: value for key, value in metadata["config"].items() if key != "mask_unit_px"}
    trunk = SwinTransformer(**config | {"img_size": tuple(config["img_size"])}).eval()
    trunk.load_state_dict({key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")})
    encoder, x, keep = Swin(trunk, masked="drop"), tensors["input.image"], tensors["input.keep_units"]
    assert encoder.patch == (metadata["config"]["mask_unit_px"],) * 2
    kept, order = int(keep[0].sum()), keep.argsort(dim=1, descending=True, stable=True)
    mask = Mask(order[:, :kept], order[:, kept:], encoder.grid(x))
    assert_close(encoder(x).patches.unflatten(1, mask.grid), tensors["output.full_map"], **CLOSE)
    visible = encoder(x, mask).patches
    assert_close(visible, tensors["output.visible"], **CLOSE)
    scalar = (visible * tensors["input.grad_weight"]).sum()
    assert_close(scalar, tensors["output.scalar_for_grad"], rtol=1e-5, atol=1e-4)
    scalar.backward()
    check_gradients(trunk, {key.removeprefix("grad."): value for key, value in tensors.items() if key.startswith("grad.")}, 2e-5)


@torch.no_grad()
@pytest.mark.parametrize("img_size", [(32, 64), (64, 48)])
def test_without_a_mask_equals_timm_to_the_last_bit(make, img_size):
    encoder, x = make("token", img_size), pictures(2, 5, img_size)
    features = encoder(x)
    assert torch.equal(features.patches, encoder.trunk.forward_features(x).flatten(1, 2)) and features.prefix.shape == (2, 0, encoder.width)
    assert encoder.grid(x) == tuple(side // 16 for side in img_size) and encoder.patch == (16, 16) and encoder.width == 192


@torch.no_grad()
def test_dropping_nothing_equals_timm(make):
    encoder, x = make("drop"), pictures(2, 5, (32, 64))
    everything = Mask.all(2, (2, 4))
    assert_close(encoder(x, Mask(everything.visible_ids, everything.masked_ids[:, :1], (2, 4), torch.zeros(2, 1))).patches, encoder(x).patches, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("masked", ["drop", "token"])
def test_hidden_pixels_do_not_matter(make, masked):
    encoder, x = make(masked), pictures(2, 5, (32, 64))
    mask = some(2, 8, 3, (2, 4))
    other = torch.where(spread(mask, (32, 64)).unsqueeze(1), torch.nan if masked == "drop" else 99.0, x)
    assert torch.equal(encoder(x, mask).patches, encoder(other, mask).patches)
    assert encoder(x, mask).patches.shape == (2, 3 if masked == "drop" else 8, 192)


@torch.no_grad()
def test_several_masks_a_picture(make):
    encoder, x = make("token"), pictures(2, 5, (32, 64))
    mask = some(4, 8, 3, (2, 4))
    assert_close(encoder(x, mask).patches[1:2], encoder(x[:1], mask.rows(torch.tensor([1]))).patches)


@pytest.mark.parametrize("masked", ["drop", "token"])
def test_every_parameter_is_trained_and_recomputing_changes_nothing(make, masked):
    encoder, x, gradients = make(masked), pictures(2, 5, (32, 64)), []
    mask = some(2, 8, 4, (2, 4))
    for recompute in (False, True):
        encoder.trunk.set_grad_checkpointing(recompute)
        encoder.train().zero_grad()
        encoder(x, mask).patches.square().sum().backward()
        gradients.append({name: value.grad.clone() for name, value in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_what_it_lacks_is_refused():
    with pytest.raises(Refused, match="no inner layers"):
        build("swin_tiny_patch4_window7_224", (32, 64), 3, 2, layers=(0,), width=24)
