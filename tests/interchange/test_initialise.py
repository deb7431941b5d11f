"""`--init`: a network that begins with weights computes what they computed, at other sizes, patches and channels; what cannot be fitted is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.testing import assert_close

from unmask.encoders.build import create_trunk
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.interchange import official
from unmask.interchange.encoder import load_encoder, save_encoder
from unmask.interchange.initialise import fill, fill_decoder
from unmask.load import metadata_of
from unmask.methods.mae import MAE

SMALL = {"width": 48, "depth": 2, "heads": 3}
THERE = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def network(img_size=(32, 32), in_chans=3, patch=8, seed=1, **more):
    torch.manual_seed(seed)
    trunk = create_trunk("vit_tiny_patch16_224", img_size, in_chans, patch, **SMALL | more).eval()
    mae_init(trunk)
    fix_places(trunk)
    for name, parameter in trunk.named_parameters():
        if name != "pos_embed":
            torch.nn.init.normal_(parameter, std=0.2)
    return trunk


@pytest.fixture
def source(tmp_path):
    """An encoder file of 32 x 32 pixels, patch 8, with its own normalisation."""

    def write(statistics=THERE, **more):
        trunk = network(**more)
        save_encoder(tmp_path / "encoder.safetensors", trunk, statistics)
        return trunk, str(tmp_path / "encoder.safetensors")

    return write


def normalised(pictures, statistics):
    mean, std = (torch.tensor(statistics[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (pictures - mean) / std


@torch.no_grad()
def features(trunk, x):
    return trunk.eval().forward_features(x)


def test_the_same_network_computes_the_same(source):
    there, name = source()
    here = network(seed=2)
    lines = fill(here, name, THERE)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(features(here, x), features(there, x))
    assert len(lines) == 1 and "32x32 with 3 channels" in lines[0]


def test_another_normalisation_changes_no_feature_of_a_picture(source):
    there, name = source()
    here, pictures = network(seed=2), torch.rand(2, 3, 32, 32)
    lines = fill(here, name, now := {"mean": [0.1, 0.2, 0.7], "std": [0.5, 0.1, 0.3]})
    assert_close(features(here, normalised(pictures, now)), features(there, normalised(pictures, THERE)), rtol=1e-4, atol=1e-5)
    assert any("normalisation" in line for line in lines)


def test_colour_weights_see_grey_pictures_as_before(source):
    there, name = source()
    here, grey = network(in_chans=1, seed=2), torch.rand(2, 1, 32, 32)
    lines = fill(here, name, now := {"mean": [0.3], "std": [0.2]})
    assert_close(features(here, normalised(grey, now)), features(there, normalised(grey.expand(-1, 3, -1, -1), THERE)), rtol=1e-4, atol=1e-5)
    assert any("3 channels to 1" in line and "summed" in line for line in lines)


@pytest.mark.parametrize(("old", "new"), [(3, 6), (1, 3), (3, 13), (1, 4)])
def test_more_channels_repeat_and_keep_the_sum(source, old, new):
    there, name = source({"mean": [0.5] * old, "std": [0.2] * old}, in_chans=old)
    here, x = network(in_chans=new, seed=2), torch.randn(2, old, 32, 32)
    lines = fill(here, name, {"mean": [0.5] * new, "std": [0.2] * new})
    assert any(f"to {new}" in line for line in lines)
    if new % old == 0:
        assert_close(features(here, x.repeat(1, new // old, 1, 1)), features(there, x), rtol=1e-4, atol=1e-5)
    scale = there.patch_embed.proj.weight.norm() / here.patch_embed.proj.weight.norm()
    assert 0.5 < float(scale * (old / new) ** 0.5) < 2, "neither drowned nor shouting"


@pytest.mark.parametrize("size", [(64, 64), (48, 24), (16, 16)])
def test_other_sizes_interpolate_places_as_measuring_does(source, size):
    _, name = source()
    here = network(img_size=size, seed=2)
    lines = fill(here, name, THERE)
    x = torch.randn(1, 3, *size)
    assert torch.equal(features(here, x), features(load_encoder(name, img_size=size).model, x))
    assert any("interpolated" in line for line in lines)


@pytest.mark.parametrize("patch", [16, 12])
def test_larger_patches_say_of_a_resized_patch_what_the_old_ones_said(source, patch):
    there, name = source()
    here, x = network(img_size=(4 * patch, 4 * patch), patch=patch, seed=2), torch.randn(2, 3, 32, 32)
    assert any("resampled" in line for line in fill(here, name, THERE))
    pieces = x.unfold(2, 8, 8).unfold(3, 8, 8)  # (2, 3, 4, 4, 8, 8)
    larger = F.interpolate(pieces.reshape(-1, 1, 8, 8), size=(patch, patch), mode="bicubic", antialias=True).view(2, 3, 4, 4, patch, patch)
    larger = larger.permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 4 * patch, 4 * patch)
    assert_close(features(here, larger), features(there, x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", ["beit_base_patch16_224", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_other_families_are_filled_at_other_sizes_too(model, tmp_path):
    small = {"width": 24} if "swin" in model else {"width": 48, "depth": 1, "heads": 3}
    make = lambda size: create_trunk(model, size, 3, None, **small).eval()  # noqa: E731
    first, second = {"b": ((64, 64), (96, 96)), "e": ((56, 56), (84, 84)), "s": ((224, 224), (448, 448))}[model[0]]
    torch.manual_seed(1)
    there, here = make(first), make(second)
    save_encoder(tmp_path / "encoder.safetensors", there, THERE)
    fill(here, str(tmp_path / "encoder.safetensors"), THERE)
    x = torch.randn(1, 3, *second)
    if "swin" in model:  # its windows stay as they are
        assert all(torch.equal(value, there.state_dict()[key]) for key, value in here.state_dict().items())
    else:
        assert_close(features(here, x), features(load_encoder(tmp_path / "encoder.safetensors", img_size=second).model, x))


@pytest.mark.parametrize(
    ("here", "there", "says"),
    [
        ({"in_chans": 4}, {"in_chans": 13, "statistics": None}, "13 channels and these pictures have 4"),
        ({"width": 24}, {}, "is 1x1x48 there and 1x1x24 here"),
        ({"depth": 3}, {}, r"lacks blocks\.2"),
        ({"depth": 1}, {}, r"has blocks\.1"),
        ({"heads": 2}, {}, "3 heads and this network 2"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_filled(source, here, there, says):
    _, name = source(**there)
    trunk = network(seed=2, **here)
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    with pytest.raises(Refused, match=says) as refusal:
        fill(trunk, name)
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


# ------------------------------------------------------------------------------------------------------------- the decoder

DECODER = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 1}


def learner(seed, method=DECODER, **more):
    torch.manual_seed(seed)
    words = {"model": "vit_tiny_patch16_224", "img_size": (32, 32), "in_chans": 3, "patch_size": 8} | SMALL | more
    made = MAE(**method).build(**words)
    return made, metadata_of(MAE(**method), "mae", **words | {"img_size": list(words["img_size"])})


def decoder(made):
    return made.objectives["pixels"].decoder


def written(form, folder):
    """A source with a decoder, in one of its forms; the learner it came from."""
    made, words = learner(1)
    if form == "run":
        save_encoder(folder / "encoder.safetensors", made.encoder.trunk, THERE)
        save_file(made.state_dict(), folder / "model.safetensors", words)
        return made, str(folder)
    state = official.to_mae(made.state_dict(), (8, 8))
    if form == "official":
        torch.save({"model": state}, folder / "full.pth")
        return made, str(folder / "full.pth")
    from unmask.interchange.huggingface import to_huggingface

    save_file(to_huggingface(state, "vit_mae", (4, 4), prefix="vit."), folder / "model.safetensors")
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "image_size": 32, "patch_size": 8, "decoder_num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps({"model_type": "vit_mae", "layer_norm_eps": 1e-6} | sizes))
    return made, str(folder)


@pytest.mark.parametrize("form", ["run", "official", "hugging face"])
def test_a_decoder_that_fits_continues(form, tmp_path):
    made, name = written(form, tmp_path)
    here, _ = learner(2)
    fill(here.encoder.trunk, name, heads=3)
    assert fill_decoder(here, name) == ["decoder: continues from the source's"]
    assert all(torch.equal(value, decoder(made).state_dict()[key]) for key, value in decoder(here).state_dict().items())


@pytest.mark.parametrize(
    ("method", "more", "says", "kept"),
    [
        (DECODER, {"img_size": (64, 48)}, "continues", {"blocks", "predict"}),
        (DECODER, {"in_chans": 1}, "last layer", {"blocks"}),
        (DECODER | {"decoder_depth": 1}, {}, "--method.decoder_depth 2", set()),
        (DECODER | {"decoder_heads": 2}, {}, "--method.decoder_heads 1", set()),
    ],
)
def test_of_another_decoder_nothing_is_taken_and_it_is_said(method, more, says, kept, tmp_path):
    made, name = written("run", tmp_path)
    here, _ = learner(2, method, **more)
    (line,) = fill_decoder(here, name)
    assert says in line
    same = {
        key.split(".")[0]
        for key, value in decoder(here).state_dict().items()
        if key.split(".")[0] in ("blocks", "predict") and value.dim() > 1 and key in decoder(made).state_dict() and torch.equal(value, decoder(made).state_dict()[key])
    }
    assert same == kept


def test_a_source_without_a_decoder_is_said(source):
    _, name = source()
    here, _ = learner(2)
    assert fill_decoder(here, name) == ["decoder: begins anew, the source has none"]
