"""ENCODER, the word that everything after pre-training takes, to a timm model that never masks."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmask import seeds
from unmask.encoders.build import FAMILIES, create_trunk
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.interchange import official
from unmask.interchange.naming import identify
from unmask.interchange.timm import Encoder, describe, rebuild, save_encoder
from unmask.patches import resize_places, sincos
from unmask.settings import FORMAT

__all__ = ["Encoder", "describe", "load_encoder", "save_encoder"]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PUBLISHED = {768: "vit_base_patch16_224", 1024: "vit_large_patch16_224", 1280: "vit_huge_patch14_224"}  # width of an official MAE file: its network
Size = tuple[int, int] | None


def load_encoder(
    name: str | Path, *, img_size: Size = None, in_chans: int | None = None, patch_size: int | None = None, random: bool = False, seed: int = 0
) -> Encoder:
    """The encoder that `name` says: a run folder, an encoder or checkpoint file, `timm:NAME` or `random:NAME`.

    `img_size` (height, width) other than the encoder's own: absolute places are interpolated as MAE does (bicubic, no
    antialiasing). `in_chans` and `patch_size` are a free choice for a random encoder only. `random=True` keeps the network
    and draws its weights anew from `seed`, with the initial values that a pre-training begins with. Raises `Refused`.
    """
    with torch.random.fork_rng(devices=[]):  # building networks draws numbers: the caller's generators stay where they are
        return _load(name, img_size, in_chans, patch_size, random, seed)


def _load(name: str | Path, img_size: Size, in_chans: int | None, patch_size: int | None, random: bool, seed: int) -> Encoder:
    kind, where, note = identify(name)
    if note:
        print(f"unmask: {note}", file=sys.stderr)
    if kind == "random":
        own: Any = timm.get_pretrained_cfg(where) if timm.is_model(where.split(".")[0]) else None
        channels, size = in_chans or 3, img_size or (own.input_size[1:] if own else (224, 224))
        return _random(_of_trunk(create_trunk(where, tuple(size), channels, patch_size), f"random:{where}", _statistics(own, channels)), seed)
    if kind == "hugging face folder":
        raise Refused(f"{where} is a Hugging Face folder: this version opens runs, encoder files, MAE's checkpoints and timm:NAME")
    if kind == "timm":
        encoder = _published(where, in_chans, random)
    elif kind == "timm folder":
        encoder = _from_timm_folder(Path(where))
    elif kind == "checkpoint file":
        encoder = _from_official(where)
    else:
        encoder = _from_file(Path(where))
    if in_chans not in (None, encoder.in_chans):
        raise Refused(f"ENCODER {name} looks at {encoder.in_chans} channels, not at {in_chans}")
    if patch_size and encoder.patch_size and patch_size != encoder.patch_size[0]:
        raise Refused(f"ENCODER {name} has patches of {encoder.patch_size[0]} pixels, not of {patch_size}")
    encoder = dataclasses.replace(encoder, source=str(name))
    if random:
        encoder = _random(encoder, seed)
    return resize(encoder, img_size) if img_size else encoder


def resize(encoder: Encoder, img_size: tuple[int, int]) -> Encoder:
    """The same encoder for pictures of another size: learned or fixed absolute places are interpolated, rotary ones computed."""
    img_size = (int(img_size[0]), int(img_size[1]))
    if img_size == tuple(encoder.img_size):
        return encoder
    if not isinstance(encoder.model, VisionTransformer | Eva):
        return dataclasses.replace(encoder, img_size=img_size)
    if encoder.patch_size and any(side % patch for side, patch in zip(img_size, encoder.patch_size)):
        raise Refused(f"--img_size {img_size[0]} {img_size[1]} is no multiple of the encoder's patch {encoder.patch_size[0]}")
    kwargs = {**encoder.kwargs, "img_size": img_size}
    model, state = rebuild(encoder.name, kwargs), dict(encoder.model.state_dict())
    if encoder.model.pos_embed is not None:
        old, new = tuple(encoder.model.patch_embed.grid_size), tuple(model.patch_embed.grid_size)
        prefix = state["pos_embed"].shape[1] - old[0] * old[1]
        state["pos_embed"] = resize_places(state["pos_embed"], old, new, prefix)
    _fill(model, state, encoder.source)
    return dataclasses.replace(encoder, model=model, img_size=img_size, kwargs=kwargs)


def _random(encoder: Encoder, seed: int) -> Encoder:
    """The network with the weights of a fresh start: MAE's initial values; fixed sine-cosine places stay what they are."""
    torch.default_generator.manual_seed(seeds.key(seed, "random encoder"))
    model = rebuild(encoder.name, encoder.kwargs)
    if isinstance(model, VisionTransformer | Eva):
        mae_init(model)
        if encoder.source.startswith("random:") or _places_are_fixed(encoder.model):
            fix_places(model)
    return dataclasses.replace(encoder, model=model.eval().requires_grad_(False), source=f"{encoder.source}, weights drawn from seed {seed}")


def _places_are_fixed(trunk: VisionTransformer | Eva) -> bool:
    """Whether the absolute places are the sine-cosine table (a state dict does not tell fixed from learned)."""
    if trunk.pos_embed is None:
        return False
    rows = sincos(tuple(trunk.patch_embed.grid_size), trunk.embed_dim)
    return torch.allclose(trunk.pos_embed[0, trunk.pos_embed.shape[1] - len(rows) :].cpu(), rows, atol=1e-4)


