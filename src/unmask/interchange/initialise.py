"""`--init`: a network begins with weights that exist, fitted to other picture sizes, patches and channels; each change is said.

Sources: places by bicubic interpolation (MAE, util/pos_embed.py); patches by the pseudo-inverse of resizing (FlexiViT, Beyer et
al. 2022, section 3.4, as timm has it); colour to grey by the sum of the three, colour to more channels by repeating the three,
scaled to the same sum (timm, adapt_input_conv).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmask.encoders.stem import grid_of_places, in_chans_of, patch_of, size_of, stem
from unmask.errors import Refused
from unmask.interchange import distilled, huggingface, official
from unmask.interchange.encoder import Encoder, load_encoder, resize
from unmask.interchange.foreign import read_config
from unmask.interchange.naming import identify
from unmask.interchange.weights import read, read_folder, read_safetensors
from unmask.patches import resize_places, sincos

DECODER = "objectives.pixels.decoder."  # where a learner that predicts pixels has its decoder
PARTS = (DECODER, "objectives.pixels.through.")  # and what stands before it (Hiera's stages joined)
WEIGHT = "patch_embed.proj.weight"


def fill(trunk: Any, name: str, statistics: Mapping[str, Sequence[float]] | None = None, heads: int | None = None) -> list[str]:
    """Put the weights that ENCODER `name` says into a timm transformer, all of them or none; a line for each thing that was changed.

    `statistics`: mean and std by which this run normalises its pictures. Where the encoder knows its own, the difference goes
    into the patch embedding, so that pictures give the features that they gave before. Raises `Refused` where the networks differ.
    """
    lines: list[str] = []
    opened = load_encoder(name, heads=heads, say=lines.append)
    lines = lines or [f"weights of {name}: {opened.name}, trained on pictures of {opened.img_size[0]}x{opened.img_size[1]} with {opened.in_chans} channels"]
    opened, more = _relative(opened, trunk)
    lines += more
    state: dict[str, Tensor] = {key: value.float() for key, value in opened.model.state_dict().items()}
    lines += _channels(state, opened, trunk, statistics, name)
    lines += _patches(state, trunk)
    lines += _places(state, opened, trunk)
    _compare(state, opened, trunk, name)
    trunk.load_state_dict(state)
    eps = [{layer.eps for layer in network.modules() if isinstance(layer, nn.LayerNorm)} for network in (opened.model, trunk)]
    if eps[0] != eps[1]:
        lines.append(f"norms add {_numbers(eps[1])} to the variance here and {_numbers(eps[0])} there: features begin slightly different")
    return lines


def _relative(opened: Encoder, trunk: Any) -> tuple[Encoder, list[str]]:
    """The source for pictures of this run's size, where its places are relative ones: timm makes their tables anew."""
    here, there = size_of(trunk), opened.img_size
    if isinstance(opened.model, Beit) and isinstance(trunk, Beit):
        return resize(opened, here), [f"places for pictures of {_by(there)} made anew for {_by(here)}"] if here != there else []
    if isinstance(opened.model, SwinTransformer) and isinstance(trunk, SwinTransformer):
        old, new = ([tuple(stage.blocks[0].window_size) for stage in network.layers] for network in (opened.model, trunk))
        if old != new and len(old) == len(new):  # SimMIM's own way from 192 pixels, windows of 6, to 224, windows of 7
            model = copy.deepcopy(opened.model)
            with warnings.catch_warnings():  # of timm's own spline
                warnings.simplefilter("ignore")
                model.set_input_size(img_size=here, window_size=max(new))
            said = [", ".join(_by(window) for window in windows) for windows in (old, new)]
            return dataclasses.replace(opened, model=model, img_size=here), [f"places in windows of {said[0]} patches made anew for windows of {said[1]}"]
    asked = opened.kwargs.get("ref_feat_shape")
    if isinstance(trunk, Eva) and isinstance(trunk.rope, RotaryEmbeddingCat) and asked is not None and tuple(asked) != tuple(trunk.rope.ref_feat_shape or ()):
        return opened, [f"rotary places have the range of a grid of {_by(asked)} there and of {_by(trunk.rope.ref_feat_shape or (0,))} here: features begin different"]
    return opened, []


