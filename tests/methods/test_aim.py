"""AIM against the official code's trunk: blocks and features under its prefix mask, gradients; published names; and a short reference of the loss."""

import math

import pytest
import timm
import torch
from golden_files import keys, names
from torch.nn import functional as F
from torch.testing import assert_close

from unmask.encoders.build import build
from unmask.encoders.vit import ViT, fix_places
from unmask.errors import Refused
from unmask.interchange import aim
from unmask.interchange.encoder import load_encoder
from unmask.interchange.weights import Weights
from unmask.mask import Mask
from unmask.masking import Prefix
from unmask.methods.aim import AIM
from unmask.patches import patchify
from unmask.testing import SMALL, case_of, check_leak, pictures
from unmask.training.monitor import baselines
from unmask.visualize.reconstruction import BACK, reconstruct

OFFICIAL = "apple/ml-aim@"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def mask_of(hidden: torch.Tensor, grid) -> Mask:
    """The mask of a map (B, N), 1 = not of the prefix."""
    places = torch.arange(hidden.shape[1]).expand(len(hidden), -1)
    return Mask(places[:, :1], places, grid, hidden.float())


def encoder_of(tensors, config, **words) -> ViT:
    ours, left = aim.ours(part(tensors, "weights."))
    assert all(key.startswith("head.") or key.endswith("attn_mask") for key in left)
    network = aim.network(ours, tuple(config["img_size"]), config["num_heads"])
    encoder = ViT(timm.create_model(network.name, **network.kwargs), **words)
    fix_places(encoder.trunk)
    encoder.trunk.load_state_dict(ours | {"pos_embed": encoder.trunk.pos_embed.detach()})  # strict
    return encoder


@pytest.mark.golden
@pytest.mark.parametrize("name", names("aim", "input.not_prefix", OFFICIAL))
def test_blocks_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    encoder = encoder_of(tensors, config, masked="causal", layers=("blocks",))
    assert_close(encoder.trunk.pos_embed[0], tensors["output.pos_embed"], rtol=0, atol=1e-6)
    x, grid = tensors["input.image"], tuple(side // config["patch_size"] for side in config["img_size"])
    features = encoder(x, mask_of(tensors["input.not_prefix"], grid))
    for i, layer in enumerate(features.layers):
        assert_close(layer, tensors[f"output.block{i}"], **CLOSE)
    normed = encoder.trunk.norm(features.layers[-1])
    assert_close(normed, tensors["output.trunk_normed"], **CLOSE)
    assert_close(features.patches[:, 1:], tensors["output.trunk_normed"][:, :-1], **CLOSE)  # handed to the place after
    assert not features.patches[:, 0].any()
    probed = torch.stack([features.layers[i] for i in config["probe_layers"]]).mean(0)
    assert_close(probed, tensors["output.probe_features"], **CLOSE)
    head = part(tensors, "weights.head.")
    flat = (probed - head["bn.running_mean"]) / (head["bn.running_var"] + 1e-6).sqrt()  # the official attention probe, written out
    q, k, v = (rows.unflatten(-1, (config["num_heads"], -1)).transpose(1, 2) for rows in (head["cls_token"].expand(len(x), -1, -1), flat @ head["k.weight"].T, flat @ head["v.weight"].T))
    logits = (F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1)) @ head["linear.weight"].T
    assert_close(logits, tensors["output.logits"], **CLOSE)
    scalar = (normed * tensors["input.grad_weight"]).sum() + logits.sum()
    assert_close(scalar, tensors["output.scalar_for_grad"], rtol=1e-5, atol=1e-4)
    scalar.backward()
    trunk = {key: value for key, value in part(tensors, "grad.").items() if not key.startswith("head.")}
    for key, gradient in aim.ours(trunk)[0].items():
        found = encoder.trunk.get_parameter(key).grad
        assert (found - gradient).abs().max() <= 1e-5 * gradient.abs().max(), key


