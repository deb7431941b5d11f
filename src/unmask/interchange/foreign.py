"""Weights that unmask did not write, to an Encoder with its load report: state dicts of papers' code and of timm, folders of Hugging Face and of timm."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmask.encoders.build import FAMILIES, FIXED, STAGED
from unmask.errors import Refused
from unmask.interchange import aim, bootmae, convnext, hiera, huggingface, huggingface_names, published
from unmask.interchange.families import UNKNOWN, groups, shortly
from unmask.interchange.official import Parts, take_apart
from unmask.interchange.report import Report, network_in_words
from unmask.interchange.shapes import Network, heads_of_family, network_of, ratio
from unmask.interchange.timm import Encoder, describe, rebuild
from unmask.interchange.weights import Weights, read_folder

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
UNSAID: dict[str, Any] = {"mean": None, "std": None}
ACTIVATIONS = {"gelu": None, "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu"}
Size = tuple[int, int] | None


def encoder_of(trunk: Any, source: str, statistics: Mapping[str, Any], report: Report | None = None) -> Encoder:
    """The Encoder around a trunk that remembers its arguments."""
    words = describe(trunk)
    kwargs = tuples(json.loads(words["kwargs"]))
    patch = tuple(json.loads(words["patch_size"]))
    trunk = trunk.eval().requires_grad_(False)
    return Encoder(trunk, words["model"], kwargs["img_size"], kwargs["in_chans"], source=source, patch_size=patch, kwargs=kwargs, report=report, **statistics)


def tuples(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}


def fill_whole(model: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Load a state dict completely, or refuse it by name."""
    try:
        missing, unexpected = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise Refused(f"the weights in {where} do not fit the network they name: {' '.join(str(error).split())[:300]}") from None
    said = [f"{what} {shortly(names)} ({len(names)})" for what, names in (("missing are", missing), ("unknown are", unexpected)) if names]
    if said:
        raise Refused(f"the weights in {where} do not fit {type(model).__name__}: {'; '.join(said)}")
    model.eval().requires_grad_(False)


def from_weights(weights: Weights, img_size: Size = None, heads: int | None = None, model: str | None = None) -> Encoder:
    """The encoder in a state dict of anybody's: its network read off the shapes, or the timm network `model`."""
    name = "" if model is None else model.split(".")[0]
    module = timm.model_entrypoint(name).__module__ if timm.is_model(name) else None
    taken = published.take(weights, img_size, heads, module) if model is None or module is not None else None
    if taken is not None:
        return _published(taken, weights.path, name)
    if model is not None:
        return _named(weights, img_size, heads, model)
    if bootmae.tells(weights.state):
        trunk, rest = bootmae.trunk(weights.state)
        parts = Parts(trunk, {}, {"its two decoders, not needed for an encoder": rest})
        return _built(parts, network_of(trunk, weights.path, img_size, heads), weights.path, IMAGENET, [])
    if aim.tells(weights.state):
        trunk, rest = aim.ours(weights.state)
        network = aim.network(trunk, img_size, heads)
        parts = Parts(trunk | {"pos_embed": aim.places(network)}, {}, groups(rest, UNKNOWN), "AIM")
        return _built(parts, network, weights.path, IMAGENET, ["places of sines and cosines, which the file leaves out"])
    for own in (hiera, convnext):
        if own.tells(weights.state):
            trunk, rest = own.trunk(weights.state)
            left = {says: [name for name in rest if re.search(tells, name)] for tells, says in own.LEFT}
            if unknown := [name for name in rest if not any(name in names for names in left.values())]:
                raise Refused(f"{weights.path} has {shortly(unknown)}, which no such network has: what it computes is not known")
            return _built(Parts(trunk, {}, left), own.network(trunk, weights.path, img_size, heads, rest), weights.path, IMAGENET, [])
    parts = take_apart(weights)
    network = network_of(parts.trunk, weights.path, img_size, heads, heads_of_family(parts.family, parts.trunk, parts.decoder))
    said = [f"its entry '{weights.part}' was taken"] if weights.part in ("teacher", "student", "target_encoder") else []
    if any(key.endswith("blocks.0.gamma_1") for key in weights.state):  # the same names and shapes, another function: nothing in the file tells them apart
        said.append("layer scales of DeiT III assumed; of a vit_*_rope_ape_* of timm, which turns its tokens besides, say FILE:model=NAME")
    return _built(parts, network, weights.path, IMAGENET, said)