def _statistics(own: Any, channels: int) -> dict[str, Any]:
    """The mean and std that timm publishes for a name; unknown for another number of channels."""
    return {"mean": tuple(own.mean), "std": tuple(own.std)} if own and len(own.mean) == channels else {"mean": None, "std": None}


def _of_trunk(trunk: Any, source: str, statistics: Mapping[str, Any]) -> Encoder:
    """The Encoder around a trunk that `create_trunk` built."""
    words = describe(trunk)
    kwargs = _tuples(json.loads(words["kwargs"]))
    size, patch = kwargs["img_size"], tuple(json.loads(words["patch_size"]))
    trunk = trunk.eval().requires_grad_(False)
    return Encoder(trunk, words["model"], size, kwargs["in_chans"], source=source, patch_size=patch, kwargs=kwargs, **statistics)


def _tuples(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}


def _fill(model: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Load a state dict completely, or refuse it by name."""
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise Refused(f"the weights in {where} do not fit the network they name: {' '.join(str(error).split())[:300]}") from None
    model.eval().requires_grad_(False)


def _from_file(path: Path) -> Encoder:
    """An encoder file, or the encoder's part of a learner's file (`model.safetensors`)."""
    try:
        with safe_open(path, "pt") as file:
            words = dict(file.metadata() or {})
            keys = list(file.keys())
            part = "encoder.trunk." if any(key.startswith("encoder.trunk.") for key in keys) else ""
            state = {key.removeprefix(part): file.get_tensor(key) for key in keys if key.startswith(part)}
    except (SafetensorError, OSError) as error:
        raise Refused(f"{path} is no readable safetensors file: {error}") from None
    if int(words.get("format", FORMAT) if words.get("format", "").isdigit() else FORMAT) > FORMAT:
        raise Refused(f"{path} has format {words['format']}, this version reads up to {FORMAT}: update unmask")
    words = {**json.loads(words.get("build", "{}")), **words}
    if "model" not in words or "patch_embed.proj.weight" not in state:
        raise Refused(f"{path} does not say which network it belongs to (no 'model' in its metadata): it is no unmask encoder")
    said = {key: json.loads(words[key]) for key in ("mean", "std", "low", "high") if words.get(key, "null") != "null"}
    listed = {key: tuple(value) if isinstance(value, list) else (value,) for key, value in said.items()}
    statistics: dict[str, Any] = {"mean": None, "std": None} | listed
    size, patch = tuple(_number(words["img_size"])), _number(words.get("patch_size"))
    if "kwargs" in words:
        trunk = rebuild(words["model"], _tuples(json.loads(words["kwargs"])))
    else:
        sizes = {key: words[key] for key in ("width", "depth", "heads") if key in words}
        trunk = create_trunk(words["model"], size, _number(words["in_chans"]), patch[0] if isinstance(patch, list) else patch, **sizes)
    _fill(trunk, state, path)
    return _of_trunk(trunk, str(path), statistics)


def _number(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _from_timm_folder(path: Path) -> Encoder:
    """A folder that `unmask export --to timm`, or timm itself, wrote."""
    config = json.loads((path / "config.json").read_text())
    try:
        model = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=0)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise Refused(f"timm cannot open {path}: {' '.join(str(error).split())[:300]}") from None
    known = config["pretrained_cfg"]
    channels, height, width = known["input_size"]
    kwargs = {"in_chans": channels, "img_size": (height, width)} | _tuples(config.get("model_args", {})) | {"num_classes": 0}
    if model.__class__.__module__ in FAMILIES:
        vars(model)["unmask_kwargs"] = {"model": config["architecture"], **kwargs}
        return _of_trunk(model, str(path), {key: tuple(known[key]) for key in ("mean", "std") if key in known} or {"mean": None, "std": None})
    raise Refused(f"{path} is a {type(model).__name__}: this version measures timm's VisionTransformer and Eva folders; timm:NAME takes the others")


def _from_official(path: str) -> Encoder:
    """A checkpoint of MAE's own code: pre-trained, with or without decoder, or fine-tuned (its classifier is left out)."""
    state = official.read(path)
    embed = state.get("patch_embed.proj.weight")
    if embed is None or "cls_token" not in state or "pos_embed" not in state:
        raise Refused(f"{path} is no MAE checkpoint: it lacks patch_embed, cls_token or pos_embed")
    width, channels, patch = embed.shape[0], embed.shape[1], embed.shape[-1]
    if width not in PUBLISHED:
        raise Refused(f"{path}: no published MAE has width {width}; known: {', '.join(map(str, PUBLISHED))}")
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch
    trunk = create_trunk(PUBLISHED[width], (side, side), channels, patch)
    if "fc_norm.weight" in state:  # fine-tuned: the norm comes after the pool
        kwargs = _tuples(json.loads(describe(trunk)["kwargs"]))
        trunk = rebuild(PUBLISHED[width], kwargs | {"fc_norm": True, "global_pool": "avg"})
    decoder = ("decoder_", "mask_token", "head.")
    _fill(trunk, {key: value for key, value in state.items() if not key.startswith(decoder)}, path)
    return _of_trunk(trunk, path, IMAGENET if channels == 3 else {"mean": None, "std": None})


def _published(name: str, in_chans: int | None, random: bool) -> Encoder:
    """timm's published weights: from this machine's cache, else from the Hugging Face hub where it can be reached."""
    if not timm.is_model(name.split(".")[0]):
        raise Refused(f"no model '{name}' in timm {timm.__version__}: unmask models lists those that can be trained")
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
    return _of_trunk(model, f"timm:{name}", _statistics(own, channels))


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
