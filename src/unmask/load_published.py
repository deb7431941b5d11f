"""Whole learners out of files that others wrote: the sizes read off the tensors, the names by the tables of `interchange/`."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.errors import Refused
from unmask.interchange import bootmae, cae, convnext, distilled, hiera, huggingface, igpt, moco, official, papers, published, relative
from unmask.interchange.foreign import norm_eps, read_config
from unmask.interchange.shapes import Network, heads_of_family, network_of
from unmask.interchange.timm import rebuild, set_norm_eps
from unmask.interchange.weights import Weights, read_folder
from unmask.methods import find
from unmask.model import Learner

WHOLE = "whole, with what predicts, open runs, and files of MAE, CrossMAE, BootMAE, Pixio, BEiT, BEiT v2, CAE, Hiera, FCMAE, DINO, iBOT, DINOv2 and MoCo v3"


def from_published(weights: Weights, **said: Any) -> Learner:
    """The learner of a file, by what its names tell; `said` as in `load`. Refused where it holds an encoder only, or is nobody's."""
    family = published.family_of(weights.state)
    if "pretext_neck.head.weight" in weights.state:
        return from_official_cae(weights, said.get("tokenizer"), said.get("heads"))
    if family is published.BEIT:
        return from_official_beit(weights, said.get("tokenizer"), said.get("heads"))
    if family is not None:
        raise Refused(f"{weights.path} holds a network of {family.name}: it opens as an encoder; {WHOLE}")
    if method := distilled.method_of(weights.state):
        return from_views(weights, method, distilled, **said)
    if moco.tells(weights.state):
        return from_views(weights, "mocov3", moco, **said)
    if bootmae.tells(weights.state):
        return from_bootmae(weights, **said)
    for own in (hiera, convnext):
        if own.tells(weights.state):
            return from_stages(own, weights, **said)
    paper = papers.of(weights.state)
    return from_official_mae(weights, **said) if paper is None else from_paper(weights, paper, **said)


def filled(learner: Learner, state: Mapping[str, Tensor], left: list[str], path: str, what: str, spare: str = "(?!)") -> Learner:
    """The learner with this state by our names; Refused where names are `left`, unknown or missing, but for those that `spare` finds."""
    try:
        missing, unexpected = learner.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise Refused(f"{path} does not fit {what}: {' '.join(str(error).split())[:300]}") from None
    missing = [name for name in missing if not re.search(spare, name)]
    if left or missing or unexpected:
        raise Refused(f"{path} does not fit {what}: unknown {left + unexpected}, missing {missing}"[:400])
    return learner.eval()


