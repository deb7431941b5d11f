"""Patches and places: for any number of axes, and equal to MAE's own tables."""

import itertools
import math

import pytest
import torch
from golden_files import names
from torch.testing import assert_close

from unmask.patches import grid_of, patchify, resize_places, sincos, unpatchify

SHAPES = [((12,), (4,)), ((8, 12), (4, 2)), ((6, 4, 10), (3, 2, 5)), ((16, 8), (8, 8))]


@pytest.mark.parametrize(("space", "patch"), SHAPES)
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_unpatchify_is_the_inverse(space, patch, channels):
    x = torch.randn(2, channels, *space)
    patches = patchify(x, patch)
    assert patches.shape == (2, math.prod(grid_of(space, patch)), channels * math.prod(patch))
    assert torch.equal(unpatchify(patches, grid_of(space, patch), patch), x)


@pytest.mark.parametrize(("space", "patch"), SHAPES)
def test_patchify_equals_a_loop(space, patch):
    """Raster order of patches; channel first, then raster order, within one."""
    x = torch.randn(2, 3, *space)
    places = itertools.product(*(range(side) for side in grid_of(space, patch)))
    for n, place in enumerate(places):
        cut = x[(slice(None), slice(None), *(slice(at * p, (at + 1) * p) for at, p in zip(place, patch)))]
        assert torch.equal(patchify(x, patch)[:, n], cut.flatten(1))


def test_patchify_equals_a_convolution():
    """The order within a vector is that of a convolution's weight, so timm's patch embedding is used as it is."""
    convolution, x = torch.nn.Conv2d(5, 7, (4, 2), (4, 2)), torch.randn(2, 5, 8, 12)
    rows = patchify(x, (4, 2)) @ convolution.weight.flatten(1).T + convolution.bias
    assert_close(rows, convolution(x).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_a_side_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match="33x32 cannot be cut into patches of 8x8"):
        patchify(torch.zeros(1, 3, 33, 32), (8, 8))


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 4)])
def test_places_equal_a_loop_and_differ(grid):
    width = 24
    table, part = sincos(grid, width), width // (2 * len(grid))
    for n, place in enumerate(itertools.product(*(range(side) for side in grid))):
        row = []
        for at in reversed(place):  # the last axis first
            angles = [at * 10000 ** (-k / part) for k in range(part)]
            row += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        assert_close(table[n], torch.tensor(row), rtol=0, atol=1e-6)
    assert len(table.unique(dim=0)) == math.prod(grid)


def test_columns_left_over_are_zero():
    assert sincos((2, 3), 22).shape == (6, 22) and not sincos((2, 3), 22)[:, 20:].any()


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mae_posembed", "output.table", "facebookresearch/mae@"))
def test_tables_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    for width, side in metadata["config"]["tables"]:
        table = torch.cat([torch.zeros(1, width), sincos((side, side), width)])
        tag = f"D{width}_G{side}"
        if f"output.table_{tag}" in tensors:
            assert_close(table, tensors[f"output.table_{tag}"], rtol=0, atol=1e-7)
        else:
            assert_close(table[tensors[f"input.rows_{tag}"]], tensors[f"output.table_rows_{tag}"], rtol=0, atol=1e-7)
            for total, values in (("sum", table), ("abssum", table.abs())):
                assert_close(values.double().sum().float(), tensors[f"output.table_{total}_{tag}"], rtol=1e-6, atol=0.01)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mae_posembed", "output.interp", "facebookresearch/mae@"))
def test_resizing_equals_the_official_code(golden, name):
    tensors, metadata = golden(name)
    for i, said in enumerate(metadata["config"]["interp"]):
        old, new = (said["old_grid"],) * 2, (said["new_grid"],) * 2
        resized = resize_places(tensors[f"input.interp{i}_table"], old, new, said["extra_tokens"])
        assert_close(resized, tensors[f"output.interp{i}_table"], rtol=1e-5, atol=1e-6)


def test_resizing_keeps_the_prefix_and_the_type():
    table = torch.randn(1, 2 + 6, 4, dtype=torch.float16)
    resized = resize_places(table, (2, 3), (4, 5), prefix=2)
    assert resized.shape == (1, 22, 4) and resized.dtype == torch.float16 and torch.equal(resized[:, :2], table[:, :2])
    assert resize_places(table, (2, 3), (2, 3), prefix=2) is table
