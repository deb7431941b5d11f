"""ENCODER, the word that everything after pre-training takes, to a timm model that never masks."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from unmask import seeds
from unmask.encoders.build import FAMILIES, create_trunk
from unmask.encoders.stem import grid_of_places, multiple_of
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.interchange.foreign import encoder_of, fill_whole, from_huggingface_folder, from_timm_folder, from_weights, tuples
from unmask.interchange.naming import identify
from unmask.interchange.timm import Encoder, describe, rebuild, save_encoder
from unmask.interchange.weights import read, read_safetensors
from unmask.patches import resize_places, row_first, sincos
from unmask.settings import FORMAT

__all__ = ["Encoder", "describe", "load_encoder", "resize", "save_encoder"]

Size = tuple[int, int] | None


def to_stderr(line: str) -> None:
    print(f"unmask: {line}", file=sys.stderr)


@functools.cache
def once(line: str) -> None:
    """Say it the first time only: one command may open an encoder several times."""
    to_stderr(line)


def load_encoder(
    name: str | Path,
    *,
    img_size: Size = None,
    in_chans: int | None = None,
    patch_size: int | None = None,
    random: bool = False,
    seed: int = 0,
    model: str | None = None,
    heads: int | None = None,
    say: Callable[[str], None] = to_stderr,
) -> Encoder:
    """The encoder that `name` says: a run folder, an encoder or checkpoint file, a Hugging Face folder, `timm:NAME` or `random:NAME`.

    `img_size` (height, width) other than the encoder's own: absolute places are interpolated as MAE does (bicubic, no
    antialiasing). `in_chans` and `patch_size` are a free choice for a random encoder only. `random=True` keeps the network
    and draws its weights anew from `seed`, with the initial values that a pre-training begins with. Of files that do not
    say it, `heads` is the number of attention heads and `model` timm's name of the network; the word itself may say them, too
    (`fork.pth:heads=12`). The load report of weights from elsewhere is said line by line, and kept in `.report`. Raises `Refused`.
    """
    with torch.random.fork_rng(devices=[]):  # building networks draws numbers: the caller's generators stay where they are
        kind, where, note, told = identify(name)
        if note:
            (once if say is to_stderr else say)(note)
        if kind == "random":
            encoder = _random(_named(where, img_size, in_chans, patch_size), seed)
        else:
            encoder = _opened(kind, where, in_chans, random, {"img_size": img_size, "heads": heads or told.get("heads"), "model": model or told.get("model")})
            for line in encoder.report.lines() if encoder.report else ():
                say(line)
            _check(name, encoder, in_chans, patch_size)
            encoder = dataclasses.replace(encoder, source=str(name))
            encoder = _random(encoder, seed) if random else encoder
        return resize(encoder, img_size) if img_size else encoder


def _opened(kind: str, where: str, in_chans: int | None, random: bool, said: Mapping[str, Any]) -> Encoder:
    """The encoder of a kind that `identify` tells, at its own size; `said`: what a file of weights does not tell."""
    if kind == "timm":
        return _published(where, in_chans, random)
    if kind == "timm folder":
        return from_timm_folder(Path(where))
    if kind == "hugging face folder":
        return from_huggingface_folder(Path(where))
    if kind == "checkpoint file":
        return from_weights(read(where), **said)
    return _from_file(Path(where), said)


def _check(name: str | Path, encoder: Encoder, in_chans: int | None, patch_size: int | None) -> None:
    """Weights have their channels and patches: others are refused."""
    if in_chans not in (None, encoder.in_chans):
        raise Refused(f"ENCODER {name} looks at {encoder.in_chans} channels, not at {in_chans}")
    if patch_size and encoder.patch_size and patch_size != encoder.patch_size[0]:
        raise Refused(f"ENCODER {name} has patches of {encoder.patch_size[0]} pixels, not of {patch_size}")


def _named(name: str, img_size: Size, in_chans: int | None, patch_size: int | None) -> Encoder:
    """The network of a name, for any channels and patches."""
    own: Any = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    channels, size = in_chans or 3, img_size or (own.input_size[1:] if own else (224, 224))
    return encoder_of(create_trunk(name, tuple(size), channels, patch_size), f"random:{name}", _statistics(own, channels))


def resize(encoder: Encoder, img_size: tuple[int, int]) -> Encoder:
    """The same encoder for pictures of another size: learned or fixed absolute places are interpolated, rotary ones computed."""
    img_size = (int(img_size[0]), int(img_size[1]))
    if img_size == tuple(encoder.img_size):
        return encoder
    if isinstance(encoder.model, Beit | SwinTransformer):  # relative places and windows are made for one size: timm makes them anew
        model = copy.deepcopy(encoder.model)
        model.set_input_size(img_size=img_size)
        return dataclasses.replace(encoder, model=model.requires_grad_(False), img_size=img_size, kwargs={**encoder.kwargs, "img_size": img_size})
    if not isinstance(encoder.model, VisionTransformer | Eva | Hiera | ConvNeXt):
        return dataclasses.replace(encoder, img_size=img_size)
    if any(side % patch for side, patch in zip(img_size, multiple_of(encoder.model))):
        raise Refused(f"--img_size {img_size[0]} {img_size[1]} is no multiple of the encoder's patch {multiple_of(encoder.model)[0]}")
    kwargs = {**encoder.kwargs, "img_size": img_size}
    model, state = rebuild(encoder.name, kwargs), dict(encoder.model.state_dict())
    table = state.get("pos_embed")
    if table is not None and table.dim() == 3:
        old, new = grid_of_places(encoder.model), grid_of_places(model)
        prefix = state["pos_embed"].shape[1] - old[0] * old[1]
        state["pos_embed"] = resize_places(state["pos_embed"], old, new, prefix)
    fill_whole(model, state, encoder.source)
    return dataclasses.replace(encoder, model=model, img_size=img_size, kwargs=kwargs)


def _random(encoder: Encoder, seed: int) -> Encoder:
    """The network with the weights of a fresh start: MAE's initial values; fixed sine-cosine places stay what they are."""
    torch.default_generator.manual_seed(seeds.key(seed, "random encoder"))
    model = rebuild(encoder.name, encoder.kwargs)
    if isinstance(model, VisionTransformer | Eva | Hiera):
        mae_init(model)
        if not isinstance(model, Hiera) and encoder.source.startswith("random:"):
            fix_places(model)
        elif not isinstance(model, Hiera) and _places_are_fixed(encoder.model):
            model.pos_embed = nn.Parameter(encoder.model.pos_embed.detach().clone(), requires_grad=False)
    return dataclasses.replace(encoder, model=model.eval().requires_grad_(False), source=f"{encoder.source}, weights drawn from seed {seed}")


