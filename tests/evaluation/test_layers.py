"""A probe of every block: each block's own output, chosen on pictures that do not judge."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch

import unmask
from unmask.encoders.build import create_trunk
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.evaluation.features import pool, pool_blocks, poolings
from unmask.interchange.encoder import save_encoder


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_every_block_goes_through_the_final_norm(name):
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=28 if "14" in name else 32, depth=3, num_classes=0, dynamic_img_size=True).eval()
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    blocks = pool_blocks(model, x)
    assert list(blocks) == ["cls@1", "cls@2", "cls@3", "avg@1", "avg@2", "avg@3"]
    for pooling, wanted in pool(model, x).items():
        torch.testing.assert_close(blocks[f"{pooling}@3"], wanted, rtol=1e-5, atol=1e-5)
    shorter = timm.create_model(name, img_size=model.patch_embed.img_size, depth=2, num_classes=0, dynamic_img_size=True).eval()
    shorter.load_state_dict({key: value for key, value in model.state_dict().items() if "blocks.2." not in key})
    torch.testing.assert_close(blocks["avg@2"], pool(shorter, x)["avg"], rtol=1e-5, atol=1e-5)
    with pytest.raises(Refused, match="a ResNet are not all alike: layers are those of a VisionTransformer, Eva or Beit"):
        pool_blocks(timm.create_model("resnet18"), x)


def test_the_blocks_of_a_beit():
    torch.manual_seed(0)
    model = create_trunk("beit_base_patch16_224", (32, 32), 3, 8, width=32, depth=3, heads=2).eval()
    x = torch.randn(2, 3, 32, 32)
    blocks = pool_blocks(model, x)
    assert poolings(model) == ("cls", "avg", "cls+avg") and list(blocks) == ["cls@1", "cls@2", "cls@3", "avg@1", "avg@2", "avg@3"]
    for pooling, wanted in pool(model, x).items():
        torch.testing.assert_close(blocks[f"{pooling}@3"], wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(blocks["avg@2"], blocks["avg@3"], atol=1e-3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    trunk = create_trunk("vit_tiny_patch16_224", (16, 16), 1, 4, width=24, depth=3, heads=2)
    mae_init(trunk)
    fix_places(trunk)
    save_encoder(folder / "encoder.safetensors", trunk, {"mean": [0.5], "std": [0.25]})
    (folder / "config.yaml").write_text("format: 1\n")
    return folder


def drawn(folder, kind: str):
    """Grey pictures whose brightness, and which half is lighter, can be told."""
    rng = np.random.default_rng(0)
    light, slope = rng.random(90), rng.random(90) - 0.5
    images = 60 + 100 * light[:, None, None] + 80 * slope[:, None, None] * np.linspace(-1, 1, 16) + rng.normal(0, 8, (90, 16, 16))
    target = {"classes": (light > 0.5).astype(int), "tags": np.stack([light > 0.5, slope > 0], 1).astype(int), "numbers": light * 3.7}[kind]
    path = folder / f"{kind}.npz"
    np.savez(path, images=images.clip(0, 255).astype(np.uint8), target=target, group=np.arange(90) // 5)
    return path


@pytest.mark.parametrize(("kind", "by"), [("classes", "both"), ("tags", "knn"), ("numbers", "linear")])
def test_the_block_is_chosen_on_held_out_teaching_pictures(kind, by, run, tmp_path, capsys):
    row = unmask.evaluate("layers", run, drawn(tmp_path, kind), by=by, epochs=5, batch_size=90)
    probes = ["knn", "linear"] if by == "both" else [by]
    assert [(one["by"], one["block"], one["pooling"]) for one in row["layers"]] == [(p, i, pooling) for p in probes for pooling in ("cls", "avg") for i in (1, 2, 3)]
    mine = [one for one in row["layers"] if one["by"] == probes[-1]]
    best = max(mine, key=lambda one: one["held_out"])
    metric = {"classes": "top1", "tags": "auroc", "numbers": "r2"}[kind]
    assert (row["kind"], row["metric"], row["block"], row["pooling"]) == (kind, metric, best["block"], best["pooling"])
    assert row[metric] == best[metric] and row["interval"] == best["interval"] and "groups" in row["val"]
    said = capsys.readouterr().out
    assert f"block {best['block']} of 3" in said and said.count("\n    1  cls") == len(probes)
    if max(one[metric] for one in mine) > row[metric]:
        assert "would flatter" in said
    assert json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1]) == json.loads(json.dumps(row))
    few = unmask.evaluate("layers", run, tmp_path / f"{kind}.npz", by="knn", pooling="avg", batch_size=90)
    assert {one["pooling"] for one in few["layers"]} == {"avg"} and len(few["layers"]) == 3
