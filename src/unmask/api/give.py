"""Hand an encoder on: to timm, to files, to Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.api.asked import settings_of
from unmask.errors import Refused
from unmask.interchange.naming import identify


@dataclass(frozen=True)
class Export:
    """Where an encoder goes, and for which library."""

    to: Literal["timm", "safetensors"] = "timm"  # timm: a folder for timm.create_model("local-dir:…"); safetensors: one file
    out: str | None = None  # the folder or file to write


def load_encoder(name: str | Path, **settings: Any) -> Any:
    """A timm model that never masks, of any ENCODER; `settings`: img_size, in_chans, patch_size, random, seed."""
    from unmask.interchange import encoder

    return encoder.load_encoder(name, **settings).model


def load_transform(name: str | Path, **settings: Any) -> Any:
    """The preprocessing that belongs to an ENCODER: one picture (path, Pillow image, array in stored units) to the input (C, H, W).

    Exactly what `unmask evaluate` and `unmask embed` do. `settings`: those of `load_encoder`.
    """
    from unmask.data.transform import Transform
    from unmask.interchange.encoder import load_encoder

    return Transform(load_encoder(name, **settings))


def export(run: str | Path, out: str | Path | None = None, to: str = "timm") -> dict[str, Any]:
    """Write the encoder for another library; the result says the largest difference of its features to the trained encoder's."""
    identify(run)
    (asked,) = settings_of((Export,), {"to": to})
    if out is None:
        raise Refused(f"--out is missing: unmask export {run} --to {to} --out {Path(run).name}-{to}")
    from unmask.interchange import timm
    from unmask.interchange.encoder import load_encoder

    writer = {"timm": timm.export_timm, "safetensors": timm.export_safetensors}[asked.to]
    return {"to": to, "out": str(out), "difference": writer(load_encoder(run), out)}
