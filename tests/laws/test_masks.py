"""The contract of a strategy: a new one joins by a row of `STRATEGIES`."""

import pytest
import torch

from unmask.masking import Attended, Block, Grid, HalfOfViews, InverseBlock, MultiBlock, Prefix, Random, SomeViews
from unmask.testing import check_masking

STRATEGIES = {  # the strategy, a grid, and what it does not promise
    "random": (Random(0.75), (14, 14), {}),
    "random, a long grid": (Random(0.75), (3, 20), {}),
    "random in one dimension": (Random(0.6), (50,), {}),
    "random in three": (Random(0.9), (4, 6, 6), {}),
    "random, a part of it predicted (CrossMAE)": (Random(0.75, predicted=0.25), (14, 14), {"partition": False}),
    "squares": (Random(0.6, cell=2), (8, 6), {}),
    "tubes": (Random(0.9, cell=(4, 1, 1)), (4, 6, 6), {}),
    "a range": (Random("0.5-0.9"), (8, 8), {}),
    "a schedule": (Random("0.5:0.75"), (8, 8), {}),
    "blocks": (Block(0.4), (14, 14), {}),
    "blocks, filled up": (Block(0.4, exact=True), (14, 14), {}),
    "blocks, BEiT's budget": (Block(count=75), (14, 14), {}),
    "blocks on a small grid": (Block(0.75, exact=True), (4, 4), {}),
    "blocks of a moving ratio": (Block("0.2-0.5"), (12, 8), {}),
    "grid": (Grid(0.75), (14, 14), {}),
    "grid at another ratio": (Grid(0.6), (7, 9), {}),
    "squares that stay": (InverseBlock(0.8), (14, 14), {}),
    "squares that stay, a moving ratio, a long grid": (InverseBlock("0.6-0.9"), (5, 9), {}),
    "several blocks and a context (I-JEPA)": (MultiBlock(), (14, 14), {"partition": False, "alone": False}),
    "everything after a prefix (AIM)": (Prefix(), (6, 8), {}),
    "guided by attention that is the same everywhere": (Attended(0.75), (14, 14), {}),
    "iBOT's blocks": (SomeViews(), (14, 14), {}),
    "iBOT's patches at random": (SomeViews(blocks=False), (7, 9), {}),
    "DINOv2's half of the views": (HalfOfViews(), (14, 14), {"alone": False}),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy(name):
    strategy, grid, promises = STRATEGIES[name]
    check_masking(strategy, grid, **promises)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if not any(word in name for word in ("JEPA", "AIM", "stay"))])
def test_every_patch_is_hidden_as_often_as_the_law_says(name):
    """Uniform strategies hide every patch alike; blocks hide the middle more often than the corners."""
    strategy, grid, _ = STRATEGIES[name]
    strategy.prepare(0.5, 0.5)
    share = strategy(grid, torch.rand(3000, strategy.draws(grid), generator=torch.Generator().manual_seed(0))).map.float().mean(0)
    error = (share.mean() * (1 - share.mean()) / 3000).sqrt()
    if isinstance(strategy, Random | Attended) or "at random" in name:
        assert (share - share.mean()).abs().max() < 4.5 * error
    elif isinstance(strategy, Grid):  # a pattern of 4 × 4 cannot be just to every patch of 7 × 9
        assert (share - share.mean()).abs().max() < 0.08
    else:
        share = share.reshape(grid)
        corners = torch.stack([share[0, 0], share[0, -1], share[-1, 0], share[-1, -1]])
        assert share[grid[0] // 2, grid[1] // 2] > corners.max() > 0 and (corners - corners.mean()).abs().max() < 4.5 * error
        assert (share - share.flip(0)).abs().max() < 6 * error and (share - share.flip(1)).abs().max() < 6 * error