def _published(taken: published.Taken, path: str, model: str) -> Encoder:
    """The encoder of a family that published.py knows; a timm name that was said gives its mean and std."""
    network, said = taken.network, taken.said
    statistics: Mapping[str, Any] = taken.statistics
    own: Any = timm.get_pretrained_cfg(model) if model else None
    if model:
        network = network._replace(name=model, published=True)
    if own is not None:
        statistics, said = {"mean": tuple(own.mean), "std": tuple(own.std)}, f"mean and std of timm's {model}"
    return _built(Parts(taken.trunk, {}, taken.left, taken.method), network, path, statistics, [said] if network.kwargs["in_chans"] == 3 else [])


def _built(parts: Parts, network: Network, path: str, statistics: Mapping[str, Any], said: list[str]) -> Encoder:
    """The network filled with the encoder's tensors, and the report on it."""
    trunk = rebuild(network.name, network.kwargs, empty=True)
    fill_whole(trunk, parts.trunk, path)
    said = [*said, *network.assumed]
    if parts.family == "CrossMAE":
        said.append("norm: CrossMAE's encoder ends without one; one without scale and shift stands there, as when fine-tuning begins")
    if "fc_norm.weight" in parts.trunk:
        said.append("fc_norm: it was fine-tuned with mean pooling, and the encoder is built so (its norm comes after the pool)")
    channels = network.kwargs["in_chans"]
    if statistics is IMAGENET and channels == 3:
        said.append("mean and std of ImageNet assumed: the file does not tell")
    elif len(statistics["mean"] or ()) not in (0, channels):
        said.append(f"mean and std unknown for {channels} channels: measured on your pictures")
    left = dict(parts.left)
    if parts.decoder:
        left["the decoder, not needed for an encoder"] = sorted(parts.decoder)
    own = "a vision transformer" if isinstance(trunk, VisionTransformer) else f"timm's {type(trunk).__name__}"
    name = network.name if network.published else f"{own} of its own size"
    report = Report(path, network_in_words(name, trunk), tuple(said), left, parts.family)
    return encoder_of(trunk, path, statistics if channels == len(statistics["mean"] or ()) else UNSAID, report)


def _named(weights: Weights, img_size: Size, heads: int | None, model: str) -> Encoder:
    """The timm network of that name, filled with a file that timm wrote (or one with timm's names)."""
    if not timm.is_model(model.split(".")[0]):
        raise Refused(f"model={model}: timm {timm.__version__} has no model '{model}'")
    own: Any = timm.get_pretrained_cfg(model.split(".")[0])
    parts = take_apart(weights, plain=False)
    state, family = dict(parts.trunk), timm.model_entrypoint(model.split(".")[0]).__module__
    classifier = own.classifier if own and isinstance(own.classifier, str) else "head"
    head = [name for name in state if name.startswith(f"{classifier}.")]
    left = parts.left | ({"a classifier": head} if head else {})
    state = {name: value for name, value in state.items() if name not in head}
    kwargs: dict[str, Any] = {"num_classes": 0}
    embed = state.get("patch_embed.proj.weight")
    if family in FAMILIES and embed is not None:
        patch = (int(embed.shape[2]), int(embed.shape[3]))
        after = {"fc_norm": True, "global_pool": "avg"} if "fc_norm" in FAMILIES[family] else {"use_fc_norm": True, "global_pool": "avg"}
        kwargs |= after if "fc_norm.weight" in state else FAMILIES[family]  # the norm stands after the pool, or before it
        kwargs |= {"in_chans": embed.shape[1], "patch_size": patch[0] if patch[0] == patch[1] else patch, "dynamic_img_size": True}
        kwargs |= {"num_heads": heads} if heads else {}
        kwargs["img_size"] = img_size or _size(state, patch, own)
    trunk = rebuild(model, kwargs)
    fill_whole(trunk, state, weights.path)
    statistics: Mapping[str, Any] = {"mean": tuple(own.mean), "std": tuple(own.std)} if own else UNSAID
    if family not in FAMILIES:
        size, report = tuple(own.input_size[1:]), Report(weights.path, f"{model}, as you said", (), left)
        return Encoder(trunk, model, size, own.input_size[0], source=weights.path, kwargs=kwargs, report=report, **statistics)  # type: ignore[arg-type]
    statistics = statistics if kwargs["in_chans"] == len(statistics["mean"] or ()) else UNSAID
    return encoder_of(trunk, weights.path, statistics, Report(weights.path, network_in_words(model, trunk), (), left))


