"""A run, or an official file, to the learner that made it: encoder, decoder and objectives."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unmask.errors import Refused
from unmask.interchange import official
from unmask.methods import find
from unmask.model import Learner
from unmask.settings import FORMAT, Ratio

SIZES = {768: ("vit_base_patch16_224", 16), 1024: ("vit_large_patch16_224", 16), 1280: ("vit_huge_patch14_224", 16)}  # width: model, decoder heads


def load(path: str | Path) -> Learner:
    """The learner in a run folder, in its `model.safetensors` or in an official MAE file (encoder and decoder).

    A file that holds only an encoder is refused: reconstructing needs the decoder. Of an official file, which carries no
    settings, per-patch normalisation is assumed.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        newest = sorted((path / "checkpoints").glob("step-*/model.safetensors"), key=lambda file: int(file.parent.name[5:]))
        if not newest:
            raise Refused(f"{path} is no run with weights: neither model.safetensors nor a complete checkpoint is in it")
        file = newest[-1]
    if not file.is_file():
        raise Refused(f"no run or file {path}")
    metadata = read_metadata(file) if file.suffix == ".safetensors" else {}
    state = official.read(str(file))
    if "method" in metadata:
        return from_metadata(metadata, state, file)
    if any(key.startswith("decoder_blocks.") for key in state):
        return from_official_mae(state, file)
    raise Refused(f"{file} holds an encoder only, and this needs the decoder too: give the run folder or its model.safetensors")


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata strings of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except SafetensorError as error:
        raise Refused(f"{file} is no readable safetensors file: {error}") from None


def metadata_of(method: Any, name: str, **build: Any) -> dict[str, str]:
    """What `load` needs to build a learner again, as safetensors metadata; `build`: the words given to `method.build`."""
    fields = {key: str(value) if isinstance(value, Ratio) else value for key, value in vars(method).items()}
    return {"format": str(FORMAT), "method": name, "settings": json.dumps(fields), "build": json.dumps(build)}


def from_metadata(metadata: Mapping[str, str], state: Mapping[str, Tensor], file: Path) -> Learner:
    if int(metadata.get("format", FORMAT)) > FORMAT:
        raise Refused(f"{file} has format {metadata['format']}, this version reads up to {FORMAT}: update unmask")
    method = find(metadata["method"])(**json.loads(metadata["settings"]))
    build = json.loads(metadata["build"])
    learner = method.build(**build | {"img_size": tuple(build["img_size"])})
    missing, unexpected = learner.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise Refused(f"{file} does not fit its own settings: missing {missing}, unknown {unexpected}"[:400])
    return learner.eval()


def from_official_mae(state: dict[str, Tensor], file: Path) -> Learner:
    """A learner from MAE's own names (`*_full.pth`, `mae_visualize_*`), sizes read off the tensors."""
    embed = state["patch_embed.proj.weight"]  # (D, C, p, p)
    width, in_chans, patch = embed.shape[0], embed.shape[1], embed.shape[-1]
    if width not in SIZES:
        raise Refused(f"{file}: no published MAE has width {width}; known: {', '.join(map(str, SIZES))}")
    model, heads = SIZES[width]
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("decoder_blocks."))
    method = find("mae")(decoder_width=state["mask_token"].shape[-1], decoder_depth=depth, decoder_heads=heads)
    learner = method.build(model, (side, side), in_chans, patch)
    ours, left = official.from_mae(state)
    missing, unexpected = learner.load_state_dict(ours, strict=False)
    if left or missing or unexpected:
        raise Refused(f"{file} does not fit {model}: unknown {left + unexpected}, missing {missing}"[:400])
    print(f"{file} says no settings: a target normalised patch by patch is assumed (the files mae_visualize_* were trained without)", file=sys.stderr)
    return learner.eval()


