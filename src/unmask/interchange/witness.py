"""What an exported encoder is held against: pictures, and what the trained encoder sees in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.errors import Failed
from unmask.interchange.timm import Encoder, photograph

TOLERANCE = 1e-3  # of the largest value: what another order of additions in float32 can do to a deep network stays far below


@dataclass(frozen=True)
class Witness:
    """`pictures` (B, C, H, W), normalised, and the trained encoder's `features` (B, P + N, D) of them."""

    pictures: Tensor
    features: Tensor
    said: str = "given pictures"  # which pictures these are, in words

    @classmethod
    @torch.inference_mode()
    def of(cls, encoder: Encoder, pictures: Tensor | None = None, said: str = "given pictures") -> Witness:
        """What `encoder` itself sees in the pictures; not given: crops of a photograph that comes with matplotlib."""
        if pictures is None:
            pictures, said = photograph(encoder), "crops of a photograph that comes with matplotlib"
        return cls(pictures, encoder.model.eval().forward_features(pictures), said)

    def difference(self, seen: Tensor, what: str, wanted: Tensor | None = None) -> float:
        """The largest difference of `seen` from the features (or from `wanted`); Failed where it is another network."""
        wanted = self.features if wanted is None else wanted
        if seen.shape != wanted.shape:
            raise Failed(f"{what} gives {tuple(seen.shape)} numbers where the trained encoder gives {tuple(wanted.shape)}: nothing was written")
        difference, largest = float((seen - wanted).abs().max()), float(wanted.abs().max())
        if not difference <= TOLERANCE * max(largest, 1.0):  # a NaN is no equality either
            raise Failed(f"{what} differs by {difference:.1e} from the trained encoder (largest value {largest:.1f}): nothing was written")
        return difference

    def say(self, out: str | Path, difference: float) -> str:
        """The line that a person reads."""
        largest = float(self.features.abs().max())
        return f"{out}: its features differ by at most {small(difference)} from the trained encoder's (largest value {largest:.1f}, {len(self.pictures)} {self.said})"


@dataclass(frozen=True)
class Exported:
    """What was written: its place, the class or form that opens it, and how far it is from the trained encoder."""

    out: Path
    form: str
    difference: float
    said: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"out": str(self.out), "form": self.form, "difference": self.difference}


def small(difference: float) -> str:
    """A difference as a person reads it: `0`, or `1.2e-06`."""
    return f"{difference:.1e}" if difference else "0"


@torch.inference_mode()
def look(network: Callable[[Tensor], Any], x: Tensor) -> Any:
    """What a freshly opened network answers, without gradients."""
    return network(x)
