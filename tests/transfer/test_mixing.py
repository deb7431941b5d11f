"""Mixing and erasing: the official pictures for given numbers, and timm's laws over many uniform ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_files import names
from timm.data.mixup import mixup_target

from unmask.transfer import mixing
from unmask.transfer.answers import Answers
from unmask.transfer.mixing import Erasing, Mixing

MANY = 20_000
FILES = names("data_timm", "input.mix_x")


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def histogram(values: torch.Tensor) -> torch.Tensor:
    return torch.histc(values.float(), 20, 0, 1) / len(values)


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_mixed_pictures_and_targets_are_the_official_ones(golden, name):
    tensors, metadata = golden(name)
    said = metadata["config"]
    x, labels = tensors["input.mix_x"], tensors["input.mix_labels"]
    targets = Answers("classes", said["classes"], said["smooth"]).targets(labels)
    reversed_batch = torch.arange(len(x)).flip(0)
    share = tensors["input.mix_lam"].float().reshape(1).expand(len(x))
    images, mixed = mixing.mixed(x, targets, reversed_batch, share)
    torch.testing.assert_close(images, tensors["output.mixup_x"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixed, tensors["output.mixup_target"], rtol=1e-6, atol=1e-6)
    box = tensors["input.cutmix_box_yl_yh_xl_xh"]
    left = 1 - float((box[1] - box[0]) * (box[3] - box[2])) / (x.shape[2] * x.shape[3])
    images, mixed = mixing.mixed(x, targets, reversed_batch, torch.full((len(x),), left), box.expand(len(x), 4))
    torch.testing.assert_close(images, tensors["output.cutmix_x"], rtol=0, atol=0)
    torch.testing.assert_close(mixed, tensors["output.cutmix_target"], rtol=1e-6, atol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_shares_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    said = metadata["config"]
    u = uniform(MANY, 4)
    over, cut = (mixing.drawn(mixing.beta_table(said[kind]), u[:, 1]) for kind in ("mixup", "cutmix"))
    _, left = mixing.boxes(cut, u[:, 2:], said["size"], said["size"])
    for values, law in ((over, "lam_hist_mixup"), (cut, "lam_hist_cutmix_drawn"), (left, "lam_hist_cutmix_corrected")):
        torch.testing.assert_close(histogram(values), tensors[f"law.mix_{law}"], rtol=0, atol=0.02)
    assert float(left.mean()) == pytest.approx(float(tensors["law.mix_lam_mean_cutmix_corrected"]), abs=0.015)
    assert float((u[:, 0] < Mixing(said["mixup"], said["cutmix"]).cut).float().mean()) == pytest.approx(float(tensors["law.mix_fraction_cutmix"]), abs=0.02)


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_erased_rectangles_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    side, chance = metadata["config"]["size"], metadata["config"]["reprob"]
    box = Erasing(chance).boxes(uniform(4 * MANY, Erasing.draws), side, side)
    h, w = box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]
    touched = h > 0
    assert float(touched.float().mean()) == pytest.approx(float(tensors["law.erase_fraction_images_touched"]), abs=0.02)
    area = (h * w)[touched] / side**2
    torch.testing.assert_close(histogram(area), tensors["law.erase_area_hist_per_block"], rtol=0, atol=0.02)
    assert float(area.mean()) == pytest.approx(float(tensors["law.erase_area_mean_per_block"]), abs=0.005)
    aspect = (h[touched] / w[touched]).log()
    torch.testing.assert_close(torch.stack([aspect.mean(), aspect.std()]), tensors["law.erase_log_aspect_mean_std"], rtol=0, atol=0.03)
    assert (box >= 0).all() and (box[:, 1] <= side).all() and (box[:, 3] <= side).all() and (h[touched] < side).all()
    found = sum(mixing.inside(part, side, side).float().mean(0) for part in box[:8000].split(500)) / 16  # (1, side, side)
    found = torch.nn.functional.adaptive_avg_pool2d(found, 8)[0]
    torch.testing.assert_close(found, tensors["law.erase_frequency_map_8x8"], rtol=0, atol=0.012)


@pytest.mark.parametrize("a", [0.2, 0.8, 1.0, 3.0])
def test_the_table_is_the_beta_law(a):
    from scipy.stats import beta

    u = uniform(2000)
    ours = mixing.drawn(mixing.beta_table(a), u)
    away = np.abs(ours.double().numpy() - beta.ppf(u.double().numpy(), a, a))
    assert away.mean() < 1e-4 and away.max() < 0.02  # the largest in the outermost cell of the table


def test_a_pair_stays_a_pair_in_any_part_of_a_batch():
    x, targets = uniform(8, 3, 6, 6, seed=1), torch.eye(8)
    noise, mix = uniform(8, 4, seed=2), Mixing(0.8, 1.0)
    whole = mix(x, targets, noise)
    parts = [mix(x[rows], targets[rows], noise, rows) for rows in torch.arange(8).split(2)]
    for ours, theirs in zip(whole, zip(*parts)):
        assert torch.equal(ours, torch.cat(theirs))
    assert not torch.equal(whole[0], x)
    assert torch.allclose(whole[1].sum(1), torch.ones(8)) and (whole[1] > 0).sum(1).max() == 2
    assert ((whole[1][0] > 0).nonzero().flatten().tolist()) in ([0, 1], [0])
    odd = mix(x[:1], targets[:1], noise, torch.tensor([0]))  # the neighbour is elsewhere: it stays as it is
    assert torch.allclose(odd[0], x[:1]) and torch.allclose(odd[1], targets[:1])


@pytest.mark.parametrize(("settings", "cut"), [((0.8, 0.0), False), ((0.0, 1.0), True)])
def test_one_kind_alone(settings, cut):
    x = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)] * 50)
    images, _ = Mixing(*settings)(x, torch.zeros(100, 2), uniform(100, 4))
    between = ((images > 0) & (images < 1)).any()
    assert bool(between) is not cut


def test_a_picture_of_any_shape_is_erased_within_its_bounds():
    x = torch.zeros(400, 3, 5, 17)
    torch.manual_seed(0)
    out = Erasing(1.0)(x, uniform(400, Erasing.draws))
    changed = (out != 0).float().mean((1, 2, 3))
    assert changed.max() <= 0.5 and (changed > 0).float().mean() > 0.9
    assert float(out[out != 0].std()) == pytest.approx(1, abs=0.05)
    assert torch.equal(Erasing(0.0)(x, uniform(400, Erasing.draws)), x)


def test_targets_are_those_of_timm():
    labels = torch.tensor([0, 3, 2, 2])
    ours = Answers("classes", 4, 0.1).targets(labels)
    assert torch.allclose(ours * 0.3 + ours.flip(0) * 0.7, mixup_target(labels, 4, 0.3, 0.1))
    tags = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.allclose(Answers("tags", 2, 0.1).targets(tags), mixup_target(tags, 2, 1.0, 0.1, multi_label=True))
