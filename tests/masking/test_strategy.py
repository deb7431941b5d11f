"""Cells, and ratios that move as a run goes on."""

import math

import pytest
import torch

from unmask import seeds
from unmask.masking import Random, cells_of


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
