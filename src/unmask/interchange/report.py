"""What a file of weights was found to be and what of it was taken: a few lines, or every name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.hiera import Hiera
from timm.models.swin_transformer import SwinTransformer

from unmask.encoders.stem import in_chans_of, patch_of, size_of
from unmask.interchange.families import shortly


@dataclass(frozen=True)
class Report:
    """The load report of weights that unmask did not write itself."""

    source: str
    network: str
    said: tuple[str, ...] = ()  # what was assumed, and what was changed without changing the function
    left: Mapping[str, list[str]] = field(default_factory=dict)  # names left out, by what they are
    method: str = ""  # that made them, where names tell it: "data2vec"

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
    patch, size, channels = patch_of(trunk), size_of(trunk), in_chans_of(trunk)
    side = f"{patch[0]}" if patch[0] == patch[1] else f"{patch[0]}x{patch[1]}"
    what = _stages(trunk) if isinstance(trunk, SwinTransformer | Hiera | ConvNeXt) else f"{len(trunk.blocks)} blocks of width {trunk.embed_dim}, {trunk.blocks[0].attn.num_heads} heads{_places(trunk)}"
    return f"{name}, {what}, patches of {side}, pictures of {size[0]}x{size[1]} with {channels} channel{'s' * (channels > 1)}"


def _places(trunk: Any) -> str:
    """What is unusual about its tokens and their places."""
    if not isinstance(trunk, Beit):
        return f", {trunk.reg_token.shape[1]} register tokens" if trunk.reg_token is not None else ""
    if trunk.rel_pos_bias is not None:
        return ", one table of relative places"
    return ", relative places in each block" if trunk.blocks[0].attn.relative_position_bias_table is not None else ""


def _stages(trunk: Any) -> str:
    if isinstance(trunk, Hiera):
        counts = [end - before for before, end in pairwise([-1, *trunk.stage_ends])]
        return f"stages of {'-'.join(map(str, counts))} blocks, width {trunk.patch_embed.proj.out_channels} to {trunk.num_features}, pooled {trunk.q_pool} times"
    if isinstance(trunk, ConvNeXt):
        return f"stages of {'-'.join(str(len(stage.blocks)) for stage in trunk.stages)} blocks, width {trunk.stem[0].out_channels} to {trunk.num_features}"
    blocks = [list(stage.blocks) for stage in trunk.layers]
    windows = sorted({f"{block.window_size[0]}" for stage in blocks for block in stage}, key=int)
    return f"stages of {'-'.join(str(len(stage)) for stage in blocks)} blocks, width {trunk.patch_embed.proj.out_channels} to {trunk.num_features}, windows of {' and '.join(windows)}"