def from_official_mae(weights: Weights, **said: Any) -> Learner:
    """A learner from MAE's own names (`*_full.pth`, `mae_visualize_*`, checkpoints of forks), sizes read off the tensors.

    What the training's settings say (`args` of a checkpoint) is taken: per-patch normalisation and the masked share.
    """
    parts = official.take_apart(weights)
    path, decoder, args = weights.path, parts.decoder, weights.settings
    if not decoder:
        raise Refused(f"{path} holds an encoder only, and this needs the decoder too: give a file with decoder_* (MAE's *_full or mae_visualize_*), or a run")
    hint = heads_of_family(parts.family, parts.trunk, decoder)
    network = network_of(parts.trunk, path, said.get("img_size"), said.get("heads"), hint)
    if "norm_pix" in said or isinstance(args.get("norm_pix_loss"), bool):
        normed, told = bool(said.get("norm_pix", args.get("norm_pix_loss"))), ""
    else:
        normed = not Path(path).name.startswith("mae_visualize")
        told = "a target normalised patch by patch is assumed" if normed else "a target of plain pixels is assumed, as the files mae_visualize_* have it"
    settings = {"norm_pix": normed} | ({"mask_ratio": args["mask_ratio"]} if isinstance(args.get("mask_ratio"), float) else {})
    width = decoder["mask_token"].shape[-1]
    heads = said.get("decoder_heads") or (3 if hint and width == 96 else 6 if hint else max(1, width // 32))
    lines = [f"{path} says no settings: {told}"] if told else []
    lines += [f"decoder of {heads} heads assumed, {width // heads} columns each"] if width != 512 and "decoder_heads" not in said else []
    for line in [*network.assumed, *lines]:
        print(f"unmask: {line}", file=sys.stderr)
    return _mae(parts.trunk, decoder, network, heads, settings, path)


def from_official_beit(weights: Weights, tokenizer: str | None, heads: int | None = None) -> Learner:
    """A learner from a file of BEiT's or BEiT v2's pre-training, sizes read off the tensors; `tokenizer`: whose codes its last layer names."""
    head, path = weights.state.get("lm_head.weight"), weights.path
    taken = published.take(weights, None, heads, published.BEIT.module)
    if head is None or head.shape[0] == head.shape[1] or taken is None:
        raise Refused(f"{path} has no layer that names codes, as BEiT's pre-training has: it opens as an encoder; {WHOLE}")
    extra = {name.split(".")[1] for name in weights.state if name.startswith("cls_pt_layers.")}
    method = find("beit2")(tokenizer=tokenizer, aggregation=len(extra)) if extra else find("beit")(tokenizer=tokenizer)
    return _coded(taken, method, taken.network, len(head), relative.from_beit(weights.state), path)


def from_official_cae(weights: Weights, tokenizer: str | None, heads: int | None = None) -> Learner:
    """A learner from a file of CAE's pre-training; `tokenizer` as above."""
    taken, state = published.take(weights, None, heads, published.BEIT.module), weights.state
    assert taken is not None
    kept = {key: taken.network.kwargs[key] for key in ("img_size", "in_chans", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes")}
    network = Network("deit3_base_patch16_224", kept | {"dynamic_img_size": True}, taken.network.assumed)
    depths = [len({key.split(".")[2] for key in state if key.startswith(f"pretext_neck.{part}_blocks.")}) for part in ("regressor", "decoder")]
    method = find("cae")(tokenizer=tokenizer, regressor=depths[0], decoder=depths[1])
    return _coded(taken, method, network, len(state["pretext_neck.head.weight"]), cae.from_cae(state), weights.path)


def _coded(taken: published.Taken, method: Any, network: Network, codes: int, state: dict[str, Tensor], path: str) -> Learner:
    """The learner of a method that names so many codes of its tokenizer, with these weights by our names."""
    if method.tokenizer is None:
        raise Refused(f"{path} names {codes:,} codes of a tokenizer: say which, {path}:tokenizer=FILE (DALL-E's encoder, as a state dict) or :tokenizer=RUN")
    learner = method.build(rebuild(network.name, network.kwargs))
    words = learner.objectives["codes"].target.tokenizer.vocabulary
    if words != codes:
        raise Refused(f"{path} names {codes:,} codes, and the tokenizer {method.tokenizer} has {words:,}: it is another one")
    learner.sees(taken.statistics["mean"], taken.statistics["std"])
    return filled(learner, state, [], path, f"{type(method).__name__} over {network.name}", r"\.target\.")


def from_paper(weights: Weights, paper: papers.Names, **said: Any) -> Learner:
    """A learner from the names of another method's code that are told by a table of `interchange/papers.py`, sizes read off the tensors."""
    parts, state, path = official.take_apart(weights), weights.state, weights.path
    network = network_of(parts.trunk, path, said.get("img_size"), said.get("heads"))
    width = state["mask_token"].shape[-1]
    heads = said.get("decoder_heads") or (width // 32 if width % 32 == 0 else 1)
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("decoder_blocks."))
    settings = {"decoder_width": width, "decoder_depth": depth, "decoder_heads": heads} | _told(weights, **said)
    if paper.method == "crossmae":
        settings["use_input"] = state["wfm.linear.weight"].shape[1] > network.kwargs["depth"]
    for line in [*network.assumed, f"decoder of {heads} heads assumed, {width // heads} columns each"] if "decoder_heads" not in said else network.assumed:
        print(f"unmask: {line}", file=sys.stderr)
    learner = find(paper.method)(**settings).build(rebuild(network.name, network.kwargs))
    ours, left = paper.ours(state)
    ours |= paper.neutral(ours)
    return filled(learner, ours, left, path, paper.method)


def from_stages(own: Any, weights: Weights, **said: Any) -> Learner:
    """A learner from a file of Hiera's MAE or of FCMAE (`own`: the table of its names), sizes read off the tensors."""
    state, path = weights.state, weights.path
    trunk, rest = own.trunk(state)
    if "mask_token" not in state:
        raise Refused(f"{path} holds an encoder only, and this needs the decoder too")
    network = own.network(trunk, path, said.get("img_size"), said.get("heads"), rest)
    method, width = find("hiera_mae" if own is hiera else "fcmae"), state["mask_token"].numel()
    depth = len({key.split(".")[1] for key in state if re.match(r"decoder(_blocks)?\.\d", key)})
    sizes: dict[str, Any] = {"decoder_width": width, "decoder_depth": depth, "grn": "batch", "decoder_heads": said.get("decoder_heads") or max(1, width // 32)}
    known = {field.name for field in fields(method)}
    learner = method(**{name: value for name, value in (sizes | _told(weights, **said)).items() if name in known}).build(rebuild(network.name, network.kwargs))
    ours, left = own.ours(state, learner.state_dict())
    for line in network.assumed:
        print(f"unmask: {line}", file=sys.stderr)
    return filled(learner, ours, left, path, network.name, r"trunk\.head\.")


def from_bootmae(weights: Weights, **said: Any) -> Learner:
    """A learner from a file of BootMAE's pre-training, sizes read off the tensors; its teacher begins as the encoder is."""
    state, (trunk, _) = weights.state, bootmae.trunk(weights.state)
    network = network_of(trunk, weights.path, said.get("img_size"), said.get("heads"))
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("decode_blocks."))
    for line in network.assumed:
        print(f"unmask: {line}", file=sys.stderr)
    learner = find("bootmae")(decoder_width=state["mask_token"].shape[-1], decoder_depth=depth).build(rebuild(network.name, network.kwargs))
    ours, left = bootmae.ours(state)
    filled(learner, ours, left, weights.path, "BootMAE", r"\.target\.|share$")
    learner.begin()
    return learner.eval()


def from_views(weights: Weights, method: str, names: Any, **said: Any) -> Learner:
    """A learner from a training checkpoint of DINO, iBOT, DINOv2 or MoCo v3, sizes read off the tensors; of a student and its teacher the latter is taken for both."""
    parts = official.take_apart(weights)
    network = network_of(parts.trunk, weights.path, said.get("img_size"), said.get("heads"), heads_of_family(parts.family, parts.trunk, {}))
    for line in [*network.assumed, *(["student and teacher begin as the teacher is"] if weights.part == "teacher" else [])]:
        print(f"unmask: {line}", file=sys.stderr)
    learner = find(method)(**names.settings(weights.state)).build(rebuild(network.name, network.kwargs))
    state, left = names.ours(weights.state)
    if names is moco:
        return filled(learner, state, left, weights.path, method)
    filled(learner, state, left, weights.path, method, spare=r"^(?!encoder\.trunk\.|head\.|patch_head\.)").begin()  # a teacher that follows
    return learner


def _told(weights: Weights, **said: Any) -> dict[str, Any]:
    """What a person, or the settings of a checkpoint, say of the task: per-patch normalisation and the masked share."""
    args = weights.settings
    found: dict[str, Any] = {"mask_ratio": args["mask_ratio"]} if isinstance(args.get("mask_ratio"), float) else {}
    for theirs, ours in (("kept_mask_ratio", "predicted"), ("mask_grid", "cell")):  # CrossMAE, Pixio
        if theirs in args:
            found[ours] = args[theirs]
    if "norm_pix" in said or isinstance(args.get("norm_pix_loss"), bool):
        found["norm_pix"] = bool(said.get("norm_pix", args.get("norm_pix_loss")))
    return found


def from_huggingface_folder(folder: Path) -> Learner:
    """A learner from a Hugging Face folder of ViTMAEForPreTraining, or of Image GPT: settings of its config, exactly its function."""
    if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "imagegpt":
        return _igpt(folder)
    config, kind = read_config(folder)
    state, _ = huggingface.from_huggingface(read_folder(folder).state, kind)
    decoder = {name: state.pop(name) for name in list(state) if name.startswith("decoder_") or name == "mask_token"}
    if "decoder_pred.weight" not in decoder:
        raise Refused(f"{folder} holds an encoder only ({', '.join(config.get('architectures') or [kind])}), and this needs the decoder of ViTMAEForPreTraining too")
    size = config.get("image_size", 224)
    network = network_of(state, str(folder), tuple(size) if isinstance(size, list) else (size, size), config["num_attention_heads"])
    settings = {"norm_pix": bool(config.get("norm_pix_loss", False)), "mask_ratio": float(config.get("mask_ratio", 0.75))}
    learner = _mae(state, decoder, network, config["decoder_num_attention_heads"], settings, str(folder))
    set_norm_eps(learner, norm_eps(config))
    return learner


def _igpt(folder: Path) -> Learner:
    """The learner `igpt` in a folder of ImageGPTForCausalImageModeling, with the palette of its preprocessor."""
    config, words = (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {} for path in (folder / "config.json", folder / "preprocessor_config.json"))
    state, left = igpt.ours(read_folder(folder).state, str(folder))
    if left or igpt.LAST not in state:
        raise Refused(f"{folder} is no whole Image GPT (ImageGPTForCausalImageModeling): unknown {left[:3]}" if left else f"{folder} has no layer that names colours (lm_head)")
    side = math.isqrt(config["n_positions"])
    kwargs = {"img_size": (side, side), "embed_dim": config["n_embd"], "depth": config["n_layer"], "num_heads": config["n_head"], "num_classes": 0, "dynamic_img_size": True}
    trunk = rebuild("igpt_small_patch1_32", kwargs)
    embed = trunk.patch_embed
    if words.get("clusters"):
        embed.colours = igpt.colours(words["clusters"])
    embed.proj = type(embed.proj)(*state[igpt.TRUNK + "patch_embed.proj.weight"].shape)
    if len(embed.colours) != embed.proj.num_embeddings:
        raise Refused(f"{folder} names {embed.proj.num_embeddings} colours, and its palette (clusters in preprocessor_config.json) has {len(embed.colours)}")
    learner = find("igpt")(prefix=False).build(trunk)
    learner.load_state_dict(learner.state_dict() | state)
    learner.sees((0.5,) * 3, (0.5,) * 3)  # pictures come in −1..1, as its own processor gives them
    return learner.eval()


def _mae(trunk: dict[str, Tensor], decoder: dict[str, Tensor], network: Network, heads: int, settings: dict[str, Any], path: str) -> Learner:
    """MAE's learner around these tensors (timm's names, and MAE's own of its decoder)."""
    depth = 1 + max(int(key.split(".")[1]) for key in decoder if key.startswith("decoder_blocks."))
    sizes = {"decoder_width": decoder["mask_token"].shape[-1], "decoder_depth": depth, "decoder_heads": heads}
    learner = find("mae")(**settings, **sizes).build(rebuild(network.name, network.kwargs))
    ours, left = official.from_mae(trunk | decoder)
    filled(learner, ours, left, path, f"MAE's decoder and {network.name}")
    _same_places(learner, decoder.get("decoder_pos_embed"), path)
    return learner.eval()


def _same_places(learner: Learner, table: Tensor | None, path: str) -> None:
    """Take a decoder's table of places from the file where it is not the sine-cosine one that we compute."""
    if table is None:
        return
    places = learner.objectives["pixels"].decoder.places
    if table.shape[1] != places.shape[1] + 1 or float(table[:, 0].abs().max()) > 1e-6:
        raise Refused(f"{path} has a decoder with places of its own for class tokens (Pixio, or a fork): this version computes MAE's decoder only")
    if not torch.allclose(table[:, 1:], places, atol=1e-5):
        places.copy_(table[:, 1:])
