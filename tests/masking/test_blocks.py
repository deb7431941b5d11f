"""What rectangles promise beyond the laws (laws/test_masks.py): the official counts and frequencies."""

import math

import pytest
import torch
from golden_files import names
from torch.testing import assert_close

from unmask import seeds
from unmask.masking import Block
from unmask.methods.maskfeat import MaskFeat


def check_blocks(strategy: Block, grid: tuple[int, int], law: dict[str, torch.Tensor], other: int, draws: int = 10_000) -> None:
    """Counts, frequencies and neighbours of own draws against the official generator's, of which `other` were drawn."""
    H, W = grid
    mask = strategy((H, W), seeds.uniform((draws, strategy.draws((H, W))), 1, "law", H * W))
    masked, count = mask.map.reshape(draws, H, W).float(), mask.map.sum(1)
    assert torch.equal(count, (mask.weight > 0).sum(1))
    histogram = torch.bincount(count, minlength=H * W + 1) / draws
    assert (histogram.cumsum(0) - law["count_hist"].cumsum(0)).abs().max() < 0.02
    mean, std, least, most = law["count_mean_std_min_max"].tolist()
    assert abs(count.float().mean() - mean) < 5 * std * math.sqrt(1 / draws + 1 / other)
    assert abs(count.float().std() - std) < 0.05 and count.min() >= least - 5 and count.max() <= most
    frequency = law["frequency"]
    error = (frequency * (1 - frequency) * (1 / draws + 1 / other)).sqrt()
    assert ((masked.mean(0) - frequency).abs() < 4.6 * error).all()  # one cell of 4 × 200 beyond: once in 1,000 runs
    both = torch.stack([(masked[:, 1:] * masked[:, :-1]).mean(), (masked[:, :, 1:] * masked[:, :, :-1]).mean()])
    assert_close(both, law["neighbour_both_masked"], rtol=0, atol=0.006)
    borders = torch.stack([(masked[:, 1:] != masked[:, :-1]).sum((1, 2)).float().mean(), (masked[:, :, 1:] != masked[:, :, :-1]).sum((1, 2)).float().mean()])
    assert_close(borders, law["mean_borders"], rtol=0.015, atol=0)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit_mask", "law."))
def test_blocks_follow_beits_law(golden, name):
    tensors, metadata = golden(name)
    for said in metadata["config"]["configs"]:
        H, W, budget = said["height"], said["width"], said["budget"]
        law = {key.split(".")[-1]: value for key, value in tensors.items() if f"{H}x{W}_n{budget}_min{said['min_block']}_max{said['max_block']}." in key}
        strategy = Block(count=budget, smallest=said["min_block"], largest=said["max_block"], aspect=said["min_aspect"])
        check_blocks(strategy, (H, W), law, metadata["config"]["draws"])


@pytest.mark.golden
@pytest.mark.parametrize("name", names("maskfeat_mask", "law.image"))
def test_maskfeats_blocks_follow_its_law(golden, name):
    tensors, metadata = golden(name)
    for said in metadata["config"]["image"]:
        side, budget = said["grid"], said["budget"]
        law = {key.split(".")[-1]: value for key, value in tensors.items() if f"image_grid{side}_n{budget}_min{said['min_block']}_" in key}
        masking = MaskFeat(mask_ratio=budget / side**2).build("vit_tiny_patch16_224", (side, side), patch_size=1, width=8, depth=1, heads=1).masking
        assert masking.smallest == said["min_block"]
        check_blocks(masking, (side, side), law, metadata["config"]["draws"])


def test_exact_blocks_fill_up_at_random():
    strategy = Block(0.4, exact=True)
    noise = torch.rand(500, strategy.draws((14, 14)))
    mask, ragged = strategy((14, 14), noise), Block(0.4)((14, 14), noise)
    assert mask.weight is None and (mask.map.sum(1) == 78).all()
    assert (mask.map | ~ragged.map).all() and (ragged.map.sum(1) < mask.map.sum(1)).any()  # more, never other patches


@pytest.mark.parametrize("grid", [(4, 4), (6, 4), (7, 7), (8, 8), (14, 14), (6, 20)])
def test_blocks_find_room_on_any_grid(grid):
    strategy = Block(0.5)
    mask = strategy(grid, torch.rand(200, strategy.draws(grid)))
    empty = (~mask.map.any(1)).float().mean()  # ten tries in vain end a mask: on a narrow grid that happens before the first block, too
    assert empty < 0.05 and mask.map.float().mean() > 0.35


def test_budgets_may_differ_by_row():
    strategy, budget = Block(), torch.tensor([0.0, 20.0, 75.0, 150.0]).repeat(50)
    covered = strategy.rectangles((14, 14), budget, torch.rand(200, strategy.table, 4)).sum((1, 2))
    assert (covered <= budget).all() and (covered[0::4] == 0).all() and (covered[3::4] > 130).all()
