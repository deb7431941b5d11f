"""Files of BEiT and its relatives, whose attention adds a learned bias for how far apart two patches lie, to and from our names.

Sources: microsoft/unilm beit and beit2 (modeling_pretrain.py, modeling_finetune.py), facebookresearch/data2vec_vision, microsoft/SimMIM. All
name the trunk as timm's Beit does; what stands beside it is in the tables. Computed tables of indices are left to timm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unmask.errors import Refused
from unmask.interchange.families import OTHER_PART, groups, shortly
from unmask.interchange.shapes import PUBLISHED, Network, ratio
from unmask.interchange.weights import Weights

TRUNK = re.compile(
    r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|rel_pos_bias\.relative_position_bias_table|(norm|fc_norm)\.(weight|bias)"
    r"|blocks\.\d+\.(gamma_[12]|attn\.(q_bias|v_bias|qkv\.weight|relative_position_bias_table)|(norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias))"
)  # every name of timm's Beit
OTHERS = re.compile(r"encode_task_layer|^quantize\.|^decoder\.blocks|alignment_encoder|pretext_neck|regressor|^modality|rope\.|^beit3|decode_blocks|rebuild_blocks|^text_")
LEFT = {  # what stands beside the trunk in files of pre-training and fine-tuning
    r"(^|\.)mask_token$": "the token that stood for masked patches in training",
    r"^lm_head\.": "the layer that names codes (or a teacher's features), not needed for an encoder",
    r"^cls_pt_layers\.": "blocks for patch aggregation, thrown away after pre-training",
    r"^decoder\.0\.": "the layer that predicts pixels, not needed for an encoder",
    r"^head\.": "a classifier",
}
INDEX = "relative_position_index"
EVA = 1408  # width of EVA's giant, which is timm's `eva_giant_patch14_224` and sees CLIP's numbers
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEARNER = (  # of BEiT and BEiT v2; the rest is the trunk
    ("lm_head.", "objectives.codes.decoder.predict."),
    ("cls_pt_layers.", "objectives.codes.also.blocks."),
    ("mask_token", "encoder.mask_token"),
)


def belongs(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a picture network of BEiT's kind that timm's Beit computes."""
    trunk = state_of(state)[0] if any(name.endswith("attn.q_bias") for name in state) and not any(OTHERS.search(name) for name in state) else {}
    if "cls_token" not in trunk or "blocks.0.mlp.fc1.weight" not in trunk or trunk["cls_token"].shape[-1] == EVA:
        return False
    gated = trunk["blocks.0.mlp.fc1.weight"].shape[0] != trunk["blocks.0.mlp.fc2.weight"].shape[1]  # EVA-02
    return not gated and ("lm_head.weight" in state or any("relative_position_bias_table" in name for name in trunk))