def _numbers(values: set[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


def _channels(state: dict[str, Tensor], opened: Encoder, trunk: Any, statistics: Mapping[str, Sequence[float]] | None, name: str) -> list[str]:
    """Fit the patch embedding to this run's channels and normalisation."""
    there, here = opened.in_chans, in_chans_of(trunk)
    first, bias = f"{stem(trunk)}.weight", f"{stem(trunk)}.bias"
    _same_stem(state, trunk, name)
    weight = state[first]  # (D, C, p, p)
    lines = []
    if there not in (1, 3, here):
        raise Refused(f"--init {name} looks at {there} channels and these pictures have {here}: only weights for 1 or 3 channels can be fitted to others")
    if statistics and opened.mean and opened.std and here in (there, 1) and len(statistics["mean"]) == here:
        weight, shift = _normalised(weight, opened.mean, opened.std, statistics)
        lines += ["the difference between its normalisation and this run's is put into the patch embedding"] if _differs(opened, statistics) else []
        if bias in state:
            state[bias] = state[bias] + shift
    if here == 1 and there == 3:
        weight = weight.sum(dim=1, keepdim=True)
        lines.append("3 channels to 1: the patch embedding's colours are summed, as for a grey picture")
    elif here != there:
        weight = weight.repeat(1, -(-here // there), 1, 1)[:, :here] * (there / here)
        lines.append(f"{there} channel{'s' * (there > 1)} to {here}: the patch embedding is repeated and scaled by {there}/{here}; its colours mean nothing now")
    state[first] = weight.contiguous()
    return lines


def _same_stem(state: Mapping[str, Tensor], trunk: Any, name: str) -> None:
    if f"{stem(trunk)}.weight" not in state:
        raise Refused(f"--init {name} is another kind of network than this {type(trunk).__name__}: say no --model, and the network is that of the weights")


def _normalised(weight: Tensor, mean: Sequence[float], std: Sequence[float], statistics: Mapping[str, Sequence[float]]) -> tuple[Tensor, Tensor]:
    """The embedding of x·s + m (this run's numbers) that equals that of (v - mean) / std, and what is added to its bias (D,).

    With v = x·s + m the encoder's own input is x·(s / std) + (m - mean) / std, channel by channel.
    """
    old_mean, old_std = torch.tensor(mean), torch.tensor(std)
    new_mean, new_std = (torch.as_tensor(statistics[key], dtype=torch.float32).expand(len(old_mean)) for key in ("mean", "std"))
    shift = (weight.sum(dim=(2, 3)) * ((new_mean - old_mean) / old_std)).sum(dim=1)  # (D,)
    return weight * (new_std / old_std).view(1, -1, 1, 1), shift


def _differs(opened: Encoder, statistics: Mapping[str, Sequence[float]]) -> bool:
    said = [*(opened.mean or ()), *(opened.std or ())]
    return [round(float(value), 4) for value in [*statistics["mean"], *statistics["std"]]] != [round(value, 4) for value in said]


def _patches(state: dict[str, Tensor], trunk: Any) -> list[str]:
    """Fit the patch embedding to another patch: what it says of a picture resized with its patches stays the same."""
    first, new = f"{stem(trunk)}.weight", patch_of(trunk)
    old = tuple(state[first].shape[2:])
    if old == new or isinstance(trunk, Hiera):
        return []
    state[first] = resample_patch_embed(state[first], list(new)).contiguous()
    return [f"patches of {_by(old)} to {_by(new)}: the patch embedding is resampled (FlexiViT)"]


def _places(state: dict[str, Tensor], opened: Encoder, trunk: Any) -> list[str]:
    """Fit the table of places to this run's grid."""
    if not isinstance(trunk, VisionTransformer | Eva | Hiera) or "pos_embed" not in state or trunk.pos_embed is None or trunk.pos_embed.dim() != 3:
        return []
    old, new = grid_of_places(opened.model), grid_of_places(trunk)
    prefix = state["pos_embed"].shape[1] - old[0] * old[1]
    state["pos_embed"] = resize_places(state["pos_embed"], old, new, prefix)
    return [f"places of a grid of {_by(old)} to {_by(new)}: interpolated"] if old != new else []


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _compare(state: Mapping[str, Tensor], opened: Encoder, trunk: Any, name: str) -> None:
    """Refuse the first difference between two networks that no fitting mends."""
    own = trunk.state_dict()
    hint = "say no --model, --width, --depth or --heads, and the network is that of the weights"
    if isinstance(opened.model, Beit) and isinstance(trunk, Beit):
        hint = "pre-training here has one table of relative places for all blocks, no absolute ones and a norm before the pool, as BEiT's, data2vec's and SimMIM's pre-trained files"
    heads = [network.blocks[0].attn.num_heads if isinstance(network, VisionTransformer | Eva | Beit) else 0 for network in (opened.model, trunk)]
    if all(heads) and heads[0] != heads[1]:
        raise Refused(f"--init {name} has {heads[0]} heads and this network {heads[1]}: {hint}")
    for key in [*state, *own]:
        inside = ".mlp." in key or ".ls" in key or "attn.q" in key or key.startswith(("reg_token", "norm", "fc_norm"))
        advice = "its blocks are not of a kind that --model names, so it can be measured but not pre-trained further" if inside else hint
        if key not in own or key not in state:
            raise Refused(f"--init {name} {'has' if key in state else 'lacks'} {key}, and this network {'lacks' if key in state else 'has'} it: {advice}")
        if state[key].shape != own[key].shape:
            first = f"{stem(trunk)}.weight"
            advice = hint if state[first].shape[0] != own[first].shape[0] else advice
            raise Refused(f"--init {name} does not fit: {key} is {_by(state[key].shape)} there and {_by(own[key].shape)} here; {advice}")


def fill_decoder(learner: nn.Module, name: str) -> list[str]:
    """Let the decoder continue, too, where the source holds one that fits; a line says so, or why it begins anew.

    Its last layer begins anew where patches or channels are others. Learners without MAE's decoder are left as they are.
    """
    own = {key: value for key, value in learner.state_dict().items() if key.startswith(PARTS)}
    if f"{DECODER}mask_token" not in own:
        return []
    theirs, heads = _decoder_of(name)
    if not theirs:
        return ["decoder: begins anew, the source has none"]
    last = {key for key in own if key.startswith(f"{DECODER}predict.")}
    attends = f"{DECODER}blocks.0.attn.qkv.weight" in own
    mine = learner.get_submodule(f"{DECODER}blocks.0.attn").num_heads if attends else heads
    sizes = _size(theirs, heads)
    if sizes != _size(own, mine):
        words = " ".join(f"--method.{name} {value}" for name, value in sizes.items())
        return [f"decoder: begins anew, the source's has another size ({words} takes it)"]
    fits = {key: value.float() for key, value in theirs.items() if key in own and own[key].shape == value.shape}
    if own.keys() - fits.keys() - last:
        return ["decoder: begins anew, the source's is of another kind"]
    learner.load_state_dict(fits, strict=False)
    return ["decoder: continues from the source's" + ("" if last <= fits.keys() else ", but for its last layer (other patches or channels)")]


def fill_heads(learner: nn.Module, name: str) -> list[str]:
    """Let heads of prototypes continue where the source holds them, and of the same size; a line says so, or that they begin anew."""
    own = {key: value.shape for key, value in learner.state_dict().items() if key.startswith(("head.", "patch_head."))}
    if "head.last_layer.weight_v" not in own:
        return []
    kind, where, *_ = identify(name)
    beside = Path(where).with_name("model.safetensors") if kind == "encoder file" else Path(where)
    state: Mapping[str, Tensor] = read(beside if beside.is_file() else where).state if kind in ("encoder file", "learner file", "checkpoint file") else {}
    state = distilled.ours(state)[0] if distilled.method_of(state) else state
    theirs = {key: value.float() for key, value in state.items() if key.startswith(("head.", "patch_head."))}
    if {key: value.shape for key, value in theirs.items()} != own:
        return ["heads: begin anew, " + ("the source's have other sizes" if "head.last_layer.weight_v" in theirs else "the source has none")]
    learner.load_state_dict(theirs, strict=False)
    return ["heads: continue from the source's"]


def decoder_size(name: str) -> dict[str, int]:
    """`decoder_width`, `decoder_depth` and `decoder_heads` of the decoder that a source holds; empty where it holds none that can continue."""
    theirs, heads = _decoder_of(name)
    return _size(theirs, heads) if theirs else {}


def _size(decoder: Mapping[str, Tensor], heads: int) -> dict[str, int]:
    blocks = {key.split(".")[4] for key in decoder if key.startswith(f"{DECODER}blocks.")}
    return {"decoder_width": decoder[f"{DECODER}mask_token"].shape[-1], "decoder_depth": len(blocks), "decoder_heads": heads}


def _decoder_of(name: str) -> tuple[dict[str, Tensor], int]:
    """The decoder that a source holds, by our names, and its heads; nothing where it holds none or one with places of its own."""
    try:
        return _held(name)
    except Refused:  # the encoder was opened: that is what was asked for
        return {}, 0


def _held(name: str) -> tuple[dict[str, Tensor], int]:
    kind, where, _, told = identify(name)
    if kind in ("encoder file", "learner file"):
        beside = Path(where).with_name("model.safetensors")
        state, words = read_safetensors(beside if beside.is_file() else Path(where))
        if "method" in words:
            given = json.loads(words["settings"]).get("decoder_heads")
            width = state.get(f"{DECODER}mask_token", torch.empty(0)).shape[-1]
            return {key: value for key, value in state.items() if key.startswith(PARTS)}, given or (width // 32 if width % 32 == 0 else 1)
    if kind == "hugging face folder":
        config, family = read_config(Path(where))
        decoder = {key: value for key, value in huggingface.from_huggingface(read_folder(Path(where)).state, family)[0].items() if _of_mae(key)}
        return _named(decoder, config.get("patch_size", 16)), config.get("decoder_num_attention_heads", 0)
    if kind in ("checkpoint file", "encoder file"):
        parts = official.take_apart(read(where))
        width = parts.decoder["mask_token"].shape[-1] if parts.decoder else 0
        return _named(parts.decoder, tuple(parts.trunk[WEIGHT].shape[2:])), told.get("decoder_heads") or width // 32
    return {}, 0


def _of_mae(key: str) -> bool:
    return key.startswith("decoder_") or key == "mask_token"


def _named(decoder: Mapping[str, Tensor], patch: Any) -> dict[str, Tensor]:
    """MAE's own names of a decoder to ours; nothing where its places are not the ones that we compute."""
    table = decoder.get("decoder_pos_embed")
    if table is not None:
        side = round((table.shape[1] - 1) ** 0.5)
        if side * side != table.shape[1] - 1 or not torch.allclose(table[0, 1:], sincos((side, side), table.shape[-1]), atol=1e-4):
            return {}
    sides = tuple(patch) if isinstance(patch, list | tuple) else (patch, patch)
    return official.from_mae({**decoder, WEIGHT: torch.empty(1, 1, *sides)})[0] if decoder else {}
