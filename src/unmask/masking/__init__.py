"""Strategies: which patches are masked, as a pure function of uniform numbers.

A strategy scores *cells*: sets of patches that are masked together (one patch, SimMIM's 32-pixel square, a tube through
time). The cells with the highest scores are masked. `strategy(grid, noise)` takes noise (B, draws(grid)) in [0, 1).
"""

from unmask.masking.blocks import Block, InverseBlock, MultiBlock
from unmask.masking.names import STRATEGIES
from unmask.masking.prefix import Prefix
from unmask.masking.scattered import Attended, Grid, Random
from unmask.masking.strategy import Masking, cells_of, highest
from unmask.masking.views import HalfOfViews, SomeViews

__all__ = [
    "STRATEGIES", "Attended", "Block", "Grid", "HalfOfViews", "InverseBlock", "Masking", "MultiBlock", "Prefix", "Random", "SomeViews",
    "cells_of", "highest",
]
