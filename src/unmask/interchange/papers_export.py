"""A run by the names that its method's own code gives its parts: what the paper's repository loads, decoder included.

One file in PyTorch's format (`torch.save`, plain tensors, which `torch.load(weights_only=True)` opens), under the key that the official loader
asks for. Tables that the official code computes when it is built are left out. Every file is opened again by the reader of published files.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from timm.layers import GluMlp, SwiGLU
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unmask.encoders.adapter import Adapter
from unmask.encoders.swin import Swin
from unmask.errors import Refused
from unmask.interchange import bootmae, convnext, distilled, hiera, moco
from unmask.interchange.cae import to_cae
from unmask.interchange.encoder import load_encoder
from unmask.interchange.official import to_mae
from unmask.interchange.papers import CROSSMAE, PIXIO
from unmask.interchange.prefixes import all_in_theirs
from unmask.interchange.relative import to_beit
from unmask.interchange.timm import Encoder, folders_for, write
from unmask.interchange.witness import Exported, Witness, look

Rows = tuple[tuple[str, str], ...]  # (theirs, ours): prefixes, tried in order
State = Mapping[str, Tensor]

TRUNK = "encoder.trunk."
SIMMIM: Rows = (("decoder.0.", "objectives.pixels.decoder.predict."), ("encoder.mask_token", "encoder.mask_token"), ("encoder.", TRUNK))
FEATURES: Rows = (("lm_head.", "objectives.features.decoder.predict."), ("mask_token", "encoder.mask_token"), ("", TRUNK))  # data2vec, EVA
MASKFEAT: Rows = (
    ("pred_head.transforms.0.0.", TRUNK + "norm."),
    ("pred_head.projections.0.", "objectives.hog.decoder.predict."),
    ("mask_token", "encoder.mask_token"),
    ("", TRUNK),
)
GATED: dict[type, Rows] = {  # EVA-02's feed-forward branches: in two layers, and with both in one
    SwiGLU: ((".mlp.w1.", ".mlp.fc1_g."), (".mlp.w2.", ".mlp.fc1_x."), (".mlp.w3.", ".mlp.fc2."), (".mlp.ffn_ln.", ".mlp.norm.")),
    GluMlp: ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2.")),
}


def renamed(state: State, encoder: Adapter, rows: Rows) -> dict[str, Tensor]:
    """The learner's tensors by the names of a table alone."""
    return all_in_theirs(state, rows)


def simmim(state: State, encoder: Adapter) -> dict[str, Tensor]:
    """The head is a convolution of one place there; Swin merges patches at the end of a stage, where timm does at the start of the next."""
    found = renamed(state, encoder, SIMMIM)
    if isinstance(encoder, Swin):
        found = {re.sub(r"(?<=layers\.)(\d+)(?=\.downsample\.)", lambda stage: str(int(stage[1]) - 1), key): value for key, value in found.items()}
    return found | {"decoder.0.weight": found["decoder.0.weight"][..., None, None]}


def eva(state: State, encoder: Adapter) -> dict[str, Tensor]:
    """EVA-02's gated branches have names of their own."""
    found, rows = renamed(state, encoder, FEATURES), GATED.get(type(encoder.trunk.blocks[0].mlp), ())
    for theirs, ours in (*rows, *((f".attn.{part}_bias", f".attn.{part}_proj.bias") for part in "qv")):
        found = {key.replace(ours, theirs): value for key, value in found.items()}
    return found


def _teacher(state: State, encoder: Adapter, method: str) -> dict[str, Tensor]:
    """What DINO, iBOT and DINOv2 publish and judge."""
    return distilled.theirs(state, method, teacher=True)


WRITERS: Mapping[str, tuple[str, Callable[[State, Adapter], dict[str, Tensor]]]] = {  # by method: the key in the file, and the names
    "mae": ("model", lambda state, encoder: to_mae(state, encoder.patch)),
    "crossmae": ("model", lambda state, encoder: CROSSMAE.theirs(state, encoder.patch)),
    "pixio": ("model", lambda state, encoder: PIXIO.theirs(state, encoder.patch)),
    "bootmae": ("model", lambda state, encoder: bootmae.theirs(state)),
    "cae": ("model", lambda state, encoder: to_cae(state)),
    "beit": ("model", lambda state, encoder: to_beit(state)),
    "beit2": ("model", lambda state, encoder: to_beit(state)),
    "simmim": ("model", simmim),
    "data2vec": ("model", partial(renamed, rows=FEATURES)),
    "eva": ("model", eva),
    **{method: ("teacher", partial(_teacher, method=method)) for method in distilled.HEADS},
    "mocov3": ("state_dict", lambda state, encoder: moco.theirs(state)),
    "maskfeat": ("model_state", partial(renamed, rows=MASKFEAT)),
    "hiera_mae": ("model_state", lambda state, encoder: hiera.theirs(state)),
    "fcmae": ("model", lambda state, encoder: convnext.theirs(state, encoder.patch)),
}


OWN = {"beit": "beit_*", "beit2": "beit_*", "simmim": "beit_* and swin_*", "data2vec": "beit_*", "cae": "deit3_*", "eva": "eva02_*"}  # --model of networks as the papers'


def export_paper(state: State, adapter: Adapter, method: str, encoder: Encoder, out: str | Path, witness: Witness) -> Exported:
    """Write the file (OUT, or OUT/checkpoint.pth) once it gives the trained encoder's features when it is opened as a published one.

    `state`: of the whole learner; `adapter`: its encoder.
    """
    out = Path(out)
    file = out if out.suffix == ".pth" else out / "checkpoint.pth"
    if (file.parent / "config.yaml").is_file():
        raise Refused(f"--out {out} is a run: give another folder")
    key, names = WRITERS[method]
    content = io.BytesIO()
    torch.save({key: {name: value.detach().cpu().contiguous() for name, value in names(state, adapter).items()}}, content)
    network = adapter.trunk
    heads = network.blocks[0].attn.num_heads if isinstance(network, VisionTransformer | Eva | Beit) else None
    hidden = file.with_name(f".{file.name}")
    with folders_for(file), contextlib.ExitStack() as after:
        after.callback(hidden.unlink, missing_ok=True)
        write(hidden, content.getvalue())
        try:
            opened = load_encoder(hidden, img_size=encoder.img_size, heads=heads, say=lambda line: None)
        except Refused:
            raise Refused(f"--to paper: {method}'s own code has no {type(network).__name__} like this run's, so it could not open the file" + (f" (it has --model {OWN[method]})" if method in OWN else "") + "; --to timm takes any encoder") from None
        difference = witness.difference(look(opened.model.eval().forward_features, witness.pictures), "the file, opened as a published one,")
        os.replace(hidden, file)
    told = () if heads is None else (f"{file}: no such file tells the number of heads: {heads}, {adapter.width // heads} columns each",)
    return Exported(file, f"{method}'s own code", difference, (*told, witness.say(file, difference)))
