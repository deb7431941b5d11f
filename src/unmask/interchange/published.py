"""Published files of networks that are no plain vision transformers, each family by an explicit table of names, to timm's own names.

Sources: microsoft/unilm (beit, beit2), microsoft/SimMIM, microsoft/Swin-Transformer, facebookresearch/data2vec_vision, baaivision/EVA (EVA-01, EVA-02), lxtGH/CAE,
facebookresearch/SlowFast (MaskFeat) and facebookresearch/fairseq (examples/data2vec). All but the last name their trunk nearly as timm does. A name is renamed, left out for a reason that is said, or
refused: what it computes would be missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from unmask.errors import Refused
from unmask.interchange.families import HARMLESS, OTHER_PART, shortly
from unmask.interchange.networks import TABLE, beit_network, data2vec2_network, eva_network, maskfeat_network, swin_network
from unmask.interchange.official import BETTER, PLAIN
from unmask.interchange.shapes import Network
from unmask.interchange.weights import Weights

Rows = tuple[tuple[str, str], ...]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PAIR = r"\.(weight|bias)"
COMPUTED = "tables that are computed anew"
PREDICTS = "the layer that predicts what is hidden, not needed for an encoder"
LEFT: Rows = (  # what stands beside the trunk
    (r"relative_position_index$|attn_mask$|rope\.freqs_(cos|sin)$", COMPUTED),
    (r"^(lm_head|decoder\.0|layernorm)\.", PREDICTS),
    (r"^pretext_neck\.", "the regressor and decoder of CAE, not needed for an encoder"),
    (r"^hogs\.|^pred_head\.", PREDICTS),
    (r"^cls_pt_layers\.", "blocks that gather the class token while it is trained (BEiT v2), thrown away afterwards"),
    *HARMLESS,
)


@dataclass(frozen=True)
class Family:
    """Files of one kind: how names become timm's, which names timm's network may have, and how that network is read off the tensors."""

    name: str
    module: str  # of timm's constructor
    trunk: str  # every name that the network may have, a pattern
    network: Callable[..., Network]
    renamed: Rows = ()
    left: Rows = LEFT
    embeds: str = "patch_embed.proj.weight"  # the name by which the trunk's prefix is found


BEIT = Family(
    "BEiT's kind",
    "timm.models.beit",
    rf"cls_token|pos_embed|patch_embed\.proj{PAIR}|rel_pos_bias\.{TABLE}|(norm|fc_norm){PAIR}"
    rf"|blocks\.\d+\.(gamma_[12]|attn\.(q_bias|v_bias|qkv\.weight|{TABLE})|(norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2){PAIR})",
    beit_network,
)
EVA = Family(
    "EVA",
    "timm.models.eva",
    rf"cls_token|pos_embed|patch_embed\.proj{PAIR}|(norm|fc_norm){PAIR}|blocks\.\d+\.(gamma_[12]|attn\.(q_bias|v_bias|qkv\.weight|q_proj{PAIR}|k_proj\.weight|v_proj{PAIR})"
    rf"|(norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc1_g|mlp\.fc1_x|mlp\.fc2|mlp\.norm){PAIR})",
    eva_network,
    renamed=((r"\.mlp\.ffn_ln\.", ".mlp.norm."), (r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w1\.", ".mlp.fc1_g."), (r"\.mlp\.w2\.", ".mlp.fc1_x."), (r"\.mlp\.w3\.", ".mlp.fc2.")),
)
SWIN = Family(
    "Swin",
    "timm.models.swin_transformer",
    rf"patch_embed\.(proj|norm){PAIR}|norm{PAIR}|layers\.\d+\.downsample\.(norm{PAIR}|reduction\.weight)"
    rf"|layers\.\d+\.blocks\.\d+\.((norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2){PAIR}|attn\.{TABLE})",
    swin_network,
)
IMAGE = r"^modality_encoders\.IMAGE\."
DATA2VEC2 = Family(
    "data2vec 2.0",
    "unmask.encoders.post_norm",
    rf"cls_token|pos_embed|patch_embed\.proj{PAIR}|norm_pre{PAIR}|blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2){PAIR}",
    data2vec2_network,
    renamed=(
        (IMAGE + r"extra_tokens$", "cls_token"),
        (IMAGE + r"fixed_positional_encoder\.positions$", "pos_embed"),
        (IMAGE + r"local_encoder\.", "patch_embed."),
        (IMAGE + r"context_encoder\.norm\.", "norm_pre."),
        (IMAGE + r"context_encoder\.blocks\.", "blocks."),  # and those of `blocks.` follow after them
    ),
    left=(
        (r"(^|\.)_ema\.", "the teacher, an average of the encoder"),
        (IMAGE + r"decoder\.", "the decoder, not needed for an encoder"),
        (r"^fc_norm\.", "a norm behind the pool, with the classifier"),
        *LEFT,
    ),
    embeds="modality_encoders.IMAGE.local_encoder.proj.weight",
)


MASKFEAT = Family("MaskFeat", "timm.models.vision_transformer", PLAIN.pattern, maskfeat_network, renamed=((r"^pred_head\.transforms\.0\.0\.", "norm."),))


class Taken(NamedTuple):
    """A file, sorted: the trunk by timm's names, its network, mean and std with a line that says whose, what is left, and the method."""

    trunk: dict[str, Tensor]
    network: Network
    statistics: dict[str, tuple[float, ...]]
    said: str
    left: dict[str, list[str]]
    method: str