def _size(state: Mapping[str, Tensor], patch: tuple[int, int], own: Any) -> tuple[int, int]:
    """The input size that a table of places tells, else timm's own for the network."""
    size = tuple(own.input_size[1:]) if own else (224, 224)
    rows = state["pos_embed"].shape[1] if "pos_embed" in state else 0
    prefix = sum(state[name].shape[1] for name in ("cls_token", "reg_token") if name in state)
    for count in (rows - prefix, rows):
        side = round(max(count, 0) ** 0.5)
        if count > 0 and side * side == count:
            return (side * patch[0], side * patch[1])
    return (size[0] // patch[0] * patch[0], size[1] // patch[1] * patch[1])


def from_huggingface_folder(folder: Path) -> Encoder:
    """A Hugging Face folder of a plain vision transformer: sizes, heads and norm of its config, mean and std of its preprocessor."""
    config, kind = read_config(folder)
    weights = read_folder(folder)
    if kind == "dinov3_vit":
        return _dinov3(config, weights, folder)
    if kind in huggingface_names.PREFIXES:
        return _relative(config, weights, kind, folder)
    trunk, names = huggingface.from_huggingface(weights.state, kind)
    left = groups(names, UNKNOWN)
    if UNKNOWN in left:
        raise Refused(f"{folder} has {shortly(left[UNKNOWN])}, which transformers' {kind} does not have: what it computes is not known")
    decoder = {name: trunk.pop(name) for name in list(trunk) if name.startswith("decoder_") or name == "mask_token"}
    network = network_of(trunk, str(folder), _pair(config.get("image_size", 224)), config["num_attention_heads"])
    network.kwargs.update(_function(config, folder))
    statistics, said = _statistics(folder, kind)
    said += [f"its norms add {network.kwargs['norm_eps']:g} to the variance (MAE's own code 1e-06), and so do ours"] if "norm_eps" in network.kwargs else []
    return _built(Parts(trunk, decoder, left), network, str(folder), statistics, said)


def _relative(config: Mapping[str, Any], weights: Weights, kind: str, folder: Path) -> Encoder:
    """Beit, data2vec's vision network, or Swin: places relative to each other."""
    trunk, network, left = huggingface_names.taken(weights.state, config, kind, str(folder), _pair(config.get("image_size", 224)))
    statistics, said = _statistics(folder, kind)
    eps = network.kwargs.get("norm_eps", 1e-6)
    if eps == 1e-6:
        network.kwargs.pop("norm_eps", None)
    said += [f"its norms add {eps:g} to the variance (BEiT's own code 1e-06), and so do ours"] if eps != 1e-6 else []
    return _built(Parts(trunk, {}, left, "data2vec" if kind == "data2vec-vision" else ""), network, str(folder), statistics, said)


def _dinov3(config: Mapping[str, Any], weights: Weights, folder: Path) -> Encoder:
    """DINOv3's network, which is Eva in timm: rotary places, sizes of its config."""
    state, names = huggingface.from_dinov3(weights.state)
    left = groups(names, UNKNOWN)
    if UNKNOWN in left or config.get("hidden_act", "gelu") not in ("gelu", "silu"):
        raise Refused(f"{folder} is no DINOv3 that timm computes: {shortly(left.get(UNKNOWN, [])) or config['hidden_act']}")
    width, depth, gated = config["hidden_size"], config["num_hidden_layers"], "blocks.0.mlp.fc1_g.weight" in state
    size = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge", (4096, 40): "7b"}.get((width, depth), "small" if gated else "base")
    biases = "" if size == "7b" or "blocks.0.attn.q_bias" not in state else "_qkvb"
    name = f"vit_{size}{'_plus' * (gated and size in ('small', 'huge'))}_patch16_dinov3{biases}"
    hidden = state["blocks.0.mlp.fc1_g.weight" if gated else "blocks.0.mlp.fc1.weight"].shape[0]
    kwargs: dict[str, Any] = {"img_size": _pair(config.get("image_size", 224)), "in_chans": config.get("num_channels", 3), "patch_size": config.get("patch_size", 16)}
    kwargs |= {"embed_dim": width, "depth": depth, "num_heads": config["num_attention_heads"], "mlp_ratio": ratio(hidden, width), "num_classes": 0}
    kwargs |= {"rope_temperature": config.get("rope_theta", 100.0), "num_reg_tokens": state["reg_token"].shape[1] if "reg_token" in state else 0}
    kwargs |= FAMILIES["timm.models.eva"] | {"dynamic_img_size": True, "norm_eps": float(config.get("layer_norm_eps", 1e-5))}
    statistics, said = _statistics(folder, "dinov3_vit")
    return _built(Parts(state, {}, left), Network(name, kwargs, []), str(folder), statistics, said)


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """config.json and its model_type, which must be one that we can compute exactly."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type", "")
    opened = (*huggingface.BLOCKS, "dinov3_vit", *huggingface_names.PREFIXES)
    if kind not in opened:
        raise Refused(f"{folder} holds a Hugging Face '{kind}': of their models this version opens {', '.join(opened)}; timm:NAME has more")
    return config, kind


def norm_eps(config: Mapping[str, Any]) -> float:
    """What the norms add to the variance; transformers' ViT and ViTMAE have 1e-12 where nothing is said, DINOv2 1e-6."""
    return float(config.get("layer_norm_eps", 1e-6 if config["model_type"].startswith("dinov2") else 1e-12))


def _function(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What shapes do not tell about the function: activation and norm."""
    if config.get("hidden_act", "gelu") not in ACTIVATIONS:
        raise Refused(f"{folder} has the activation {config['hidden_act']}: known are {', '.join(ACTIVATIONS)}")
    said = {"act_layer": ACTIVATIONS[config.get("hidden_act", "gelu")], "norm_eps": norm_eps(config)}
    return {key: value for key, value in said.items() if value not in (None, 1e-6)}


def _statistics(folder: Path, kind: str) -> tuple[Mapping[str, Any], list[str]]:
    """Range, mean and std of the preprocessor that belongs to the model, else those of its family."""
    file = folder / "preprocessor_config.json"
    if file.is_file():
        words = json.loads(file.read_text(encoding="utf-8"))
        if "unmask" in words:  # our own export: with the range of the stored numbers
            return tuples(words["unmask"]), []
        if words.get("image_mean") and words.get("image_std"):
            factor = words.get("rescale_factor", 1 / 255) if words.get("do_rescale", True) else 1
            mean, std = (tuple(words[key]) for key in ("image_mean", "image_std"))
            return {"mean": mean, "std": std, "high": (round(1 / factor, 6),)}, []
    usual, whose = (HALF, "0.5, as Google's ViT and BEiT have them,") if kind in ("vit", "beit") else (dict(IMAGENET), "of ImageNet")
    return usual, [f"mean and std {whose} assumed: the folder has no preprocessor_config.json"]


def _pair(size: Any) -> tuple[int, int]:
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (int(size), int(size))


def from_timm_folder(folder: Path) -> Encoder:
    """A folder that `unmask export --to timm`, or timm itself, wrote."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name, known = config["architecture"], config.get("pretrained_cfg", config)
    if not timm.is_model(name):
        raise Refused(f"{folder} holds '{name}', which timm {timm.__version__} does not have")
    family = timm.model_entrypoint(name).__module__
    if family not in (*FAMILIES, *FIXED, *STAGED):
        raise Refused(f"{folder} holds timm's {name}: of folders this version opens VisionTransformer, Eva, Beit, Swin, Hiera and ConvNeXt; timm:NAME takes the others")
    state = read_folder(folder).state
    classifier = known.get("classifier") or "head"
    state = {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}
    channels, height, width = known["input_size"]
    own = {"dynamic_img_size": True} if family in FAMILIES else {}
    own |= {} if "fc_norm.weight" in state else FAMILIES.get(family, {})
    kwargs = own | {"in_chans": channels, "img_size": (height, width)} | tuples(config.get("model_args", {})) | {"num_classes": 0}
    try:
        trunk = rebuild(name, kwargs)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise Refused(f"timm cannot build {name} as {folder}/config.json says: {' '.join(str(error).split())[:200]}") from None
    fill_whole(trunk, state, folder)
    known |= config.get("unmask", {})  # our own export says the range of the stored numbers too
    return encoder_of(trunk, str(folder), UNSAID | tuples({key: known[key] for key in ("mean", "std", "low", "high", "window", "tile") if key in known}))
