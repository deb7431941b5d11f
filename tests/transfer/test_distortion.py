"""RandAugment from the sample's own dice: timm's arguments, pictures and law."""

from __future__ import annotations

import random

import pytest
import torch
from golden_files import names

from unmask import seeds
from unmask.transfer.distortion import OPERATIONS, Distortion, argument

FILES = names("data_timm", "input.ra_picture_uint8")


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_arguments_are_the_official_ones(golden, name):
    tensors, metadata = golden(name)
    assert list(OPERATIONS) == metadata["config"]["ra_ops"]
    for sign, word in ((1, "positive"), (-1, "negative")):
        wanted = tensors[f"output.ra_arguments_at_0_5_9_10_{word}"]
        ours = torch.tensor([[(*argument(name, level, sign), float("nan"))[0] for level in (0, 5, 9, 10)] for name in OPERATIONS])
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_pictures_are_the_official_ones(golden, name):
    tensors, metadata = golden(name)
    picture, level = tensors["input.ra_picture_uint8"], metadata["config"]["pm"]

    class Once(Distortion):
        def drawn(self, dice, channels=3):
            return [(dice, argument(dice, level, 1))]

    distort = Once(9.0, 0.0, (124, 116, 104))
    for name, wanted in zip(OPERATIONS, tensors["output.ra_pictures_uint8"]):
        assert torch.equal(distort(picture, name), wanted), name  # both by Pillow


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_what_is_drawn_follows_the_official_law(golden, name):
    tensors, _ = golden(name)
    distort = Distortion(9.0, 0.0, (0, 0, 0))
    drawn = [distort.drawn(seeds.dice(0, "view", 0, i)) for i in range(20_000)]
    count = torch.bincount(torch.tensor([len(one) for one in drawn]), minlength=3) / len(drawn)
    torch.testing.assert_close(count, tensors["law.ra_applied_ops_hist"], rtol=0, atol=0.02)
    each = [name for one in drawn for name, _ in one]
    share = torch.tensor([each.count(name) / len(each) for name in OPERATIONS])
    torch.testing.assert_close(share, tensors["law.ra_op_share"], rtol=0, atol=0.02)
    levels = torch.tensor([abs(value) / 0.3 * 10 for one in drawn for name, (value, *_) in ((n, v) for n, v in one if n == "ShearX")])
    found = torch.stack([levels.mean(), levels.std(), (levels > 9.999).float().mean()])
    torch.testing.assert_close(found, tensors["law.ra_magnitude_mean_std_share_at_10"], rtol=0, atol=0.03)
    signs = torch.tensor([value > 0 for one in drawn for name, (value, *_) in ((n, v) for n, v in one if n == "ShearX")])
    assert float(signs.float().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("channels", [1, 3])
def test_any_strength_gives_a_picture_of_the_same_kind_and_the_same_dice_the_same(channels):
    x = torch.randint(0, 256, (channels, 20, 14), dtype=torch.uint8)
    distort = Distortion(10.0, 0.4, (100,) * channels)
    for i in range(150):
        once, again = (distort(x, random.Random(i)) for _ in range(2))
        assert once.shape == x.shape and once.dtype == torch.uint8 and torch.equal(once, again)
    assert torch.equal(Distortion(0.0, 0.0, (0,) * channels)(x, random.Random(0)), x)


def test_at_the_cap_no_bit_is_kept():
    x = torch.full((3, 4, 4), 200, dtype=torch.uint8)

    class Posterized(Distortion):
        def drawn(self, dice, channels=3):
            return [("PosterizeIncreasing", argument("PosterizeIncreasing", 10.0, 1))]

    assert not Posterized(9.0, 0.0, (0, 0, 0))(x, random.Random(0)).any()
