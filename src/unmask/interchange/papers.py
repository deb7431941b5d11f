"""Whole learners of papers' own code, encoder and decoder: explicit tables of names, both ways.

A table is a list of (official prefix, our prefix), tried in order; what no row names is reported, never dropped in silence. MAE's own
table stands in `official.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.interchange.official import channel_first, channel_last
from unmask.interchange.prefixes import in_ours, in_theirs

TRUNK, DECODER = "encoder.trunk.", "objectives.pixels.decoder."
PLAIN = tuple((name, TRUNK + name) for name in ("cls_token", "pos_embed", "patch_embed.", "blocks."))


@dataclass(frozen=True)
class Names:
    """The names of one method's code and ours.

    `tells`: a name that no other method's files have. `computed`: tables that we compute. `absent`: what ours has and theirs lacks, with
    the number that changes nothing. `pixels`: the layer whose rows are the pixels of a patch, there channel last.
    """

    method: str
    tells: str
    rows: tuple[tuple[str, str], ...]
    pixels: str = "decoder_pred."
    computed: frozenset[str] = frozenset({"decoder_pos_embed"})
    absent: tuple[str, ...] = ()

    def ours(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Official names to those of our learner; second, the keys that no row of the table names."""
        ours, left = {}, []
        for key, value in state.items():
            if key in self.computed:
                continue
            name = in_ours(key, self.rows)
            if name is None:
                left.append(key)
            else:
                patch = tuple(state["patch_embed.proj.weight"].shape[2:])
                ours[name] = channel_first(value, patch) if key.startswith(self.pixels) else value
        return self.parted(ours), left

    def parted(self, ours: dict[str, Tensor]) -> dict[str, Tensor]:
        """Several class tokens become one, and registers."""
        token = ours.get(TRUNK + "cls_token")
        if token is None or token.shape[1] == 1:
            return ours
        return ours | {TRUNK + "cls_token": token[:, :1], TRUNK + "reg_token": token[:, 1:]}

    def neutral(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What ours has and theirs lacks: norms without scale and shift."""
        like = ours[TRUNK + "blocks.0.norm1.weight"]
        return {name: like.new_ones(like.shape) if name.endswith("weight") else like.new_zeros(like.shape) for name in self.absent}

    def theirs(self, state: Mapping[str, Tensor], patch: tuple[int, int]) -> dict[str, Tensor]:
        """Our learner's names to the official ones, without the tables that are computed."""
        official = {}
        token, further = (state.get(TRUNK + name) for name in ("cls_token", "reg_token"))
        tokens = {} if token is None or further is None else {TRUNK + "cls_token": torch.cat([token, further], dim=1)}
        for key, value in {**state, **tokens}.items():
            name = in_theirs(key, self.rows)
            if name is not None and key not in self.absent:
                official[name] = channel_last(value, patch) if name.startswith(self.pixels) else value
        return official


CROSSMAE = Names(
    "crossmae",
    r"^wfm\.",
    (
        ("wfm.linear.", DECODER + "mix."),
        ("dec_norms.", DECODER + "norms."),
        ("decoder_blocks.", DECODER + "blocks."),
        ("decoder_norm.", DECODER + "norm."),
        ("decoder_pred.", DECODER + "predict."),
        ("mask_token", DECODER + "mask_token"),
        *PLAIN,
    ),
    absent=(TRUNK + "norm.weight", TRUNK + "norm.bias"),
)
PIXIO = Names(
    "pixio",
    r"^decoder_pos_embed$",  # and several class tokens: see `of`
    (
        ("decoder_pos_embed", DECODER + "places"),
        ("decoder_embed.", DECODER + "embed."),
        ("decoder_blocks.", DECODER + "blocks."),
        ("decoder_norm.", DECODER + "norm."),
        ("decoder_pred.", DECODER + "predict."),
        ("mask_token", DECODER + "mask_token"),
        *PLAIN,
        ("norm.", TRUNK + "norm."),
    ),
    computed=frozenset(),
)
PAPERS = (CROSSMAE, PIXIO)


def of(state: Mapping[str, Tensor]) -> Names | None:
    """The method whose learner these names are, where they tell."""
    several = "cls_token" in state and state["cls_token"].shape[1] > 1
    return next((names for names in PAPERS if any(re.search(names.tells, key) for key in state) and (names is not PIXIO or several)), None)
