"""Whole files of BEiT's and BEiT v2's pre-training, to and from the names of our learner; as encoders they are opened by published.py.

Source: microsoft/unilm, beit/modeling_pretrain.py and beit2/modeling_pretrain.py, which name the trunk as timm's Beit does.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from unmask.interchange.networks import INDEX
from unmask.interchange.prefixes import all_in_ours, all_in_theirs

LEARNER = (
    ("lm_head.", "objectives.codes.decoder.predict."),
    ("cls_pt_layers.", "objectives.codes.also.blocks."),
    ("mask_token", "encoder.mask_token"),
    ("", "encoder.trunk."),
)


def from_beit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of BEiT's or BEiT v2's pre-training in the names of our learner."""
    return all_in_ours({name: value for name, value in state.items() if not name.endswith(INDEX)}, LEARNER)


def to_beit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: our learner's names in those of microsoft/unilm, without the index that its code computes; what only our run needs is left out."""
    return all_in_theirs(state, LEARNER)