def _places_are_fixed(trunk: VisionTransformer | Eva) -> bool:
    """Whether the absolute places are a sine-cosine table, MAE's or the row-first one (a state dict does not tell fixed from learned)."""
    if trunk.pos_embed is None:
        return False
    rows = sincos(tuple(trunk.patch_embed.grid_size), trunk.embed_dim)
    own = trunk.pos_embed[0, trunk.pos_embed.shape[1] - len(rows) :].cpu()
    return any(torch.allclose(own, table, atol=1e-4) for table in (rows, row_first(rows)))


def _statistics(own: Any, channels: int) -> dict[str, Any]:
    """The mean and std that timm publishes for a name; unknown for another number of channels."""
    return {"mean": tuple(own.mean), "std": tuple(own.std)} if own and len(own.mean) == channels else {"mean": None, "std": None}


def _from_file(path: Path, said: Mapping[str, Any]) -> Encoder:
    """An encoder file, the encoder's part of a learner's file (`model.safetensors`), or a safetensors file of anybody's."""
    state, words = read_safetensors(path)
    if int(words.get("format", FORMAT) if words.get("format", "").isdigit() else FORMAT) > FORMAT:
        raise Refused(f"{path} has format {words['format']}, this version reads up to {FORMAT}: update unmask")
    if "tokenizer" in words:
        raise Refused(f"{path} holds a tokenizer and no encoder: it is for --method.tokenizer; unmask reconstruct draws what its codes say")
    words = {**json.loads(words.get("build", "{}")), **words}
    if "model" not in words or "img_size" not in words:
        return from_weights(read(path), **said)
    parts = ("teacher.encoder.trunk.", "encoder.trunk.")  # of a learner the network that is handed on: see `Learner.handed`
    part = next((part for part in parts if any(key.startswith(part) for key in state)), "")
    state = {key.removeprefix(part): value for key, value in state.items() if key.startswith(part)}
    listed = {key: json.loads(words[key]) for key in ("mean", "std", "low", "high") if words.get(key, "null") != "null"}
    statistics: dict[str, Any] = {"mean": None, "std": None} | {key: tuple(value) if isinstance(value, list) else (value,) for key, value in listed.items()}
    if (window := words.get("window")) is not None:
        statistics["window"] = window if window == "file" else tuple(json.loads(window))
    if "tile" in words:
        statistics["tile"] = json.loads(words["tile"])
    size, patch = tuple(_number(words["img_size"])), _number(words.get("patch_size"))
    if "kwargs" in words:
        trunk = rebuild(words["model"], tuples(json.loads(words["kwargs"])), empty=True)
    else:
        sizes: dict[str, Any] = {key: words[key] for key in ("width", "depth", "heads") if key in words}
        trunk = create_trunk(words["model"], size, _number(words["in_chans"]), patch[0] if isinstance(patch, list) else patch, **sizes)
    fill_whole(trunk, state, path)
    if "patch_size" not in words:  # a network without tokens, fine-tuned
        return Encoder(trunk, words["model"], size, _number(words["in_chans"]), source=str(path), kwargs=tuples(json.loads(words["kwargs"])), **statistics)
    return encoder_of(trunk, str(path), statistics)


