"""Labels while a run trains: classes are asked for their neighbours, tags and numbers are left alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import unmask
from unmask.methods import find
from unmask.training.monitor import baselines

TINY = {"model": "vit_tiny_patch16_224", "width": 24, "depth": 1, "heads": 2, "patch_size": 4, "img_size": 16, "batch_size": 8, "workers": 0, "accelerator": "cpu"}
TINY |= {"method.decoder_width": 16, "method.decoder_depth": 1, "method.decoder_heads": 2, "steps": 2, "monitor_every": 1}


@pytest.mark.parametrize("kind", ["classes", "tags", "numbers"])
def test_only_classes_have_a_knn_while_training(kind, tmp_path):
    rng = np.random.default_rng(0)
    target = {"classes": np.arange(40) % 2, "tags": rng.integers(0, 2, (40, 3)), "numbers": rng.random(40)}[kind]
    np.savez(tmp_path / "x.npz", images=rng.integers(0, 255, (40, 16, 16), np.uint8), target=target, patient=np.arange(40) // 4)
    run = unmask.pretrain("mae", tmp_path / "x.npz", tmp_path / "run", group="patient", **TINY)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("rank" in row for row in rows) and any("knn" in row for row in rows) == (kind == "classes")
    assert "group: patient" in (run / "config.yaml").read_text()
    assert f"read as {kind}" in (run / "log.txt").read_text()


def test_a_loss_of_several_parts_is_told_from_the_part_that_baselines_belong_to():
    """BootMAE's loss is pixels and features, weighed: the answer about pixels, alone, stands beside what needs no network."""
    torch.manual_seed(0)
    learner = find("bootmae")().build("vit_tiny_patch16_224", (32, 32), patch_size=8, width=48, depth=2, heads=3).eval()
    x, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 10_000)
    mask = learner.draw_mask(x, noise[:, : learner.draws(x)])
    row = baselines(learner, x, mask)
    said = learner.predict(x, mask, "pixels")
    assert row["predicted"] == pytest.approx(float(mask.mean((said["prediction"] - said["truth"]).square().mean(-1))), rel=1e-5)
    further = {key for key in row if key.startswith("features.")}
    assert further == {"features.predicted", "features.best_constant"} and row["features.best_constant"] > 0
    alone = find("mae")(decoder_width=32, decoder_depth=1).build("vit_tiny_patch16_224", (32, 32), patch_size=8, width=48, depth=2, heads=3)
    assert "predicted" not in baselines(alone, x, alone.draw_mask(x, noise[:, : alone.draws(x)]))
