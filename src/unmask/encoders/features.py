"""What an encoder gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """Patch features, prefix features and, where asked for, those of inner layers.

    `patches` is (B, V, D) where masked patches are dropped (in the order of `mask.visible_ids`), else (B, N, D) in raster
    order. `prefix` (B, P, D) holds class and register tokens: they never share an axis with patches. `layers` holds the
    patch features of the blocks asked for at construction, before the final norm, shaped like `patches`; `prefixes` the prefix features of the same
    blocks.
    """

    patches: Tensor
    prefix: Tensor
    layers: tuple[Tensor, ...] = ()
    prefixes: tuple[Tensor, ...] = ()