@pytest.mark.golden
@pytest.mark.parametrize("name", names("aim", "input.not_prefix", OFFICIAL))
def test_a_published_file_gives_its_encoder(golden, name, tmp_path):
    """Bidirectional, as the published models are used; and without the table of places, which is computed."""
    tensors, metadata = golden(name)
    config = metadata["config"]
    state = {key: value for key, value in part(tensors, "weights.").items() if not key.endswith("attn_mask")}
    torch.save(state, tmp_path / "aim.pth")
    said = []
    opened = load_encoder(tmp_path / "aim.pth", img_size=tuple(config["img_size"]), heads=config["num_heads"], say=said.append)
    x = tensors["input.image"]
    encoder, grid = encoder_of(tensors, config, masked="causal"), tuple(side // config["patch_size"] for side in config["img_size"])
    everything = Mask(torch.arange(math.prod(grid)).expand(3, -1), torch.zeros(3, 1, dtype=torch.long), grid, torch.zeros(3, 1))
    with torch.no_grad():
        assert_close(opened.model.forward_features(x)[:, :-1], encoder(x, everything).patches[:, 1:], **CLOSE)
    assert any("head.*" in line for line in said) and any("places" in line for line in said)


@pytest.mark.parametrize(("size", "heads"), [("600M", 12), ("1B", 16), ("3B", 24), ("7B", 32)])
def test_published_names_fill_a_network_both_ways(size, heads):
    published = {key: torch.empty((), device="meta").expand(shape) for key, shape in keys(f"aim_{size}").items()}
    ours, left = aim.ours(published)
    assert left and all(key.startswith("head.") for key in left)
    network = aim.network(ours)
    assert (network.kwargs["num_heads"], network.kwargs["img_size"]) == (heads, (224, 224))
    with torch.device("meta"):
        trunk = timm.create_model(network.name, **network.kwargs)
    trunk.load_state_dict(ours | {"pos_embed": trunk.pos_embed.detach()})  # strict
    shapes = lambda state: {key: tuple(value.shape) for key, value in state.items()}  # noqa: E731
    assert shapes(aim.theirs(trunk.state_dict())) == {key: shape for key, shape in keys(f"aim_{size}").items() if not key.startswith("head.")}
    assert aim.tells(Weights("x", published).state) and not aim.tells({"blocks.0.norm1.weight": torch.empty(1)})


# -------------------------------------------------------------------------------------------------- the loss, written out once more


def test_the_loss_is_of_the_next_patch_after_the_prefix():
    """One picture at a time, cut where its prefix ends: timm's blocks on a growing sequence give every prediction."""
    torch.manual_seed(0)
    learner = AIM().build(**SMALL | {"model": "vit_medium_patch16_gap_256"}, img_size=(32, 32)).eval()
    x, noise = pictures(3), torch.tensor([[0.0], [0.4], [0.99]])
    trunk, decoder, rows = learner.encoder.trunk, learner.objectives["pixels"].decoder, []
    patches = patchify(x, (8, 8))
    truth = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    with torch.no_grad():
        tokens = trunk._pos_embed(trunk.patch_embed(x))  # (3, 16, D)
        for b, prefix in enumerate((1, 1 + int(0.4 * 15), 1 + int(0.99 * 15))):
            for i in range(prefix, 16):
                seen = tokens[b : b + 1, :i]  # nobody sees what comes later, so that it may as well be away
                bias = torch.full((i, i), -torch.inf).triu(1)
                bias[:, :prefix] = 0
                y = seen
                for block in trunk.blocks:
                    y = block(y, attn_mask=bias.unsqueeze(0).unsqueeze(0))
                y = decoder.embed(trunk.norm(y)[:, -1]) + decoder.places[:, i]
                for block in decoder.blocks:
                    y = y + block(y)
                rows.append((decoder.predict(decoder.norm(y))[0] - truth[b, i]).square().mean())
        assert_close(learner(x, noise)["loss"], torch.stack(rows).mean())


def test_a_place_knows_what_stands_before_it():
    for model in ("vit_tiny_patch16_224", "vit_small_patch16_rope_224", "eva02_tiny_patch14_224", "vit_small_patch14_reg4_dinov2"):
        check_leak(case_of(AIM(), model=model, patch_size=4))


def test_without_a_prefix_the_class_token_speaks_first():
    encoder = build(**SMALL, img_size=(32, 32), masked="causal").eval()
    mask = Mask(torch.zeros(2, 1, dtype=torch.long), torch.arange(16).expand(2, -1), (4, 4))
    features = encoder(pictures(2), mask)
    assert_close(features.patches[:, 0], features.prefix[:, 0])
    assert_close(features.patches[0, 0], features.patches[1, 0])  # which has seen nothing


def test_stretches_have_any_length():
    mask = Prefix()((4, 4), torch.linspace(0, 1 - 2**-24, 1000).unsqueeze(1))
    lengths = 16 - mask.map.sum(1)
    counts = lengths.bincount(minlength=16)
    assert lengths.min() == 1 and lengths.max() == 15 and (counts[1:] - 1000 / 15).abs().max() < 2 and not mask.map[:, 0].any()


def test_it_is_drawn_and_has_baselines():
    learner = AIM().build(**SMALL, img_size=(32, 32))
    x = pictures(4)
    answer = reconstruct(learner, x)
    assert answer.said.startswith(BACK) and answer.hidden[:, 16:].all() and answer.seen[:, :16].all()
    found = baselines(learner, x, learner.draw_mask(x))
    assert found["patch_mean"] == pytest.approx(1, abs=0.02) and found["copy_nearest"] > 0
    flat = x.mean((2, 3), keepdim=True).expand_as(x) + torch.linspace(0, 1, 8).repeat(4)  # every patch the same
    assert baselines(learner, flat, learner.draw_mask(flat))["copy_nearest"] == pytest.approx(0, abs=1e-5)


def test_what_does_not_fit_is_refused():
    for model in ("beit_base_patch16_224", "swin_tiny_patch4_window7_224"):
        with pytest.raises(Refused, match="came before"):
            AIM().build(model)
    with pytest.raises(ValueError, match="no mask_ratio"):
        Prefix(0.5)
