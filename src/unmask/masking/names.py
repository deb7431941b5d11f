"""The strategies that `--method.masking` and `unmask show mask` know by name."""

from __future__ import annotations

from unmask.masking.blocks import Block, InverseBlock, MultiBlock
from unmask.masking.prefix import Prefix
from unmask.masking.scattered import Attended, Grid, Random
from unmask.masking.strategy import Masking

STRATEGIES: dict[str, type[Masking]] = {
    "random": Random, "block": Block, "inverse_block": InverseBlock, "multi_block": MultiBlock, "grid": Grid, "prefix": Prefix,
    "attention": Attended,
}
