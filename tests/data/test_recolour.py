"""Several views of a picture: the official laws, torchvision's arithmetic, and the same views whoever reads them."""

import itertools
import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as torchvision

from unmask import seeds
from unmask.data import recolour
from unmask.data.loader import Pictures
from unmask.data.recolour import PLAIN, local_size, views_of
from unmask.data.sources import Source
from unmask.data.statistics import Format
from unmask.data.views import crop_box
from unmask.settings import Crops

DRAWS = 20_000
LAWS = {  # what each paper's own code says, and which of our views its branches are
    "dino_aug_law": (Crops(blur=(1.0, 0.1, 0.5), solarise=(0.0, 0.2, 0.0), local_crops=1), {"global1": 0, "global2": 1, "local": 2}),
    "dinov2_aug_law": (Crops(blur=(0.0, 0.9, 0.5), solarise=(0.0, 0.2, 0.0), local_crops=1, blur_kernel="9 taps"), {"global1": 0, "global2": 1, "local": 2}),
    "mocov3_aug_law": (Crops(blur=(1.0, 0.1, 0.0), solarise=(0.0, 0.2, 0.0), interpolation="bilinear"), {"view1": 0, "view2": 1}),
}


def _cumulative(values, low, high):
    counts, _ = np.histogram(values, bins=20, range=(low, high))
    return np.cumsum(counts / len(values))


@pytest.mark.golden
@pytest.mark.parametrize("name", LAWS)
def test_views_follow_the_official_law(golden, name):
    tensors, meta = golden(name)
    config, (crops, branches) = meta["config"], LAWS[name]
    scale = tuple(map(float, config.get("global_scale", config.get("crop_scale"))))
    crops = Crops(**{**vars(crops), "global_scale": scale, "local_scale": tuple(config.get("local_scale", (0.05, 0.4))), "jitter_by": tuple(config["jitter"])})
    views = views_of(crops, (224, 224))
    assert local_size((224, 224), (16, 16)) == (96, 96)
    for branch, number in branches.items():
        law = {key.rsplit(".", 1)[1]: value.numpy() for key, value in tensors.items() if key.startswith(f"law.{branch}.")}
        dice = [seeds.dice(1, "law", number, draw) for draw in range(DRAWS)]
        top, left, h, w = np.array([crop_box(375, 500, views[number].cut, one) for one in dice]).T.astype(float)
        flips = [one.random() < crops.flip for one in dice]
        table = np.array([recolour.draw(crops, views[number], one) for one in dice])
        jittered, sigma = table[:, 0] != PLAIN, table[:, 9]
        ours = [np.mean(flips), jittered.mean(), table[:, 8].mean(), (sigma > 0).mean(), table[:, 10].mean()]
        assert np.abs(np.array(ours) - law["freq"]).max() < 0.02
        assert abs((jittered & (table[:, 8] > 0)).mean() - law["joint_jitter_and_gray"]) < 0.02
        some = table[jittered]
        shown = {"area": (h * w / (375 * 500), 0, 1), "log_aspect": (np.log(w / h), -0.4, 0.4), "hue": (some[:, 7], -0.15, 0.15)}
        shown |= {what: (some[:, 4 + place], 0.5, 1.5) for place, what in enumerate(("brightness", "contrast", "saturation"))}
        shown |= {"blur": (sigma[sigma > 0], 0, 2.2)} if "blur_hist" in law else {}
        for what, (values, low, high) in shown.items():
            bound = max(0.02, 2 * math.sqrt(2 / len(values)))  # two samples of this size: a second view is seldom blurred
            assert np.abs(_cumulative(values, low, high) - np.cumsum(law[f"{what}_hist"])).max() < bound, what
        orders = ["".join("bcsh"[int(change)] for change in row[:4]) for row in some]
        assert config["jitter_orders"] == sorted(map("".join, itertools.permutations("bchs")))
        frequency = np.array([orders.count(order) for order in config["jitter_orders"]]) / len(orders)
        assert np.abs(frequency - law["jitter_order_freq"]).max() < 0.012
        free = [(top / (375 - h + 1e-9))[h < 375].mean(), (left / (500 - w + 1e-9))[w < 500].mean()]
        assert np.abs(np.array(free) - law["top_mean_left_mean"]).max() < 0.02


