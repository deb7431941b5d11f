"""The exported encoder is timm's: it opens there with the trained weights and gives the same features."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors import safe_open

from unmask.encoders.build import create_trunk
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Failed, Refused
from unmask.interchange.encoder import load_encoder, save_encoder
from unmask.interchange.timm import photograph
from unmask.interchange.timm_export import export_safetensors, export_timm
from unmask.interchange.witness import Witness

TRUNKS = {  # name: architecture, img_size, in_chans, patch_size, further arguments
    "square": ("vit_tiny_patch16_224", (64, 64), 3, 8, {}),
    "not square, 13 channels": ("vit_tiny_patch16_224", (64, 32), 13, None, {}),
    "grey, shallow": ("vit_tiny_patch16_224", (32, 32), 1, 4, {"depth": 2, "width": 48, "heads": 3}),
    "registers": ("vit_small_patch14_reg4_dinov2", (56, 28), 3, None, {"depth": 2}),
    "mean pool, no class token": ("vit_base_patch16_siglip_224", (32, 32), 3, None, {"depth": 1}),
    "rotary and SwiGLU": ("eva02_tiny_patch14_224", (56, 42), 3, None, {"depth": 2}),
    "rotary, mixed": ("vit_small_patch16_rope_mixed_ape_224", (48, 48), 3, 8, {"depth": 2}),
    "dinov3": ("vit_small_patch16_dinov3", (48, 32), 4, None, {"depth": 2}),
}


def trained(case: str, folder):
    """An encoder file as a run leaves it: MAE's initial values, fixed places, statistics of the data."""
    model, img_size, in_chans, patch_size, more = TRUNKS[case]
    torch.manual_seed(3)
    trunk = create_trunk(model, img_size, in_chans, patch_size, **more)
    mae_init(trunk)
    fix_places(trunk)
    save_encoder(folder / "encoder.safetensors", trunk, {"method": "mae", "mean": [0.4] * in_chans, "std": [0.2] * in_chans})
    return trunk.eval()


@pytest.mark.parametrize("case", TRUNKS)
def test_opens_in_timm_with_the_trained_weights(case, tmp_path):
    trunk = trained(case, tmp_path / "run")
    encoder = load_encoder(tmp_path / "run")
    x = photograph(encoder)
    with torch.no_grad():
        wanted = trunk.forward_features(x)
        assert torch.equal(encoder.model.forward_features(x), wanted)
        done = export_timm(encoder, tmp_path / "timm")
        assert done.difference == 0 and "differ by at most 0 " in done.said[0]
        opened = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, num_classes=5).eval()
        assert torch.equal(opened.forward_features(x), wanted)
        assert opened(x).shape == (len(x), 5)
        wider = torch.cat([x, x], dim=3)
        assert opened.forward_features(wider).shape[1] > wanted.shape[1], "another size is taken as well"
    data = timm.data.resolve_model_data_config(opened)
    assert tuple(data["mean"]) == (0.4,) * encoder.in_chans and tuple(data["input_size"]) == (encoder.in_chans, *encoder.img_size)
    assert torch.equal(load_encoder(tmp_path / "timm").model.forward_features(x), wanted)
    assert load_encoder(tmp_path / "timm").mean == (0.4,) * encoder.in_chans


@pytest.mark.parametrize("out", ["one.safetensors", "folder"])
def test_safetensors_export_is_a_plain_state_dict_with_its_metadata(out, tmp_path):
    trunk = trained("square", tmp_path / "run")
    done = export_safetensors(load_encoder(tmp_path / "run"), tmp_path / out)
    assert done.difference == 0 and "differ" in done.said[0]
    file = tmp_path / out if out.endswith("safetensors") else tmp_path / out / "encoder.safetensors"
    assert done.out == file
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == set(trunk.state_dict())
        words = opened.metadata()
    assert json.loads(words["mean"]) == [0.4] * 3 and words["in_chans"] == "3" and json.loads(words["img_size"]) == [64, 64]
    assert words["model"] == "vit_tiny_patch16_224" and json.loads(words["kwargs"])["patch_size"] == 8


def test_given_pictures_are_used_and_another_folder_is_not_overwritten(tmp_path):
    trained("square", tmp_path / "run")
    encoder = load_encoder(tmp_path / "run")
    done = export_timm(encoder, tmp_path / "timm", Witness.of(encoder, photograph(encoder, 2)))
    assert "2 given pictures" in done.said[0]
    export_timm(encoder, tmp_path / "timm")  # our own folder may be written again
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(Refused, match=r"mine.*thesis\.txt"):
        export_timm(encoder, tmp_path / "mine")
    with pytest.raises(Refused, match="is a file"):
        export_timm(encoder, tmp_path / "mine" / "thesis.txt")


def test_a_card_that_was_edited_is_kept(tmp_path):
    trained("square", tmp_path / "run")
    encoder = load_encoder(tmp_path / "run")
    export_timm(encoder, tmp_path / "timm")
    card = tmp_path / "timm" / "README.md"
    card.write_text(card.read_text().replace("## Limits", "## Limits\n\n- Never at night."))
    with pytest.raises(Refused, match="edited"):
        export_timm(encoder, tmp_path / "timm")
    assert "Never at night" in card.read_text()


@pytest.mark.parametrize("change, says", [(lambda f: f + 0.1, "differs by 1.0e-01"), (lambda f: f * float("nan"), "differs by nan"), (lambda f: f[:, 1:], "numbers where")])
@pytest.mark.parametrize("writer", [export_timm, export_safetensors])
def test_another_network_is_not_handed_out(writer, change, says, tmp_path):
    """The comparison can fail, and then nothing is written."""
    trained("square", tmp_path / "run")
    encoder = load_encoder(tmp_path / "run")
    witness = Witness.of(encoder)
    with pytest.raises(Failed, match=says):
        writer(encoder, tmp_path / "out", Witness(witness.pictures, change(witness.features)))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    trained("square", tmp_path / "kept")
    encoder = load_encoder(tmp_path / "kept")
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        trained("square", tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    for writer in (export_timm, export_safetensors):
        with pytest.raises(OSError, match="disk full"):
            writer(encoder, tmp_path / "out" / "x.safetensors")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
