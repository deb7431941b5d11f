"""What an encoder gives."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

Layer: TypeAlias = int | Literal["input", "blocks"]  # a block whose output is kept (negative: from the end), what goes into the first, or all blocks


class Features(NamedTuple):
    """Patch features, prefix features and, where asked for, those of inner layers.

    `patches` is (B, V, D) where masked patches are dropped (in the order of `mask.visible_ids`), else (B, N, D) in raster
    order. `prefix` (B, P, D) holds class and register tokens: they never share an axis with patches. `layers` holds the
    patch features of the blocks asked for at construction, before the final norm, shaped like `patches`; `prefixes` the prefix features beside each.
    """

    patches: Tensor
    prefix: Tensor
    layers: tuple[Tensor, ...] = ()
    prefixes: tuple[Tensor, ...] = ()


def kept(layers: tuple[Layer, ...], depth: int) -> tuple[Layer, ...]:
    """The layers asked for of a network of `depth` blocks: numbers of blocks from 0, or "input"."""
    every = [range(depth) if layer == "blocks" else (layer if isinstance(layer, str) else layer % depth,) for layer in layers]
    return tuple(layer for some in every for layer in some)
