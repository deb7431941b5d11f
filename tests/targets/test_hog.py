"""Histograms of oriented gradients against the official code's, and what they are blind to."""

import re

import pytest
import torch
from golden_files import names
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.targets.hog import HOG
from unmask.testing import pictures

CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@pytest.mark.golden
@pytest.mark.parametrize("name", names("maskfeat_hog", "output.", "facebookresearch/SlowFast@"))
def test_histograms_equal_the_official_code(golden, name):
    tensors, _ = golden(name)
    found = 0
    for key, wanted in tensors.items():
        said = re.fullmatch(r"output\.(?:(\w+)_)?hog(\d+)_cell(\d+)", key)
        if said is None:
            continue  # the Gaussian window, which no published configuration uses, and frames of video
        bins, cell = int(said[2]), int(said[3])
        ours = HOG((2 * cell, 2 * cell), bins, cell).histograms(tensors[f"input.{said[1] or 'x'}"])
        assert_close(ours[: len(wanted)], wanted, **CLOSE)  # of some, the first picture only
        found += 1
    assert found >= 2


@pytest.mark.golden
@pytest.mark.parametrize("name", names("maskfeat_hog", "output.frames_target", "facebookresearch/SlowFast@"))
def test_a_frame_is_a_picture(golden, name):
    """Every second frame of a clip is described as a picture is, token by token."""
    tensors, _ = golden(name)
    frames = tensors["input.frames"][:, :, ::2]  # (B, C, T, H, W)
    ours = torch.cat([HOG((16, 16))(frames[:, :, time]) for time in range(frames.shape[2])], dim=1)
    assert_close(ours, tensors["output.frames_target"], **CLOSE)


def test_brightness_and_contrast_do_not_matter_and_direction_does():
    x = pictures(2, 3, (32, 32))
    target = HOG((16, 16))
    assert_close(target(3 * x + 1), target(x), rtol=1e-4, atol=1e-4)
    assert (target(x.transpose(2, 3)) - target(x)).abs().max() > 0.3
    lengths = target.histograms(x).norm(dim=2)
    assert_close(lengths, torch.ones_like(lengths))


def test_a_flat_picture_has_no_direction():
    assert not HOG((8, 8))(torch.full((1, 3, 16, 16), 0.7)).any()


@pytest.mark.parametrize(("patch", "cell"), [(16, 8), (14, 7), (8, 8), (4, 4), (12, 6), (32, 8), (5, 5)])
def test_cells_fit_the_patch(patch, cell):
    target = HOG((patch, patch))
    assert target.cell == cell and target(torch.rand(1, 2, 2 * patch, patch)).shape == (1, 2, target.values(2))


def test_cells_that_do_not_fit_are_refused():
    with pytest.raises(Refused, match="cells of 8"):
        HOG((12, 12), cell=8)
