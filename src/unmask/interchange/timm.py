"""The encoder in timm's own form: a plain state dict with everything that timm needs to build the network around it.

Source: timm's `create_model` and the metadata strings of a safetensors file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from unmask.encoders.build import constructor
from unmask.encoders.stem import in_chans_of, patch_of, size_of
from unmask.errors import Refused
from unmask.interchange.report import Report
from unmask.settings import FORMAT


@dataclass(frozen=True)
class Encoder:
    """A timm model that never masks, and what has to be known to feed it.

    A stored number v becomes (v - low) / (high - low), then (. - mean) / std, channel by channel. Where `mean` is None
    (a random network with an unusual number of channels) the statistics are measured on the data. `window` and `tile` say how
    pictures were read while it trained: see `data.raster.Picture.under` and `data.views.part`.
    """

    model: Any  # timm's module: `forward_features(x (B, C, H, W)) -> (B, P + N, D)`, in evaluation mode
    name: str  # of the architecture in timm
    img_size: tuple[int, int]
    in_chans: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    low: tuple[float, ...] = (0.0,)  # one number, or one a channel
    high: tuple[float, ...] = (255.0,)
    source: str = ""  # where the weights come from, in words
    patch_size: tuple[int, int] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # arguments of `rebuild` that build the model again
    report: Report | None = None  # on weights that unmask did not write
    window: Any = None  # (centre, width) of grey values, "file", or None
    tile: int | None = None


def sight_of(encoder: Encoder) -> dict[str, dict[str, Any]]:
    """How stored numbers that are not 8 bits become the input, and windows are cut, under `unmask`, for files that say mean and std only; else nothing."""
    reading = {name: value for name in ("window", "tile") if (value := vars(encoder)[name]) is not None}
    if encoder.mean is None or encoder.std is None or (set(encoder.low) == {0.0} and set(encoder.high) == {255.0} and not reading):
        return {}
    return {"unmask": plain({name: vars(encoder)[name] for name in ("low", "high", "mean", "std")} | reading)}


def describe(trunk: Any, meta: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The metadata strings of a file that holds `trunk`: what timm needs to build it again, with `meta` (mean, std, low, high, …) added.

    Of a network that takes any size `meta` says img_size and in_chans.
    """
    kwargs = dict(vars(trunk).get("unmask_kwargs") or _arguments(trunk))
    known = {"format": FORMAT, "model": kwargs.pop("model"), "kwargs": kwargs}
    known |= {"img_size": list(kwargs["img_size"]), "in_chans": kwargs["in_chans"], "patch_size": list(patch_of(trunk))} if "img_size" in kwargs else {}
    words = known | {"low": [0.0], "high": [255.0]} | {key: value for key, value in (meta or {}).items() if value is not None and key != "kwargs"}
    return {key: value if isinstance(value, str) else json.dumps(plain(value)) for key, value in words.items()}


def rebuild(name: str, kwargs: Mapping[str, Any], pretrained: bool = False, empty: bool = False) -> Any:
    """The timm model of that name and those arguments, which it remembers for `describe`.

    One argument is ours: `norm_eps`, what every LayerNorm adds to the variance where it is not timm's 1e-6. `empty`: weights
    will be loaded, so none are drawn (of ViT-L that saves seconds).
    """
    arguments = constructor(name, kwargs)
    eps = arguments.pop("norm_eps", None)
    with torch.device("meta") if empty else contextlib.nullcontext():
        model = timm.create_model(name, pretrained=pretrained, **arguments)
    if empty:  # buffers are computed when a network is built: such a network is built in the usual way
        model = timm.create_model(name, **arguments) if any(True for _ in model.buffers()) else model.to_empty(device="cpu")
    if eps is not None:
        set_norm_eps(model, eps)
    vars(model)["unmask_kwargs"] = {"model": name.split(".")[0], **kwargs}
    return model


def set_norm_eps(model: nn.Module, eps: float) -> None:
    """Let every LayerNorm add `eps` to the variance."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps


def _arguments(trunk: Any) -> dict[str, Any]:
    """The arguments of a timm model that was built elsewhere, as timm itself recorded them (timm 1.0.23 and newer; before: sizes only)."""
    recorded = {key: value for key, value in vars(trunk).get("_model_args", {}).items() if not key.startswith("pretrained")}
    sizes = {"img_size": size_of(trunk), "in_chans": in_chans_of(trunk), "num_classes": trunk.num_classes}
    return {"dynamic_img_size": True} | recorded | sizes | {"model": trunk.pretrained_cfg["architecture"]}


def plain(value: Any) -> Any:
    """Numpy numbers, tensors and tuples as what JSON knows."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def save_encoder(path: str | Path, trunk: nn.Module, meta: Mapping[str, Any] | None = None) -> None:
    """Write `trunk`'s plain timm state dict to `path`, with `describe(trunk, meta)` as metadata; the file is complete or absent."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trunk.state_dict().items()}
    write(Path(path), save(tensors, metadata=describe(trunk, meta)))


def write(path: Path, content: bytes) -> None:
    """Write a file under a hidden name, force it to the disk, rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(hidden, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(out: str | Path, own: frozenset[str]) -> Iterator[Path]:
    """A hidden folder beside `out` to write in: it becomes `out` when the block ends, and vanishes when an error ends it.

    An `out` that is a file, or holds anything but the names in `own` (an earlier export, which is replaced), is refused.
    """
    place = Path(out).resolve()
    others = sorted(path.name for path in place.iterdir() if path.name not in own) if place.is_dir() else []
    if place.is_file() or others:
        raise Refused(f"--out {out} is there already and " + (f"holds something else ({others[0]})" if others else "is a file") + ": give a new folder")
    hidden, before = (place.with_name(f".{place.name}.{os.getpid()}{end}") for end in ("", ".before"))
    with folders_for(hidden):
        hidden.mkdir()
        try:
            yield hidden
            if place.is_dir():
                place.rename(before)
            hidden.rename(place)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
            shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def folders_for(path: Path) -> Iterator[None]:
    """The folders above `path`, made where they are missing; those that were made and hold nothing when the block ends are taken away again."""
    missing = [folder for folder in path.resolve().parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in missing:  # the deepest first
            if not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()


def photograph(encoder: Encoder, count: int = 4) -> Tensor:
    """`count` crops of a real photograph that is on every machine (it comes with matplotlib), as the encoder wants them: (count, C, H, W)."""
    import matplotlib  # its data alone is wanted here: training and evaluation do without it

    height, width = encoder.img_size
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as file:
        picture = file.convert("RGB")
        boxes = [(20 * i, 30 * i, 20 * i + 400, 30 * i + 400) for i in range(count)]  # the photograph is 512 wide and 600 high
        crops = [np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box)) for box in boxes]
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255  # (count, 3, H, W)
    x = x[:, [channel % 3 for channel in range(encoder.in_chans)]]  # (count, C, H, W)
    mean, std = (torch.tensor(value or (0.5,)).view(1, -1, 1, 1) for value in (encoder.mean, encoder.std))
    return (x - mean) / std
