"""Run folders as files alone: what `report` and `runs` read, written by hand, so that no test has to train."""

from __future__ import annotations

import json

import yaml
from PIL import Image

from unmask.run.folder import RunFolder


def run_folder(path, losses=(), status="finished", pictures=(), evaluations=(), quarantine=(), every=None, config=None, **columns):
    """A run in `path`: a row of metrics for each loss, with `columns` beside it; `every`: rows of the monitor, {step: row}."""
    (path / "pictures").mkdir(parents=True)
    settings = {
        "format": 1,
        "method": "mae",
        "data": "my photos/train",
        "model": "vit_tiny_patch16_224",
        "img_size": [64, 64],
        "steps": len(losses),
        "batch_size": 32,
        "lr": 0.001,
    }
    (path / "config.yaml").write_text(yaml.safe_dump({name: value for name, value in (settings | (config or {})).items() if value is not None}))
    rows = [{"step": i + 1, "loss": loss} | columns for i, loss in enumerate(losses)]
    rows += [{"step": step} | row for step, row in (every or {}).items()]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"])))
    (path / "status.json").write_text(json.dumps({"status": status, "step": len(losses), "resume": "unmask resume here"}))
    for name, lines in (("evaluations", evaluations), ("quarantine", quarantine)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    machine = {"platform": "Linux", "cores": 2}
    (path / "environment.json").write_text(json.dumps({"machine": machine, "packages": {"torch": "2.11"}, "python": "3.12", "device": "cpu"}))
    (path / "data.json").write_text(json.dumps({"count": 900, "fingerprint": "abc"}))
    for step in pictures:
        Image.effect_noise((120, 120), 50).save(path / "pictures" / f"step-{step:07d}.png")
    return path


def held(path):
    """The folder of a run that this process trains in, until `leave`."""
    folder = RunFolder(path)
    folder.take()
    return folder


def falling(count=200, to=0.7):
    return [to + (1.1 - to) * 0.97**i for i in range(count)]


def measured(protocol, top1, low, high, random=False, **more):
    """A row of evaluations.jsonl."""
    common = {"metric": "top1", "interval": [low, high], "pooling": "avg", "img_size": [64, 64], "seed": 0, "n_train": 900, "n_val": 600, "val": "--val", "classes": 10}
    return {"protocol": protocol, "random": random, "top1": top1} | common | more