FAMILIES = {family.module: family for family in (BEIT, EVA, SWIN, DATA2VEC2)}  # those that a timm name tells apart
SOMETHING_ELSE = (  # names of networks that share BEiT's attention, and are not of its kind
    r"encode_task_layer|^quantize\.|^decode_blocks|rebuild_blocks|^encoder_to_decoder\.|^beit3\.|^(text|visual)\."
    r"|\.attn\.(k_bias|inner_attn_ln)|get_token_probs"
)


def family_of(state: Mapping[str, Tensor]) -> Family | None:
    """The family whose table names this state dict; None where it is a plain vision transformer, or nothing that is opened here."""
    has = lambda pattern: any(re.search(pattern, name) for name in state)  # noqa: E731
    if has(r"(^|\.)modality_encoders\.IMAGE\.local_encoder\.proj\.weight$"):
        return DATA2VEC2
    if has(rf"(^|\.)layers\.\d+\.blocks\.\d+\.attn\.{TABLE}$"):
        return SWIN
    if has(r"^pred_head\.transforms\.0\.0\.") and not has(r"attn\.pool_[qkv]"):
        return MASKFEAT
    if not has(r"(^|\.)blocks\.0\.attn\.q_bias$") or has(SOMETHING_ELSE):
        return None
    if has(r"rope\.freqs_cos$|\.mlp\.w(1|12)\."):
        return EVA
    if has(r"rope|\.mlp\.fc1_g\.") or not _plain_mlp(state):  # networks of timm that are near: what their places are no name tells
        return None
    sides = [value.shape[2:] for name, value in state.items() if name.endswith(BEIT.embeds)]
    return None if not sides or len(sides[0]) != 2 else EVA if tuple(sides[0]) == (14, 14) and not has(rf"{TABLE}$") else BEIT


def _plain_mlp(state: Mapping[str, Tensor]) -> bool:
    """Whether the first block's MLP has as many rows in its first layer as columns in its second (a gated one has twice as many)."""
    first, second = (next((value for name, value in state.items() if name.endswith(f"blocks.0.mlp.{layer}.weight")), None) for layer in ("fc1", "fc2"))
    return first is not None and second is not None and first.shape[0] == second.shape[1]


def take(weights: Weights, img_size: tuple[int, int] | None = None, heads: int | None = None, module: str | None = None) -> Taken | None:
    """The encoder of a file whose family stands here, read off its own tensors; None where it belongs to none of them.

    `module`: of timm's constructor, where the network was named: it decides between families of the same names (BEiT and EVA). Raises `Refused`
    where a name is not known, or where the tensors are none of that family's.
    """
    family = family_of(weights.state)
    if family is None or (module is not None and module not in FAMILIES):
        return None
    family = family if module is None else FAMILIES[module]
    prefix = prefix_of(weights.state, family)
    inside = {name.removeprefix(prefix): value for name, value in weights.state.items() if name.startswith(prefix)}
    trunk, rest = renamed(inside, family)
    left = reasons(rest, prefix, family, weights.path)
    for name in (name for name in weights.state if not name.startswith(prefix)):
        left.setdefault(reason(name, family) or OTHER_PART, []).append(name)
    network = family.network(trunk, weights.path, img_size, heads, rest)
    method = whose(family, weights.state, weights.path)
    statistics, said = statistics_of(method, weights.state)
    return Taken(trunk, network, dict(zip(("mean", "std"), statistics)), said, left, method)