def state_of(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The trunk by timm's names, and the names of what is left; indices of relative places are computed."""
    prefix = "encoder." if any(name.startswith("encoder.blocks.") for name in state) else ""  # SimMIM
    trunk, left = {}, []
    for name, value in state.items():
        inner = name.removeprefix(prefix)
        if TRUNK.fullmatch(inner):
            trunk[inner] = value
        elif not name.endswith(INDEX):
            left.append(name)
    return trunk, left


def sorted_out(weights: Weights) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The trunk, and what was left out by what it is; a name that no row knows is refused, for what it computes would be missing."""
    trunk, names = state_of(weights.state)
    left: dict[str, list[str]] = {}
    for name in names:
        what = next((says for tells, says in LEFT.items() if re.search(tells, name)), None)
        if what is None and OTHER_PART not in groups([name], OTHER_PART):
            what = next(iter(groups([name], OTHER_PART)))
        if what is None:
            raise Refused(f"{weights.path} has {shortly([name])}, which no network of BEiT's kind has: what it computes is not known; if timm has the network, say FILE:model=NAME")
        left.setdefault(what, []).append(name)
    return trunk, left


def network_of(trunk: Mapping[str, Tensor], path: str, img_size: tuple[int, int] | None = None, heads: int | None = None) -> Network:
    """The timm Beit that has exactly these tensors; the table of relative places tells the heads, and for square pictures the grid."""
    weight = trunk.get("patch_embed.proj.weight")
    if weight is None or weight.dim() != 4:
        raise Refused(f"{path} embeds no pictures: a network for video or words, which this version does not open")
    width, channels, *sides = weight.shape
    depth = len({name.split(".")[1] for name in trunk if name.startswith("blocks.")})
    tables = [value for name, value in trunk.items() if name.endswith("relative_position_bias_table")]
    places = _cells(len(tables[0])) if tables else math.isqrt(trunk["pos_embed"].shape[1] - 1) if "pos_embed" in trunk else 0
    if img_size is None and not places:
        raise Refused(f"{path} has no table of places that is square: say the size it was trained on, --img_size HEIGHT WIDTH")
    size, usual, _ = PUBLISHED.get((width, depth), ("", 0, True))
    known = tables[0].shape[1] if tables else heads or usual or max(1, width // 64)
    hidden = trunk["blocks.0.mlp.fc1.weight"].shape[0]
    kwargs: dict[str, Any] = {
        "img_size": img_size or (places * sides[0], places * sides[1]),
        "in_chans": channels,
        "patch_size": sides[0] if sides[0] == sides[1] else tuple(sides),
        "embed_dim": width,
        "depth": depth,
        "num_heads": known,
        "mlp_ratio": ratio(hidden, width),
        "init_values": 0.1 if "blocks.0.gamma_1" in trunk else 0.0,  # timm reads None as not said
        "use_abs_pos_emb": "pos_embed" in trunk,
        "use_rel_pos_bias": "blocks.0.attn.relative_position_bias_table" in trunk,
        "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in trunk,
        "use_fc_norm": "fc_norm.weight" in trunk,
        "num_classes": 0,
    }
    assumed = [] if tables or heads or usual else [f"{known} heads assumed, {width // known} columns each: the file does not tell (FILE:heads=N says another)"]
    return Network(f"beit_{'large' if size == 'large' else 'base'}_patch16_224", kwargs, assumed, size in ("base", "large"))


def _cells(rows: int) -> int:
    """The side of the square grid whose table of relative places has that many rows, (2·side − 1)² + 3; 0 where there is none."""
    side = (math.isqrt(rows - 3) + 1) // 2
    return side if (2 * side - 1) ** 2 + 3 == rows else 0


def normalised(state: Mapping[str, Tensor], path: str) -> tuple[dict[str, tuple[float, ...]], str]:
    """Mean and std that the papers' commands give, and the sentence that says whose.

    BEiT's own runs on ImageNet-22k, and what was fine-tuned from them, map pixels to -1..1; its run on ImageNet-1k (absolute places), BEiT v2,
    data2vec and SimMIM take ImageNet's. Of fine-tuned files only the file's name tells BEiT v2 and SimMIM from BEiT.
    """
    named = any(word in Path(path).name.lower() for word in ("beitv2", "beit2", "simmim", "data2vec"))
    head = state.get("lm_head.weight")
    other = named or "pos_embed" in state or "decoder.0.weight" in state or any(name.startswith("cls_pt_layers.") for name in state)
    other = other or (head is not None and head.shape[0] == head.shape[1]) or ("fc_norm.weight" in state and f"rel_pos_bias.{INDEX.replace('index', 'bias_table')}" in state)
    if other:
        return {"mean": MEAN, "std": STD}, "mean and std of ImageNet assumed: the file does not tell"
    return {"mean": (0.5,) * 3, "std": (0.5,) * 3}, "mean and std of 0.5 assumed, as BEiT's own files have them (BEiT v2, data2vec and SimMIM: ImageNet's)"


def from_beit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of BEiT's or BEiT v2's pre-training in the names of our learner."""
    return {_named(name): value for name, value in state.items() if not name.endswith(INDEX)}


def _named(name: str) -> str:
    row = next((row for row in LEARNER if name.startswith(row[0])), ("", "encoder.trunk."))
    return row[1] + name[len(row[0]) :]


def to_beit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: our learner's names in those of microsoft/unilm, without the index that its code computes; what only our run needs is left out."""
    rows, found = (*LEARNER, ("", "encoder.trunk.")), {}
    for name, value in state.items():
        row = next((row for row in rows if name.startswith(row[1])), None)
        if row is not None:
            found[row[0] + name[len(row[1]) :]] = value
    return found
