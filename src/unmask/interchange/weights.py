"""A file of weights becomes a plain dict of tensors; nothing is ever unpickled.

Source: torch.load with `weights_only=True`, in which one class more is allowed, `argparse.Namespace`: MAE's training code
(util/misc.py: save_model) and its forks keep their settings as one beside the weights. It holds values and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.errors import Refused

NESTS = (  # where training code keeps the weights in its file; what has learnt by averaging goes before what follows the gradient
    *("model", "state_dict", "model_state_dict", "model_state", "module", "teacher", "target_encoder", "base_model"),
    *("weights", "net", "network", "backbone", "encoder", "student"),
)
WRAPPED = ("module.", "_orig_mod.", "model.")  # put before every name by DataParallel, torch.compile and Lightning


@dataclass(frozen=True)
class Weights:
    """Tensors by name, as the file has them, and what it says beside them."""

    path: str
    state: dict[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the training, where a checkpoint keeps them (`args`)
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors file
    part: str = ""  # the entry that was taken, where the file has several: "teacher"


def read(path: str | Path) -> Weights:
    """The weights in a file: safetensors, or what torch.save wrote (.pth, .pt, .bin, .ckpt, …), whatever entry they are nested in.

    Raises `Refused` with the file's name where it holds anything but tensors, plain containers and an argparse.Namespace.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        return Weights(str(path), _unwrapped(state), metadata=metadata)
    found = _opened(path)
    settings = found.get("args", {}) if isinstance(found, Mapping) else {}
    part = ""
    while (nest := _nest(found)) is not None:
        part, found = nest if nest not in ("module", "backbone") or not part else part, found[nest]
    if not isinstance(found, Mapping):
        raise Refused(f"{path} holds a {type(found).__name__} and no state dict: a mapping of names to tensors is wanted")
    state = _flat(found)
    if not state:
        raise Refused(f"{path} holds no state dict: a mapping of names to tensors is wanted, its entries are {', '.join(map(str, list(found)[:6])) or 'none'}")
    settings = vars(settings) if isinstance(settings, argparse.Namespace) else settings
    return Weights(str(path), _unwrapped(state), settings if isinstance(settings, Mapping) else {}, part=part)


def read_folder(folder: Path) -> Weights:
    """The weights of a Hugging Face folder: one file, or several with an index."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            lost = [part for part in parts if Path(part).name != part or not (folder / part).is_file()]
            if lost:
                raise Refused(f"{index} names {lost[0]}, which is not in {folder}: download the folder again")
            return Weights(str(folder), {key: value for part in parts for key, value in read(folder / part).state.items()})
    raise Refused(f"{folder} has a config.json and no weights: neither model.safetensors nor pytorch_model.bin is in it")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Refused(f"{path} is no readable safetensors file: {error}") from None


def _opened(path: Path) -> Any:
    """What torch.load gives under weights_only, from the disk without a copy where the file allows it."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken or hostile file fails in any way: nothing of it has run
        text = " ".join(str(error).split())
        wanted = re.search(r"(?:GLOBAL|global:?|find class|instantiate) ([\w.]+\.\w+)", text)
        if wanted:
            raise Refused(
                f"{path} is refused: it asks for {wanted[1]}, and nothing but tensors, plain containers and argparse.Namespace is opened. "
                "Where you trust it, save its weights alone: torch.save(checkpoint['model'], 'weights.pth')"
            ) from None
        reason = text.partition("WeightsUnpickler error: ")[2] or text.partition(". ")[0]
        reason = f" ({reason[:120]})" if " " in reason and "weights_only" not in reason else ""
        raise Refused(f"{path} is refused: it is no file that torch.save wrote, or it is cut short{reason}") from None


def _nest(found: Any) -> str | None:
    """The entry to look into: none where the mapping is a state dict itself."""
    if not isinstance(found, Mapping) or any(isinstance(value, Tensor) and "." in str(key) for key, value in found.items()):
        return None
    return next((nest for nest in NESTS if isinstance(found.get(nest), Mapping) and found[nest]), None)


def _flat(found: Mapping[Any, Any], before: str = "") -> dict[str, Tensor]:
    """All tensors of a mapping, those of mappings in it under dotted names; numbers and words beside them are left out."""
    state: dict[str, Tensor] = {}
    for key, value in found.items():
        if isinstance(value, Tensor):
            state[f"{before}{key}"] = value
        elif isinstance(value, Mapping):
            state |= _flat(value, f"{before}{key}.")
    return state


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers put before each of them."""
    for prefix in WRAPPED * 2:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
