"""Runs on several views of a picture, with teachers, queues and other trunks: resumed ones equal the uninterrupted ones, local crops are whole patches, and a provoked collapse is named."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unmask

TINY = {"model": "vit_tiny_patch16_224", "width": 24, "depth": 2, "heads": 2, "patch_size": 4, "img_size": 16, "batch_size": 16, "workers": 0, "accelerator": "cpu"}
HEAD = {"method.prototypes": 32, "method.hidden": 24, "method.bottleneck": 12}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((64, 3, 4, 4), np.float32))
    images = (torch.nn.functional.interpolate(coarse, (24, 24), mode="bicubic").clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path_factory.mktemp("data") / "x.npz", images=images)
    return next(tmp_path_factory.getbasetemp().glob("data*/x.npz"))


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def resumed(method, data, out, **more):
    """A run of four steps, and one of the same words that goes on from its second: their weights are the same. The uninterrupted one."""
    more = TINY | {"steps": 4, "monitor_every": 4, "checkpoint_every": 2} | more
    more = {name: value for name, value in more.items() if value is not None}
    whole, part = (unmask.pretrain(method, data, out / name, **more) for name in ("whole", "part"))
    (part / "model.safetensors").unlink()
    for path in sorted((part / "checkpoints").glob("step-*4/*")):
        path.unlink()
    next((part / "checkpoints").glob("step-*4")).rmdir()
    status = json.loads((part / "status.json").read_text()) | {"status": "interrupted", "step": 2}
    (part / "status.json").write_text(json.dumps(status))
    unmask.resume(part)
    assert "going on at step 2" in (part / "log.txt").read_text()
    one, two = (load_file(run / "model.safetensors") for run in (whole, part))
    assert one.keys() == two.keys() and [name for name in one if not torch.equal(one[name], two[name])] == []
    return whole


STAGES = {"depth": None, "heads": None, "patch_size": 1, "img_size": 32}
RESUMED = {  # method, and what differs from `TINY`; "mae": the run that others begin with, or learn from
    "mocov3": ("mocov3", {"method.hidden": 32, "method.out": 16}),
    "simclr": ("simclr", {"method.out": 16}),
    "mae_ct, joint": ("mae_ct", {"method.joint": True, "method.hidden": 32, "method.out": 16, "method.queue": 24}),
    "mae_ct": ("mae_ct", {"init": "mae", "method.hidden": 32, "method.out": 16, "method.queue": 24, "method.frozen": 0.5}),
    "mae_lite": ("mae_lite", {"method.teacher": "mae"}),
    "distill": ("distill", {"method.teacher": "mae"}),
    "adamae": ("adamae", {}),
    "hiera_mae": ("hiera_mae", STAGES | {"model": "hiera_tiny_224"}),
    "fcmae": ("fcmae", STAGES | {"model": "convnextv2_atto", "width": 8}),
}


@pytest.fixture(scope="module")
def mae(data, tmp_path_factory):
    return unmask.pretrain("mae", data, tmp_path_factory.mktemp("mae") / "run", **TINY | {"steps": 1})


@pytest.mark.parametrize("name", RESUMED)
def test_other_methods_resume_exactly_too(name, data, mae, tmp_path):
    method, more = RESUMED[name]
    resumed(method, data, tmp_path, **{key: str(mae) if value == "mae" else value for key, value in more.items()})


@pytest.mark.parametrize("method", ["dino", "ibot", "dinov2"])
def test_a_resumed_run_equals_the_uninterrupted_one(method, data, tmp_path):
    whole = resumed(method, data, tmp_path, **HEAD | {"views.local_crops": 2})
    one = load_file(whole / "model.safetensors")
    handed = load_file(whole / "encoder.safetensors")
    assert all(torch.equal(value, one[f"teacher.encoder.trunk.{name}"]) for name, value in handed.items()), "the teacher is handed on"
    assert torch.equal(unmask.load_encoder(whole / "model.safetensors").norm.weight, handed["norm.weight"])
    assert "local_size: [8, 8]" in (whole / "config.yaml").read_text()
    last = rows(whole)[-1]
    assert {"teacher_entropy", "teacher_information", "feature_std", "rank"} <= last.keys()
    with pytest.raises(unmask.Refused, match="nothing to reconstruct"):
        unmask.reconstruct(whole, data, out=tmp_path / "no.png")
    assert "unmask show features" in (whole / "log.txt").read_text()


def test_local_crops_that_are_no_whole_patches_are_refused(data, tmp_path):
    with pytest.raises(unmask.Refused, match=r"--views\.local_size 10 10: no whole patches of 4 x 4 pixels; 8 8 would do"):
        unmask.pretrain("dino", data, tmp_path / "run", **TINY, **HEAD, steps=2, **{"views.local_size": 10})


def test_networks_of_one_size_take_no_local_crops(data, tmp_path):
    swin = TINY | HEAD | {"model": "swin_tiny_patch4_window7_224", "width": 24, "img_size": 32, "steps": 1}
    swin = {name: value for name, value in swin.items() if name not in ("depth", "heads", "patch_size")}
    with pytest.raises(unmask.Refused, match=r"--views\.local_crops 0"):
        unmask.pretrain("dino", data, tmp_path / "run", **swin)
    assert unmask.pretrain("dino", data, tmp_path / "run", **swin, **{"views.local_crops": 0})


EVEN = HEAD | {"steps": 10, "monitor_every": 5, "views.local_crops": 2, "method.teacher_temp": 10.0, "method.teacher_temp_start": 10.0}
WILD = {"lr": 5.0, "steps": 24, "monitor_every": 6, "method.out": 16}
COLLAPSES = {  # the method, what provokes it, and what must be said
    "dino": ("dino", EVEN, "tell nothing|one thing", "--method.teacher_temp"),
    "ibot": ("ibot", EVEN, "tell nothing|one thing", "--method.teacher_temp"),
    "dinov2": ("dinov2", EVEN, "tell nothing|one thing", "--method.teacher_temp"),
    "mocov3": ("mocov3", WILD | {"method.hidden": 32}, "no picture is told from another", "--method.temperature.*--method.freeze_patches"),
    "simclr": ("simclr", WILD, "no picture is told from another", "--method.temperature.*--method.freeze_patches"),
    "mae_ct": ("mae_ct", WILD | {"method.joint": True, "method.hidden": 32, "method.queue": 32, "steps": 6, "monitor_every": 3}, "no picture is told from another", "--method.queue"),
    "one thing": ("dino", HEAD | {"steps": 40, "monitor_every": 10, "views.local_crops": 2} | {"method.momentum": 0.0, "method.momentum_end": 0.0, "lr": 0.05, "method.teacher_temp": 0.02, "method.teacher_temp_start": 0.02}, "one thing|collapse", "--method.|--lr"),
}


@pytest.mark.parametrize("kind", COLLAPSES)
def test_a_provoked_collapse_is_named_with_its_remedy(kind, data, tmp_path):
    method, settings, said, remedy = COLLAPSES[kind]
    run = unmask.pretrain(method, data, tmp_path / "run", **TINY | settings)
    (warning,) = [line for line in (run / "log.txt").read_text().splitlines() if "warning" in line and "alike" in line]
    assert re.search(said, warning) and re.search(remedy, warning)


@pytest.mark.parametrize("method", ["mocov3", "simclr"])
def test_pictures_that_are_told_apart_raise_no_alarm(method, data, tmp_path):
    run = unmask.pretrain(method, data, tmp_path / "run", **TINY | {"steps": 12, "monitor_every": 4, "method.out": 16})
    assert "alike" not in (run / "log.txt").read_text()
    assert all(row["pictures_alike"] < 0.9 for row in rows(run) if "pictures_alike" in row) and "pictures_alike" in rows(run)[-1]


def test_the_second_stage_of_mae_ct_has_a_rate_of_its_own(data, mae, tmp_path):
    words = {"init": str(mae), "method.hidden": 32, "method.out": 16, "method.queue": 24, "steps": 20, "warmup_epochs": 1, "encoder_rate": 1.0}
    run = unmask.pretrain("mae_ct", data, tmp_path / "run", **TINY | words)
    rates = [row["lr"] for row in rows(run) if "lr" in row]
    assert len(rates) == 20 and rates[0] == rates[10] == 0 and max(rates[10:]) == max(rates[:10]) == rates[12] and rates[9] < 0.1 * rates[12]


def test_a_run_that_does_not_collapse_raises_no_alarm(data, tmp_path):
    run = unmask.pretrain("dino", data, tmp_path / "run", **TINY | HEAD | {"steps": 40, "monitor_every": 10, "views.local_crops": 2, "method.centring": "sinkhorn"})
    assert "alike" not in (run / "log.txt").read_text()
    assert all(row["teacher_information"] > 0.1 for row in rows(run) if "teacher_information" in row)
