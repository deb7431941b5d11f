"""The encoder in timm's own form: a plain state dict with everything that timm needs to build the network around it.

Source: timm's `create_model("local-dir:PATH")` (config.json with `architecture`, `model_args`, `pretrained_cfg` beside
model.safetensors) and the metadata strings of a safetensors file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unmask.errors import Refused
from unmask.interchange.report import Report
from unmask.settings import FORMAT


@dataclass(frozen=True)
class Encoder:
    """A timm model that never masks, and what has to be known to feed it.

    A stored number v becomes (v - low) / (high - low), then (. - mean) / std, channel by channel. Where `mean` is None
    (a random network with an unusual number of channels) the statistics are measured on the data.
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


def describe(trunk: Any, meta: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The metadata strings of a file that holds `trunk`: what timm needs to build it again, with `meta` (mean, std, low, high, …) added."""
    kwargs = dict(vars(trunk).get("unmask_kwargs") or _arguments(trunk))
    known = {
        "format": FORMAT,
        "model": kwargs.pop("model"),
        "img_size": list(kwargs["img_size"]),
        "in_chans": kwargs["in_chans"],
        "patch_size": list(trunk.patch_embed.patch_size),
        "kwargs": kwargs,
    }
    words = known | {"low": [0.0], "high": [255.0]} | {key: value for key, value in (meta or {}).items() if value is not None and key != "kwargs"}
    return {key: value if isinstance(value, str) else json.dumps(_plain(value)) for key, value in words.items()}


def rebuild(name: str, kwargs: Mapping[str, Any], pretrained: bool = False, empty: bool = False) -> Any:
    """The timm model of that name and those arguments, which it remembers for `describe`.

    One argument is ours: `norm_eps`, what every LayerNorm adds to the variance where it is not timm's 1e-6. `empty`: weights
    will be loaded, so none are drawn (of ViT-L that saves seconds).
    """
    arguments: dict[str, Any] = dict(kwargs)
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
    sizes = {"img_size": trunk.patch_embed.img_size, "in_chans": trunk.patch_embed.proj.in_channels, "num_classes": trunk.num_classes}
    return {"dynamic_img_size": True} | recorded | sizes | {"model": trunk.pretrained_cfg["architecture"]}


def _plain(value: Any) -> Any:
    """Numpy numbers, tensors and tuples as what JSON knows."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


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


def export_timm(encoder: Encoder, out: str | Path, pictures: Tensor | None = None, say: Callable[[str], None] = print) -> float:
    """Write a folder that `timm.create_model("local-dir:OUT", pretrained=True)` opens; gives the largest difference of the features.

    The folder is opened again by timm and both networks look at `pictures` (B, C, H, W), normalised; without them at
    crops of the photograph that comes with matplotlib.
    """
    out = Path(out)
    ours = {"config.json", "model.safetensors"}
    if out.is_file() or (out.is_dir() and {path.name for path in out.iterdir()} - ours):
        raise Refused(f"--out {out} is there already and holds something else: give a new folder")
    height, width = encoder.img_size
    config = {
        "architecture": encoder.name,
        "num_classes": 0,
        "num_features": encoder.model.num_features,
        "global_pool": encoder.model.global_pool,
        "model_args": _plain({key: value for key, value in encoder.kwargs.items() if key != "norm_eps"}),  # timm has no word for it
        "pretrained_cfg": {
            "input_size": [encoder.in_chans, height, width],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "tag": "unmask",
        }
        | ({} if encoder.mean is None else {"mean": list(encoder.mean), "std": list(encoder.std or ())}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.model.state_dict().items()}
    write(out / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    write(out / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    opened = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0)
    return _compare(encoder, opened, out, pictures, say)


def export_safetensors(encoder: Encoder, out: str | Path, pictures: Tensor | None = None, say: Callable[[str], None] = print) -> float:
    """Write the encoder as one safetensors file with its metadata (OUT, or OUT/encoder.safetensors); gives the largest difference."""
    out = Path(out)
    file = out if out.suffix == ".safetensors" else out / "encoder.safetensors"
    if out.suffix != ".safetensors" and out.is_file():
        raise Refused(f"--out {out} is a file: give a folder, or a name that ends in .safetensors")
    keep = {name: value for name in ("mean", "std", "low", "high") if (value := vars(encoder)[name]) is not None}
    save_encoder(file, encoder.model, keep)
    opened = rebuild(encoder.name, encoder.kwargs)
    opened.load_state_dict(load_file(file))
    return _compare(encoder, opened, file, pictures, say)


def _compare(encoder: Encoder, opened: Any, out: Path, pictures: Tensor | None, say: Callable[[str], None]) -> float:
    """Say how far the features of the written network are from the trained encoder's."""
    kind = "given pictures" if pictures is not None else "crops of a photograph"
    x = photograph(encoder) if pictures is None else pictures
    with torch.inference_mode():
        trained, written = encoder.model.eval().forward_features(x), opened.eval().forward_features(x)
    difference = float((trained - written).abs().max())
    largest = f"largest value {float(trained.abs().max()):.1f}, {len(x)} {kind}"
    say(f"{out}: its features differ by at most {difference:.1e} from the trained encoder's ({largest})")
    return difference


def photograph(encoder: Encoder, count: int = 4) -> Tensor:
    """`count` crops of a real photograph that is on every machine (it comes with matplotlib), as the encoder wants them: (count, C, H, W)."""
    height, width = encoder.img_size
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as file:
        picture = file.convert("RGB")
        boxes = [(20 * i, 30 * i, 20 * i + 400, 30 * i + 400) for i in range(count)]  # the photograph is 512 wide and 600 high
        crops = [np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box)) for box in boxes]
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255  # (count, 3, H, W)
    x = x[:, [channel % 3 for channel in range(encoder.in_chans)]]  # (count, C, H, W)
    mean, std = (torch.tensor(value or (0.5,)).view(1, -1, 1, 1) for value in (encoder.mean, encoder.std))
    return (x - mean) / std
