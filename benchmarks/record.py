"""What a result was measured with, and the JSON file that keeps it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))  # whoever imports this file measures the code beside it, installed or not
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "safetensors", "transformers", "numpy")


def processor() -> str:
    """The name of the CPU as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def machine(device: str) -> dict[str, Any]:
    """Device, threads and versions: what somebody needs to compare their own figures."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {"device": device, "device_name": name, "threads": torch.get_num_threads(), "system": platform.system(), "versions": versions}


def keep(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `result` to `<folder>/<name>.json`, with the command that made it, the day and the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]  # where it lay says nothing elsewhere
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    path = folder / f"{name}.json"
    said = {"command": command, "date": datetime.now(UTC).date().isoformat(), "commit": commit()}
    path.write_text(json.dumps(said | result, indent=1) + "\n", encoding="utf-8")
    return path


def commit() -> str | None:
    """The commit of the tree, with a + where files differ from it; None where it is no checkout."""
    asked = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None