def _number(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _published(name: str, in_chans: int | None, random: bool) -> Encoder:
    """timm's published weights: from this machine's cache, else from the Hugging Face hub where it can be reached."""
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), 1)
        raise Refused(f"no model '{name}' in timm {timm.__version__}: " + (f"did you mean timm:{near[0]}?" if near else "unmask models lists those that can be trained"))
    own: Any = timm.get_pretrained_cfg(name)
    family = timm.model_entrypoint(name.split(".")[0]).__module__
    channels = in_chans or own.input_size[0]
    kwargs: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    if family in FAMILIES:
        kwargs |= {"img_size": tuple(own.input_size[1:]), "dynamic_img_size": True}
    if not random:
        _reachable(name, own)
    try:
        model = rebuild(name, kwargs, pretrained=not random)
    except (RuntimeError, OSError, ValueError) as error:
        raise Refused(f"the weights of timm:{name} cannot be had: {' '.join(str(error).split())[:200]}") from None
    if family not in FAMILIES:
        model.eval().requires_grad_(False)
        return Encoder(model, name, tuple(own.input_size[1:]), channels, source=f"timm:{name}", kwargs=kwargs, **_statistics(own, channels))
    return encoder_of(model, f"timm:{name}", _statistics(own, channels))


def _reachable(name: str, own: Any) -> None:
    """Ask once whether the weights are in the cache or on the hub: timm itself tries for a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if own is None or not own.has_weights:
        raise Refused(f"timm publishes no weights for '{name}': random:{name} is the network with random ones")
    if own.file or not own.hf_hub_id:
        return
    files = [own.hf_hub_filename] if own.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    if any(isinstance(try_to_load_from_cache(own.hf_hub_id, file), str) for file in files):
        return
    try:
        get_hf_file_metadata(hf_hub_url(own.hf_hub_id, files[0]), timeout=10)
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors, in every version others
        said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise Refused(f"the weights of timm:{name} are not on this machine and the Hugging Face hub does not give them ({said})") from None
