"""State dicts of the papers' own code, to and from ours: explicit tables of names.

A table is a list of (official prefix, our prefix), tried in order; what no row names is reported, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MAE = [
    ("decoder_embed.", "objectives.pixels.decoder.embed."),
    ("decoder_blocks.", "objectives.pixels.decoder.blocks."),
    ("decoder_norm.", "objectives.pixels.decoder.norm."),
    ("decoder_pred.", "objectives.pixels.decoder.predict."),
    ("mask_token", "objectives.pixels.decoder.mask_token"),
    ("cls_token", "encoder.trunk.cls_token"),
    ("pos_embed", "encoder.trunk.pos_embed"),
    ("patch_embed.", "encoder.trunk.patch_embed."),
    ("blocks.", "encoder.trunk.blocks."),
    ("norm.", "encoder.trunk.norm."),
]
MAE_COMPUTED = {"decoder_pos_embed"}  # the sine-cosine table, which we compute


def channel_first(rows: Tensor, patch: tuple[int, int]) -> Tensor:
    """Rows (p·p·C, …) of MAE's last layer, channel last within a patch, in our order (C·p·p, …)."""
    return rows.unflatten(0, (*patch, -1)).movedim(2, 0).flatten(0, 2)


def channel_last(rows: Tensor, patch: tuple[int, int]) -> Tensor:
    """The inverse of `channel_first`."""
    return rows.unflatten(0, (-1, *patch)).movedim(0, 2).flatten(0, 2)


def from_mae(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Official MAE names to those of our learner; second, the keys that no row of the table names."""
    patch = tuple(state["patch_embed.proj.weight"].shape[2:])
    ours, left = {}, []
    for key, value in state.items():
        if key in MAE_COMPUTED:
            continue
        row = next(((theirs, name) for theirs, name in MAE if key.startswith(theirs)), None)
        if row is None:
            left.append(key)
            continue
        ours[row[1] + key[len(row[0]) :]] = channel_first(value, patch) if key.startswith("decoder_pred.") else value
    return ours, left


def to_mae(state: Mapping[str, Tensor], patch: tuple[int, int]) -> dict[str, Tensor]:
    """Our learner's names to the official ones (without the decoder's computed table)."""
    official = {}
    for key, value in state.items():
        row = next(((theirs, name) for theirs, name in MAE if key.startswith(name)), None)
        if row is not None:
            name = row[0] + key[len(row[1]) :]
            official[name] = channel_last(value, patch) if name.startswith("decoder_pred.") else value
    return official


def read(path: str) -> dict[str, Tensor]:
    """The state dict in a `.pth`/`.pt` or safetensors file; nothing is ever unpickled.

    Raises `Refused` with the file's name where it holds anything but tensors and plain containers.
    """
    import pickle

    from unmask.errors import Refused

    if str(path).endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise Refused(f"{path} is no readable safetensors file: {error}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refused(f"{path} is refused: it is no plain file of tensors, and nothing else is ever unpickled ({reason[:160]})") from None
    for nest in ("model", "state_dict", "module"):
        if isinstance(state, Mapping) and isinstance(state.get(nest), Mapping):
            state = state[nest]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Refused(f"{path} holds no state dict: a mapping of names to tensors is wanted")
    return dict(state)
