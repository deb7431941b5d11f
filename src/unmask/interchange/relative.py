"""Whole files of BEiT's and BEiT v2's pre-training, to and from the names of our learner; as encoders they are opened by published.py.

Source: microsoft/unilm, beit/modeling_pretrain.py and beit2/modeling_pretrain.py, which name the trunk as timm's Beit does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from unmask.interchange.networks import INDEX

LEARNER = (  # the rest is the trunk
    ("lm_head.", "objectives.codes.decoder.predict."),
    ("cls_pt_layers.", "objectives.codes.also.blocks."),
    ("mask_token", "encoder.mask_token"),
)


def from_beit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of BEiT's or BEiT v2's pre-training in the names of our learner."""
    return {_named(name): value for name, value in state.items() if not name.endswith(INDEX)}


def _named(name: str) -> str:
    row = next((row for row in LEARNER if name.startswith(row[0])), ("", "encoder.trunk."))
    return row[1] + name[len(row[0]) :]


def to_beit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: our learner's names in those of microsoft/unilm, without the index that its code computes; what only our run needs is left out."""
    return in_theirs(state, (*LEARNER, ("", "encoder.trunk.")))


def in_theirs(state: Mapping[str, Tensor], rows: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Our learner's tensors by the names of a table of prefixes, (theirs, ours), tried in order; what it does not name (a teacher, say) is left out."""
    table, found = list(rows), {}
    for name, value in state.items():
        row = next((row for row in table if name.startswith(row[1])), None)
        if row is not None:
            found[row[0] + name[len(row[1]) :]] = value
    return found
