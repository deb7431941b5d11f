"""ENCODER, every form of it: what opens, with which weights and sizes, and what is refused in one line."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from unmask.encoders.build import build, create_trunk
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.interchange.encoder import _random, load_encoder, resize, save_encoder
from unmask.interchange.timm import photograph
from unmask.methods.bootmae import BootMAE
from unmask.methods.mocov3 import MoCoV3

SMALL = {"width": 48, "depth": 2, "heads": 3}
META = {"method": "mae", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "low": [0.0], "high": [255.0]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's encoder: 48 x 32 pixels, patch 8, fixed places."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    trunk = create_trunk("vit_tiny_patch16_224", (48, 32), 3, 8, **SMALL)
    mae_init(trunk)
    fix_places(trunk)
    save_encoder(folder / "encoder.safetensors", trunk, META)
    return folder


def test_run_and_its_file_give_the_same_encoder_that_never_masks(run):
    for name in (run, run / "encoder.safetensors", str(run)):
        encoder = load_encoder(name)
        x = photograph(encoder)
        features = encoder.model.forward_features(x)
        assert features.shape == (4, 1 + 6 * 4, 48) and torch.equal(features, encoder.model.forward_features(x))
        assert not encoder.model.training and not any(p.requires_grad for p in encoder.model.parameters())
        assert (encoder.mean, encoder.std, encoder.low, encoder.high) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3), (0.0,), (255.0,))
        assert (encoder.img_size, encoder.in_chans, encoder.patch_size) == ((48, 32), 3, (8, 8))


def test_unfinished_run_gives_its_newest_checkpoint_and_says_so(tmp_path, capsys):
    torch.manual_seed(2)
    (tmp_path / "config.yaml").write_text("format: 1\n")
    with pytest.raises(Refused, match="no checkpoint yet"):
        load_encoder(tmp_path)
    for step in (9, 100):
        encoder = build("vit_tiny_patch16_224", (32, 32), 3, 8, **SMALL)
        state = {f"encoder.{name}": tensor.contiguous() for name, tensor in encoder.state_dict().items()} | {"objectives.pixels.bias": torch.zeros(1)}
        words = {"format": "1", "build": json.dumps({"model": "vit_tiny_patch16_224", "img_size": [32, 32], "in_chans": 3, "patch_size": 8} | SMALL)}
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
        save_file(
            state, tmp_path / "checkpoints" / f"step-{step}" / "model.safetensors", words | {"mean": "[0.5, 0.5, 0.5]", "std": "[0.2, 0.2, 0.2]"}
        )
    opened = load_encoder(tmp_path)
    assert "step-100" in capsys.readouterr().err
    load_encoder(tmp_path)
    assert "is not finished" not in capsys.readouterr().err, "once is enough"
    assert torch.equal(opened.model.blocks[1].attn.qkv.weight, encoder.trunk.blocks[1].attn.qkv.weight) and opened.mean == (0.5,) * 3


@pytest.mark.golden
def test_another_size_interpolates_places_as_the_official_code(golden):
    tensors, metadata = golden("mae_posembed")
    for i, case in enumerate(metadata["config"]["interp"]):
        old, new = case["old_grid"], case["new_grid"]
        trunk = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=8 * old,
            patch_size=8,
            embed_dim=case["width"],
            depth=1,
            num_heads=2,
            num_classes=0,
            dynamic_img_size=True,
        )
        trunk.pos_embed.data.copy_(tensors[f"input.interp{i}_table"])
        save_and_open = load_from_trunk(trunk)
        opened = resize(save_and_open, (8 * new, 8 * new))
        torch.testing.assert_close(opened.model.pos_embed.data, tensors[f"output.interp{i}_table"], rtol=1e-5, atol=2e-6)
        assert opened.model.patch_embed.grid_size == (new, new)


def load_from_trunk(trunk, tmp=None):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save_encoder(f"{folder}/encoder.safetensors", trunk, META)
        return load_encoder(folder)


def test_another_size_takes_non_square_grids_and_rotary_trunks():
    for model in ("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_rope_ape_224"):
        encoder = load_from_trunk(create_trunk(model, (32, 48), 3, 8, depth=1))
        wide = resize(encoder, (64, 24))
        assert wide.model.forward_features(photograph(wide)).shape[1] == 8 * 3 + wide.model.num_prefix_tokens
        with pytest.raises(Refused, match="multiple"):
            resize(encoder, (30, 48))


def test_random_keeps_the_network_and_changes_its_weights_by_seed(run):
    trained, one, same, other = load_encoder(run), *(load_encoder(run, random=True, seed=seed) for seed in (0, 0, 1))
    weight = lambda encoder: encoder.model.blocks[0].attn.qkv.weight  # noqa: E731
    assert torch.equal(weight(one), weight(same)) and not torch.equal(weight(one), weight(other)) and not torch.equal(weight(one), weight(trained))
    assert torch.equal(one.model.pos_embed, trained.model.pos_embed), "fixed places stay"
    assert (one.mean, one.img_size, one.kwargs) == (trained.mean, trained.img_size, trained.kwargs)
    bound = (6 / (48 + 3 * 48)) ** 0.5  # xavier-uniform, as a pre-training begins
    assert float(weight(one).abs().max()) == pytest.approx(bound, rel=0.02)


@pytest.mark.parametrize("method", [BootMAE, MoCoV3])
def test_random_keeps_row_first_places(method):
    trunk = method().build("vit_tiny_patch16_224", (32, 32), patch_size=8, **SMALL).encoder.trunk
    encoder = load_from_trunk(trunk)
    drawn = _random(encoder, 0)
    assert torch.equal(drawn.model.pos_embed, trunk.pos_embed) and not torch.equal(drawn.model.blocks[0].attn.qkv.weight, trunk.blocks[0].attn.qkv.weight)


def test_random_name_takes_its_sizes():
    encoder = load_encoder("random:vit_tiny_patch16_224", img_size=(32, 64), in_chans=13, patch_size=8, seed=5)
    assert (encoder.img_size, encoder.in_chans, encoder.patch_size, encoder.mean) == ((32, 64), 13, (8, 8), None)
    assert encoder.model.forward_features(photograph(encoder)).shape == (4, 33, 192)
    assert load_encoder("random:vit_tiny_patch16_224").mean is not None
    before = torch.random.get_rng_state()
    load_encoder("random:vit_tiny_patch16_224", img_size=(32, 32))
    assert load_encoder("timm:vit_tiny_patch16_224", random=True).mean == load_encoder("random:vit_tiny_patch16_224").mean
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random numbers stay"


def official(folder, more=None, prefix=""):
    """A tiny-depth file with MAE's own names at ViT-B's width."""
    trunk = timm.create_model("vit_base_patch16_224", img_size=32, num_classes=0)
    state = {prefix + name: tensor for name, tensor in trunk.state_dict().items()}
    torch.save({"model": state | (more or {})}, folder / "mae_pretrain_vit_base.pth")
    return trunk.eval(), folder / "mae_pretrain_vit_base.pth"


def test_official_mae_checkpoint_with_and_without_decoder(tmp_path):
    trunk, path = official(tmp_path, {"mask_token": torch.zeros(1, 1, 512), "decoder_embed.weight": torch.zeros(512, 768)})
    encoder = load_encoder(path)
    x = photograph(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder.model.forward_features(x), trunk.forward_features(x))
    assert encoder.mean == (0.485, 0.456, 0.406) and encoder.img_size == (32, 32)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda p: p / "no-run", "no-run"),
        (lambda p: p, "holds no encoder"),
        (lambda p: "timm:vit_tinny", "vit_tinny"),
        (lambda p: "timm:vit_tiny_patch16_22", r"no model 'vit_tiny_patch16_22' in timm .*did you mean timm:vit_tiny_patch16_224\?"),
        (lambda p: "random:", "lacks the model"),
        (lambda p: (p / "x.txt").write_text("x") and p / "x.txt", "x.txt"),
        (lambda p: (p / "x.safetensors").write_bytes(b"12345678") and p / "x.safetensors", "no readable safetensors"),
        (lambda p: save_file({"a": torch.zeros(1)}, p / "y.safetensors") or p / "y.safetensors", "no vision transformer"),
        (lambda p: (p / "config.json").write_text('{"model_type": "vit_mae"}') and p, "no weights"),
    ],
)
def test_what_is_no_encoder_is_refused_in_one_line(make, says, tmp_path):
    with pytest.raises(Refused, match=says) as caught:
        load_encoder(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_other_channels_or_patches_than_the_weights_have_are_refused(run):
    with pytest.raises(Refused, match="3 channels"):
        load_encoder(run, in_chans=4)
    with pytest.raises(Refused, match="patches of 8"):
        load_encoder(run, patch_size=16)


def test_missing_weights_are_named(run, tmp_path):
    from safetensors import safe_open

    with safe_open(run / "encoder.safetensors", "pt") as file:
        words, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys() if key != "norm.weight"}  # noqa: SIM118
    save_file(state, tmp_path / "encoder.safetensors", words)
    with pytest.raises(Refused, match=r"norm\.weight"):
        load_encoder(tmp_path)
    save_file(state, tmp_path / "encoder.safetensors", words | {"format": "99"})
    with pytest.raises(Refused, match="update unmask"):
        load_encoder(tmp_path)
