"""MoCo v3's training checkpoints (`vit-s-300ep.pth.tar`, …), encoder, average, projectors and predictor: a table of names, to and from those of our learner.

Source: facebookresearch/moco-v3, moco/builder.py: the projector stands where timm's network has its head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from unmask.interchange.prefixes import all_in_theirs

ROWS = (  # (theirs, ours), tried in order
    ("base_encoder.head.", "objectives.contrast.projector."),
    ("base_encoder.", "encoder.trunk."),
    ("momentum_encoder.head.", "objectives.contrast.teacher_projector."),
    ("momentum_encoder.", "objectives.contrast.teacher.trunk."),
    ("predictor.", "objectives.contrast.predictor."),
)


def tells(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a whole checkpoint."""
    return "base_encoder.head.0.weight" in state and "predictor.0.weight" in state


def ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Official names to those of our learner; second, the keys that no row names."""
    found, left = {}, []
    for key, value in state.items():
        row = next((row for row in ROWS if key.startswith(row[0])), None)
        if row is None:
            left.append(key)
        else:
            found[row[1] + key[len(row[0]) :]] = value
    return found, left


def settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The method's settings that tensors tell."""
    out, hidden = state["base_encoder.head.6.weight"].shape
    return {"hidden": hidden, "out": out}


def theirs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our learner's names to those of the published files, which have `module.` before each."""
    return {f"module.{name}": value for name, value in all_in_theirs(state, ROWS).items()}
