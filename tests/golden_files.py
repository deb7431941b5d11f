"""Which golden files a test runs over: all of its method and kind that are in the folder, so that other seeds and sizes go through too."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from unmask.interchange.weights import Weights
from unmask.mask import Mask

FOLDER = Path(os.environ.get("UNMASK_GOLDEN", Path(__file__).parent / "golden"))
KEYS = Path(__file__).parent / "golden" / "keys"
MORE_KEYS = Path(__file__).resolve().parents[2] / "shared" / "golden" / "keys"  # the same families at all their sizes, where they are at hand


def names(method: str, holds: str, source: str = "") -> list[str]:
    """The files `method*` with a tensor whose name begins with `holds`, from that source; without any, the plain name (a skip)."""
    found = []
    for path in sorted(FOLDER.glob(f"{method}*.safetensors")):
        with safe_open(path, "pt") as file:
            if any(key.startswith(holds) for key in file.keys()) and source in (file.metadata() or {}).get("source", ""):  # noqa: SIM118
                found.append(path.stem)
    return found or [method]


def lists() -> dict[str, Path]:
    """Every key list of published state dicts that is at hand."""
    return {path.stem: path for folder in (MORE_KEYS, KEYS) for path in sorted(folder.glob("*.tsv"))}


def keys(name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published state dict."""
    rows = (line.split("\t") for line in lists()[name].read_text().splitlines() if line and not line.startswith("#"))
    return {key: tuple(int(size) for size in shape.replace("x", ",").split(",") if size.isdigit()) for key, shape, *_ in rows}


def published(name: str) -> Weights:
    """A file of that family: its names and shapes over one stored number, as `read` gives it."""
    listed = {key.split(" / ")[-1].removeprefix("module."): shape for key, shape in keys(name).items() if not key.startswith(("encoder / ", "predictor / "))}
    return Weights(f"{name}.pth", {key: torch.zeros(()).expand(shape) for key, shape in listed.items()})


def mask_of(map: Tensor) -> Mask:
    """The mask of a golden map (B, rows, columns), 1 = masked; rows that mask fewer patches than others are padded."""
    hidden = map.bool().flatten(1)  # (B, N)
    order = hidden.int().argsort(dim=1, descending=True, stable=True)  # masked patches first, raster order
    most = int(hidden.sum(1).max())
    mask = Mask(order[:, most:], order[:, :most], tuple(map.shape[1:]))
    return replace(mask, weight=mask.masked(hidden).float())


def check_law(law: Tensor, names: list[str], draw: Callable[[], dict[str, Tensor]], draws: int = 20) -> None:
    """Initial values have the mean, deviation and largest value that the law says, one row a name; `draw` gives a fresh state dict in official names."""
    drawn = [draw() for _ in range(draws)]
    assert set(names) == set(drawn[0])
    for name, (mean, std, largest, count) in zip(names, law.tolist(), strict=True):
        values = torch.stack([state[name] for state in drawn]).flatten()
        assert values.numel() == count, name
        error = std / count**0.5
        assert abs(values.mean().item() - mean) <= 7.1 * error + 1e-6, name  # five standard errors of a difference
        assert abs(values.std().item() - std) <= 7.1 * error + 1e-6, name
        bound = 0.01 if largest < 2 * std else 0.35  # a uniform distribution, or a normal one cut at its deviation, has a largest value
        assert abs(values.abs().max().item() - largest) <= (bound if count > 1000 else max(bound, 0.1)) * largest + 1e-6, name


def check_gradients(learner: nn.Module, gradients: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """The gradients of a learner's parameters, by our names, relative to the largest of each tensor."""
    assert gradients
    for name, gradient in gradients.items():
        found = learner.get_parameter(name).grad
        assert found is not None, name
        far = (found.reshape(gradient.shape) - gradient).abs().max().item()
        assert far <= tolerance * gradient.abs().max().item() + 1e-7, f"{name}: {far:.2g} of {gradient.abs().max():.2g}"
