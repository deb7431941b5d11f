"""What each strategy promises beyond the laws (laws/test_masks.py): the official orders and frequencies."""

import math
import re

import pytest
import torch
from golden_files import names
from torch.testing import assert_close

from unmask import seeds
from unmask.masking import STRATEGIES, Block, Grid, Random, cells_of
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


@pytest.mark.parametrize(("ratio", "seen"), [(0.75, 49), (0.6, 78), (0.9, 19), (0.999, 1), (0.001, 195)])
def test_random_keeps_the_smallest_noise_in_order(ratio, seen):
    noise = torch.rand(3, 196)
    mask = Random(ratio)((14, 14), noise)
    order = noise.argsort(dim=1, stable=True)
    assert torch.equal(mask.visible_ids, order[:, :seen]) and torch.equal(mask.masked_ids, order[:, seen:])


def test_equal_noise_falls_the_same_way_everywhere():
    assert Random(0.5)((2, 4), torch.zeros(1, 8)).visible_ids.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("grid", "cell"), [((6, 8), 2), ((4, 6), (2, 3)), ((8, 4, 4), (8, 1, 1)), ((12,), 3)])
def test_cells_fall_whole(grid, cell):
    coarse, members = cells_of(grid, cell)
    assert members.flatten().sort().values.tolist() == list(range(math.prod(grid)))
    strategy = Random(0.6, cell)
    assert strategy.draws(grid) == math.prod(coarse)
    hidden = strategy(grid, torch.rand(20, strategy.draws(grid))).map[:, members]  # (B, cells, patches a cell)
    assert torch.equal(hidden.any(-1), hidden.all(-1))
    assert (hidden.all(-1).sum(1) == math.prod(coarse) - int(math.prod(coarse) * (1 - 0.6))).all()


def test_a_cell_is_a_neighbourhood():
    members = cells_of((4, 6), (2, 3))[1]
    assert members[0].tolist() == [0, 1, 2, 6, 7, 8] and members[3].tolist() == [15, 16, 17, 21, 22, 23]


def test_a_grid_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="7x7 patches cannot be cut into cells of 2x2"):
        Random(0.5, 2).draws((7, 7))


def test_simmim_masks_30_of_49_squares():
    strategy = Random(0.6, 2)
    assert strategy((14, 14), torch.rand(1, 49)).map.sum() == 30 * 4


def test_grid_shows_one_patch_of_every_four():
    strategy = Grid(0.75)
    visible = ~strategy((8, 8), torch.rand(50, strategy.draws((8, 8)))).map.reshape(50, 4, 2, 4, 2)
    assert (visible.sum((2, 4)) == 1).all()
    strategy = Grid(0.5)
    mask = strategy((8, 8), torch.rand(50, strategy.draws((8, 8)))).map.reshape(50, 8, 8)
    assert (mask[:, 1:] != mask[:, :-1]).all() and (mask[:, :, 1:] != mask[:, :, :-1]).all()  # a chequerboard
    assert mask[:, 0, 0].any() and not mask[:, 0, 0].all()  # moved by a random offset


@pytest.mark.parametrize("name", ["block", "grid"])
def test_rectangles_are_for_pictures(name):
    strategy = STRATEGIES[name](0.5)
    with pytest.raises(ValueError, match="is for pictures"):
        strategy((2, 4, 4), torch.rand(1, 999))


@pytest.mark.parametrize(
    ("ratio", "wanted"),
    [("0.5-0.9", {0.5 + 0.4 * level / 7 for level in range(8)}), (".5:.75", {0.5 + 0.25 * level / 7 for level in range(8)}), ("video", {0.9}), (0.6, {0.6})],
)
def test_ratios_take_few_values(ratio, wanted):
    strategy, found = Random(ratio), set()
    for step in range(500):
        strategy.prepare(step / 500, seeds.dice(0, "u", step).random())
        found.add(round(strategy.now, 9))
    assert found == {round(value, 9) for value in wanted}


def test_a_schedule_moves_and_a_range_jumps():
    schedule = Random(".5:.75")
    values = [(schedule.prepare(step / 99, 0.9), schedule.now)[1] for step in range(100)]
    assert values == sorted(values) and (values[0], values[-1]) == (0.5, 0.75)
    jumps = Random(".5-.75")
    assert (jumps.prepare(0.9, 0.0), jumps.now)[1] == 0.5 and (jumps.prepare(0.1, 0.999), jumps.now)[1] == 0.75


def test_names():
    assert set(STRATEGIES) >= {"random", "block", "grid"} and all(re.fullmatch(r"[a-z_]+", name) for name in STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_without_a_ratio_says_so(name):
    try:
        STRATEGIES[name](0.5)
        takes = True
    except ValueError:
        takes = False
    assert STRATEGIES[name].rated is takes