def test_changes_are_torchvisions():
    x = torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    x[0, :, 0] = 0.5  # greys have no hue
    factors = torch.tensor([0.6, 1.0, 1.3, 1.4]).view(4, 1, 1, 1)
    turns = torch.tensor([-0.1, 0.0, 0.05, 0.1]).view(4, 1, 1, 1)
    changes = ((recolour.brightness, torchvision.adjust_brightness, factors), (recolour.contrast, torchvision.adjust_contrast, factors))
    changes += ((recolour.saturation, torchvision.adjust_saturation, factors), (recolour.hue, torchvision.adjust_hue, turns))
    for ours, theirs, by in changes:
        truth = torch.stack([theirs(one, float(factor)) for one, factor in zip(x, by)])
        torch.testing.assert_close(ours(x, by), truth, rtol=1e-5, atol=3e-6)
    blurred = torch.stack([torchvision.gaussian_blur(one, [9, 9], [float(s)] * 2) for one, s in zip(x, factors)])
    torch.testing.assert_close(recolour.blur(x, factors, "9 taps"), blurred, rtol=1e-5, atol=1e-6)
    whole = torchvision.gaussian_blur(torch.nn.functional.pad(x, (20,) * 4, mode="replicate"), [41, 41], [1.4, 1.4])[..., 20:-20, 20:-20]
    torch.testing.assert_close(recolour.blur(x, torch.full((4, 1, 1, 1), 1.4), "whole"), whole, rtol=0, atol=1e-5)


@pytest.mark.golden
def test_simclrs_blur(golden):
    tensors, _ = golden("simclr")
    x = tensors["input.blur_image"].permute(2, 0, 1)[None]
    found = [key for key in tensors if key.startswith("output.blur.sigma")]
    assert found
    for key in found:
        ours = recolour.blur(x, torch.full((1, 1, 1, 1), float(key.removeprefix("output.blur.sigma"))), "a tenth")
        torch.testing.assert_close(ours[0].permute(1, 2, 0), tensors[key], rtol=1e-5, atol=2e-6)


