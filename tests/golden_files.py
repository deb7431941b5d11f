"""Which golden files a test runs over: all of its method and kind that are in the folder, so that other seeds and sizes go through too."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import safe_open

FOLDER = Path(os.environ.get("UNMASK_GOLDEN", Path(__file__).parent / "golden"))
KEYS = Path(__file__).parent / "golden" / "keys"


def names(method: str, holds: str, source: str = "") -> list[str]:
    """The files `method*` with a tensor whose name begins with `holds`, from that source; without any, the plain name (a skip)."""
    found = []
    for path in sorted(FOLDER.glob(f"{method}*.safetensors")):
        with safe_open(path, "pt") as file:
            if any(key.startswith(holds) for key in file.keys()) and source in (file.metadata() or {}).get("source", ""):  # noqa: SIM118
                found.append(path.stem)
    return found or [method]


def keys(name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published state dict."""
    rows = (line.split("\t") for line in (KEYS / f"{name}.tsv").read_text().splitlines() if line and not line.startswith("#"))
    return {key: tuple(int(size) for size in shape.replace("x", ",").split(",") if size.isdigit()) for key, shape, *_ in rows}
