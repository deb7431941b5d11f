"""What a file of weights was found to be and what of it was taken: a few lines, or every name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unmask.interchange.families import shortly


@dataclass(frozen=True)
class Report:
    """The load report of weights that unmask did not write itself."""

    source: str
    network: str
    said: tuple[str, ...] = ()  # what was assumed, and what was changed without changing the function
    left: Mapping[str, list[str]] = field(default_factory=dict)  # names left out, by what they are

    def lines(self) -> list[str]:
        """A line for the network, one for each assumption, one for each group that was left out."""
        left = [f"left out: {shortly(names)} ({len(names)} tensor{'s' * (len(names) > 1)}), {what}" for what, names in self.left.items() if names]
        return [f"{self.source}: {self.network}", *(f"  {line}" for line in [*self.said, *left])]

    def whole(self) -> list[str]:
        """The same with every name that was left out."""
        left = [line for what, names in self.left.items() if names for line in (f"  left out, {what}:", *(f"    {name}" for name in names))]
        return [f"{self.source}: {self.network}", *(f"  {line}" for line in self.said), *left]


def network_in_words(name: str, trunk: Any) -> str:
    """A timm transformer in a phrase: its size, heads and input."""
    heads, patch, size = trunk.blocks[0].attn.num_heads, trunk.patch_embed.patch_size, trunk.patch_embed.img_size
    side = f"{patch[0]}" if patch[0] == patch[1] else f"{patch[0]}x{patch[1]}"
    channels = trunk.patch_embed.proj.in_channels
    count = trunk.num_prefix_tokens - (trunk.cls_token is not None)
    registers = f", {count} register tokens" if count else ""
    blocks = f"{len(trunk.blocks)} blocks of width {trunk.embed_dim}, {heads} heads{registers}"
    return f"{name}, {blocks}, patches of {side}, pictures of {size[0]}x{size[1]} with {channels} channel{'s' * (channels > 1)}"