def test_each_view_is_changed_by_its_own_numbers():
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = [PLAIN] * 4 + [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    table = torch.tensor([plain, [3, 0, 1, 2, 0.7, 1.2, 0.9, 0.1, 1, 1.5, 1], [1, 0, 3, 2, 0.7, 1.2, 0.9, 0.1, 0, 0, 0]])
    found = recolour.recolour(x.clone(), table, "whole")
    assert torch.equal(found[0], x[0])
    step = torchvision.adjust_saturation(torchvision.adjust_hue(torchvision.adjust_brightness(torchvision.adjust_contrast(x[2], 1.2), 0.7), 0.1), 0.9)
    torch.testing.assert_close(found[2], step, rtol=1e-5, atol=1e-5)
    step = torchvision.adjust_saturation(torchvision.adjust_contrast(torchvision.adjust_brightness(torchvision.adjust_hue(x[1], 0.1), 0.7), 1.2), 0.9)
    step = recolour.blur(recolour.grey(step[None]), torch.full((1, 1, 1, 1), 1.5), "whole")[0]
    torch.testing.assert_close(found[1], torch.where(step >= 128 / 255, 1 - step, step).expand(3, -1, -1), rtol=1e-4, atol=1e-5)
    bands = recolour.recolour(torch.rand(3, 7, 8, 8), table, "whole")  # no colours to lose, nothing to turn
    assert bands.shape == (3, 7, 8, 8) and bands.min() >= 0 and bands.max() <= 1


class Some(Source):
    """Coloured pictures, of 8 bits or deeper, one of which cannot be read."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 11

    def name(self, index):
        return f"sample {index}"

    def raw(self, index):
        from unmask.data.quarantine import BadSample

        if index == 4:
            raise BadSample("broken")
        return np.random.default_rng(index).integers(0, np.iinfo(self.kind).max, (40, 30 + index, 3), self.kind)


def pictures(kind=np.uint8, crops=None, seed=3):
    top = (float(np.iinfo(kind).max),) * 3
    crops = crops or Crops(local_crops=3, local_size=(12, 8))
    return Pictures(Some(kind), Format(3, (0,) * 3, top, (0.4, 0.5, 0.6), (0.25, 0.2, 0.3)), crops, (16, 24), seed=seed, max_bad_share=0.5)


def read(batches):
    return [{name: value for name, value in batch.items() if isinstance(value, torch.Tensor)} for batch in batches]


def equal(one, two):
    assert one and len(one) == len(two)
    for a, b in zip(one, two):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_batch_holds_global_and_local_views(kind):
    some = pictures(kind)
    assert some.format.eight_bit == (kind == np.uint8)
    (batch,) = some.batches(5, 0, 1)
    assert batch["global"].shape == (10, 3, 16, 24) and batch["local"].shape == (15, 3, 12, 8) and len(batch["index"]) == 5
    x = some.finish(batch, "cpu")
    assert list(x) == ["global", "local", "sample"] and torch.equal(x["sample"], batch["index"])
    assert all(x[name].dtype == torch.float32 and x[name].isfinite().all() for name in ("global", "local"))
    shown = x["global"] * torch.tensor((0.25, 0.2, 0.3))[:, None, None] + torch.tensor((0.4, 0.5, 0.6))[:, None, None]
    assert shown.min() > -1e-4 and shown.max() < 1.0001 and shown.std() > 0.1


def test_views_are_the_same_at_any_worker_count_step_and_process():
    whole = read(pictures().batches(4, 0, 8))
    equal(whole, read(pictures().batches(4, 0, 8, workers=2)))
    equal(whole[5:], read(pictures().batches(4, 5, 3)))
    parts = [read(pictures().batches(4, 0, 1, rank=rank, world=2))[0] for rank in range(2)]
    for name in ("global", "local", "local.recolour", "global.flip"):
        halves = [part[name].unflatten(0, (-1, 2)) for part in parts]  # (views, 2, …): view-major
        assert torch.equal(torch.cat(halves, 1).flatten(0, 1), whole[0][name])
    assert not torch.equal(whole[0]["global"], read(pictures(seed=4).batches(4, 0, 1))[0]["global"])


def test_each_view_has_dice_of_its_own():
    fewer, more = pictures(crops=Crops()), pictures()
    (one,), (two,) = fewer.batches(4, 0, 1), more.batches(4, 0, 1)
    assert "local" not in one and torch.equal(one["global"], two["global"]) and torch.equal(one["global.recolour"], two["global.recolour"])
    first, second = one["global.recolour"].chunk(2)
    assert not torch.equal(first, second) and not torch.equal(*one["global"].chunk(2))


def test_small_inputs_are_blurred_less():
    small, large = (views_of(Crops(), (side, side))[0] for side in (56, 448))
    sigmas = [[recolour.draw(Crops(), view, seeds.dice(0, "soft", draw))[9] for draw in range(300)] for view in (small, large)]
    assert max(sigmas[0]) == pytest.approx(max(sigmas[1]) / 4) and 1.9 < max(sigmas[1]) < 2


@pytest.mark.parametrize("kernel", ["whole", "9 taps", "a tenth"])
def test_the_smallest_views_are_blurred_too(kernel):
    x, sigma = torch.rand(2, 3, 4, 4), torch.full((2, 1, 1, 1), 0.4)
    assert recolour.blur(x, sigma, kernel).shape == x.shape


def test_local_crops_are_whole_patches():
    assert local_size((224, 224), (14, 14)) == (98, 98) and local_size((64, 32), (8, 8)) == (24, 16) and local_size((32, 32), (16, 16)) == (16, 16)
    with pytest.raises(ValueError, match="global_scale must have its smaller number first"):
        Crops(global_scale=(1.0, 0.4))
    assert math.isclose(sum(view.name == "local" for view in views_of(Crops(local_crops=8), (224, 224))), 8)
