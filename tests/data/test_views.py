"""Crops: torchvision's law, Pillow's pixels, and what the device makes of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from unmask import seeds
from unmask.data.quarantine import BadSample
from unmask.data.raster import Bands
from unmask.data.views import Finish, centre_view, channels, crop_box, random_view, resized
from unmask.settings import Views


def _histogram(values, low, high):
    counts, _ = np.histogram(values, bins=20, range=(low, high))
    return counts / len(values)


@pytest.mark.golden
@pytest.mark.parametrize("width, height", [(500, 375), (224, 224), (600, 200)])
def test_crop_boxes_follow_the_official_law(golden, width, height):
    tensors, meta = golden("mae_augment")
    views = Views(scale=tuple(meta["config"]["pretrain_scale"]), ratio=tuple(meta["config"]["ratio"]))
    draws = 20_000
    top, left, h, w = np.array([crop_box(height, width, views, seeds.dice(0, "law", draw)) for draw in range(draws)]).T.astype(float)
    law = {key.rsplit(".", 1)[1]: value.numpy() for key, value in tensors.items() if key.startswith(f"law.pretrain_w{width}_h{height}.")}
    assert np.abs(_histogram(h * w / (height * width), 0, 1) - law["area_fraction_hist"]).max() < 0.012
    assert np.abs(_histogram(np.log(w / h), np.log(0.5), np.log(2)) - law["log_aspect_hist"]).max() < 0.012
    ours = np.array([h * w / (height * width), np.log(w / h), h, w, top, left])
    assert (np.abs(ours.mean(1) - law["mean"]) < 5 * law["std"] * np.sqrt(1 / draws + 1 / meta["config"]["draws"])).all()
    assert np.allclose(ours.std(1), law["std"], rtol=0.03)
    full = [(h == height).mean(), (w == width).mean(), ((h == height) & (w == width)).mean()]
    assert np.abs(np.array(full) - law["full_height_full_width_both"]).max() < 0.012
    free_rows, free_columns = h < height, w < width
    down, across = (top / (height - h + 1e-9))[free_rows], (left / (width - w + 1e-9))[free_columns]
    assert np.abs(np.array([down.mean(), down.std(), across.mean(), across.std()]) - law["rel_top_left_mean_std"]).max() < 0.012


@pytest.mark.golden
def test_resized_crop_is_pillows(golden):
    tensors, _ = golden("mae_augment")
    picture = tensors["input.picture_uint8"].permute(1, 2, 0).numpy()
    top, left, h, w = tensors["input.box_top_left_h_w"].tolist()
    ours = resized(picture[top : top + h, left : left + w], (32, 32), "bicubic").int()
    truth = tensors["output.resized_crop_uint8"].int()
    assert (ours - truth).abs().max() <= 1  # torch's kernel rounds its weights to 16 bits, Pillow's to 22
    assert (ours != truth).float().mean() < 0.01


@pytest.mark.golden
def test_evaluation_picture_is_pillows(golden):
    tensors, _ = golden("mae_augment")
    picture = Bands(tensors["input.picture_uint8"].permute(1, 2, 0).numpy())
    x = centre_view(picture, (32, 32), 3, True, share=32 / 37)
    finish = Finish((0,) * 3, (255,) * 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True)
    torch.testing.assert_close(finish(x[None], None, "cpu")[0], tensors["output.eval_resize37_crop32"], rtol=1e-5, atol=2e-6)


def test_evaluation_sizes_are_torchvisions():
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    rng = np.random.default_rng(0)
    for height, width in ((60, 80), (81, 40), (33, 200), (64, 64), (20, 31)):
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        theirs = Compose([Resize(36, InterpolationMode.BICUBIC), CenterCrop(32)])(Image.fromarray(pixels))
        assert np.array_equal(centre_view(Bands(pixels), (32, 32), 3, True).permute(1, 2, 0).numpy(), np.asarray(theirs)), (height, width)


def test_a_picture_of_the_right_size_is_taken_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    assert np.array_equal(centre_view(Bands(pixels), (32, 48), 3, True).permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("height, width", [(1, 1), (8, 3000), (3000, 8), (2, 5), (64, 160)])
def test_crops_of_odd_pictures_lie_within(height, width):
    for draw in range(200):
        top, left, h, w = crop_box(height, width, Views(), seeds.dice(0, "odd", draw), aspect=2.5)
        assert 0 <= top <= height - h and 0 <= left <= width - w and h >= 1 and w >= 1


def test_aspect_is_relative_to_the_input():
    boxes = np.array([crop_box(64, 160, Views(), seeds.dice(0, "aspect", draw), aspect=2.5) for draw in range(2000)])
    relative = boxes[:, 3] / boxes[:, 2] / 2.5
    assert relative.min() > 0.7 and relative.max() < 1.45 and abs(np.log(relative).mean()) < 0.03


def test_many_bands_equal_pillow_band_by_band():
    rng = np.random.default_rng(0)
    pixels = (rng.normal(size=(48, 40, 13)).cumsum(0) * 120 + 3000).astype(np.float32)
    ours = resized(pixels, (24, 30), "bicubic")
    for band in (0, 12):
        theirs = np.asarray(Image.fromarray(pixels[..., band]).resize((30, 24), Image.BICUBIC))
        assert np.allclose(ours[band].numpy(), theirs, rtol=1e-4, atol=0.5)


def test_grey_and_colour_become_each_other_and_nothing_else_does():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (16, 16, 3), np.uint8)
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    assert np.array_equal(channels(torch.from_numpy(colour).permute(2, 0, 1), 1)[0].numpy(), grey)
    assert torch.equal(channels(torch.from_numpy(grey)[None], 3)[2], torch.from_numpy(grey))
    with pytest.raises(BadSample, match="4 bands where the run has 3"):
        channels(torch.zeros(4, 8, 8, dtype=torch.uint8), 3)
    deep = torch.rand(1, 8, 8)
    assert torch.equal(channels(deep, 3)[1], deep[0])
    with pytest.raises(BadSample, match="3 bands where the run has 1"):
        channels(torch.zeros(3, 8, 8), 1)


def test_depths_mix_only_where_the_scale_is_known():
    deep = Bands(np.full((8, 8), 65535, np.uint16))
    assert (random_view(deep, (4, 4), Views(), seeds.dice(0, "v"), 3, True) == 255).all()
    with pytest.raises(BadSample, match="float32 picture among 8-bit"):
        random_view(Bands(np.ones((8, 8), np.float32)), (4, 4), Views(), seeds.dice(0, "v"), 3, True)
    with pytest.raises(BadSample, match="8-bit picture among"):
        random_view(Bands(np.ones((8, 8), np.uint8)), (4, 4), Views(), seeds.dice(0, "v"), 1, False)


def test_finish_flips_scales_and_normalises():
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    flip = torch.tensor([True, False, True, False])
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    x = Finish((0,) * 3, (255,) * 3, tuple(mean.tolist()), tuple(std.tolist()), True)(images, flip, "cpu")
    truth = (images / 255 - mean[:, None, None]) / std[:, None, None]
    truth[0], truth[2] = truth[0].flip(-1), truth[2].flip(-1)
    torch.testing.assert_close(x, truth, rtol=1e-5, atol=2e-6)
    deep = Finish((100.0,), (300.0,), (0.5,), (0.25,), False)(torch.tensor([0.0, 100, 200, 300, 900]).view(1, 1, 1, 5), None, "cpu")
    torch.testing.assert_close(deep.flatten(), torch.tensor([-2.0, -2, 0, 2, 2]))