def prefix_of(state: Mapping[str, Tensor], family: Family) -> str:
    """What stands before the trunk's names (`encoder.` in SimMIM's files); of several networks the averaged one, then the plainest."""
    found = [name.removesuffix(family.embeds) for name in state if name.endswith(family.embeds)]
    rank = lambda prefix: (next((place for word, place in BETTER if word in prefix and prefix != "_ema."), 1), len(prefix))  # noqa: E731
    return min(found, key=rank) if found else ""


def renamed(state: Mapping[str, Tensor], family: Family) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trunk by timm's names; second, what belongs to none of them, by its own."""
    trunk, rest = {}, {}
    before = len({name.split(".")[4] for name in state if re.match(IMAGE + r"context_encoder\.blocks\.", name)})  # data2vec 2.0: blocks before `blocks`
    merged = "layers.0.downsample.reduction.weight" in state  # Swin's own code merges at the end of a stage, timm at the start of the next
    parted = "blocks.0.attn.q_proj.weight" in state  # with q, k, v apart their biases belong to the layers
    for name, value in state.items():
        ours = name
        if before and (number := re.match(r"blocks\.(\d+)\.", name)):
            ours = f"blocks.{int(number[1]) + before}.{name[number.end() :]}"
        for theirs, timms in family.renamed:
            ours = re.sub(theirs, timms, ours)
        if merged and (stage := re.match(r"layers\.(\d+)\.downsample\.", name)):
            ours = f"layers.{int(stage[1]) + 1}.downsample.{name[stage.end() :]}"
        if parted:
            ours = re.sub(r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias", ours)
        if re.fullmatch(family.trunk, ours):
            trunk[ours] = value
        else:
            rest[name] = value
    return trunk, rest


def reason(name: str, family: Family) -> str | None:
    """What a name is that was left out."""
    return next((says for tells, says in family.left if re.search(tells, name)), None)


def reasons(names: Iterable[str], prefix: str, family: Family, path: str) -> dict[str, list[str]]:
    """Names of the network that were left out, as the file has them, by what they are; one that no row knows is refused."""
    left: dict[str, list[str]] = {}
    for name in names:
        left.setdefault(reason(name, family) or "", []).append(prefix + name)
    if unknown := left.get(""):
        raise Refused(f"{path} has {shortly(unknown)}, which no network of {family.name} has: what it computes is not known; if timm has the network, say FILE:model=NAME")
    return left


def whose(family: Family, state: Mapping[str, Tensor], path: str) -> str:
    """The method that these files come from, where names, shapes or the file's own name tell it; empty otherwise.

    Fine-tuned files of BEiT, BEiT v2 and SimMIM have the same names and shapes.
    """
    if family is not BEIT:
        return "" if family is SWIN else family.name
    named = [name for word, name in (("beitv2", "BEiT v2"), ("beit2", "BEiT v2"), ("simmim", "SimMIM"), ("data2vec", "data2vec")) if word in Path(path).name.lower()]
    head = state.get("lm_head.weight")
    if head is not None and head.shape[0] == head.shape[1]:
        return "data2vec"  # predicts features as wide as its own, where BEiT predicts codes
    if f"rel_pos_bias.{TABLE}" in state and "fc_norm.weight" in state:
        return "data2vec"  # its fine-tuning alone keeps one table for all blocks
    if any(name.startswith("cls_pt_layers.") for name in state):
        return "BEiT v2"
    for tells, name in ((r"pretext_neck\.", "CAE"), (r"encoder\.(blocks|rel_pos_bias)\.", "SimMIM")):
        if any(re.match(tells, key) for key in state):
            return name
    return (named or ["BEiT" if head is not None else ""])[0]


def statistics_of(method: str, state: Mapping[str, Tensor]) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], str]:
    """Mean and std that the papers' commands give, and the line that says whose.

    BEiT's runs on ImageNet-22k, and what was fine-tuned from them, see pixels as -1 to 1; its run on ImageNet-1k (absolute places) sees ImageNet's numbers.
    """
    if method == "EVA":
        return CLIP, "mean and std of CLIP assumed, as EVA's own commands have them: the file does not tell"
    relative = any(name.endswith(TABLE) and "layers." not in name for name in state)
    if method == "BEiT" and relative:
        return HALF, "mean and std of 0.5 assumed, as BEiT's files of ImageNet-22k have them: the file does not tell"
    if method == "" and relative:
        return HALF, "mean and std of 0.5 assumed, as BEiT's files have them; of BEiT v2, data2vec or SimMIM say FILE:model=beitv2_base_patch16_224"
    return IMAGENET, "mean and std of ImageNet assumed: the file does not tell"
