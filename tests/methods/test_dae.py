"""The denoising autoencoder: there is no official code for such a network, so its parts are held against their definitions."""

import math

import pytest
import torch
from torch.testing import assert_close

from unmask.methods.dae import DAE, mixed, spread
from unmask.patches import patchify
from unmask.testing import SMALL, pictures
from unmask.visualize.answers import grid
from unmask.visualize.panels import Sheet


def learner(**words):
    torch.manual_seed(0)
    return DAE(**words).build(**SMALL, img_size=(32, 48))


def test_the_loss_is_the_squared_distance_to_the_clean_picture():
    made, x, noise = learner().eval(), pictures(3, 3, (32, 48)), torch.rand(3, 2)
    spoilt = made.spoilt(x, noise)
    said = made.predict(made.encoder.trunk.forward_features(spoilt)[:, 1:])  # timm's own forward of the noisy picture
    assert_close(made(x, noise)["loss"], (said - patchify(x, (8, 8))).square().mean())
    assert torch.equal(made(x, noise)["loss"], made({"image": x}, noise)["loss"])


@pytest.mark.parametrize(("noise", "amount"), [("gaussian", None), ("gaussian", 1.5), ("masking", None), ("masking", 0.7)])
def test_the_noise_is_what_it_is_called(noise, amount):
    made, x = learner(noise=noise, amount=amount), torch.full((8, 3, 64, 64), 2.0)
    spoilt = made.spoilt(x, torch.rand(8, 2, generator=torch.Generator().manual_seed(0)))
    values = (spoilt - x).flatten(1)
    assert not torch.equal(values[0], values[1])
    if noise == "masking":
        assert set(spoilt.unique().tolist()) == {0.0, 2.0}
        assert (spoilt == 0).float().mean() == pytest.approx(amount or 0.25, abs=0.01)
        return
    scale, n = amount or 0.5, values.numel()
    assert abs(values.mean()) < 5 * scale / math.sqrt(n) and values.std() == pytest.approx(scale, rel=0.02)
    normal = torch.distributions.Normal(0, scale)
    for point in (-2.0, -1.0, 0.0, 0.5, 1.0, 3.0):
        assert (values < point * scale).float().mean() == pytest.approx(normal.cdf(torch.tensor(point * scale)).item(), abs=5 / math.sqrt(n))
    for other in (values.roll(1, 1), values.roll(64, 1), values.roll(64 * 64, 1), values.roll(1, 0)):  # neighbours, channels, pictures
        assert abs((values * other).mean() / scale**2) < 5 / math.sqrt(n)


def test_numbers_follow_from_two_keys():
    keys = torch.tensor([[0.1, 0.2], [0.1, 0.2], [0.1 + 2**-24, 0.2], [0.1, 0.2 + 2**-24], [0.0, 0.0]])
    found = spread(keys, 5000)
    assert torch.equal(found[0], found[1]) and torch.equal(spread(keys[2:3], 5000)[0], found[2]) and found.min() > 0 and found.max() <= 1
    for one, other in ((0, 2), (0, 3), (2, 3), (0, 4)):
        assert abs(torch.corrcoef(torch.stack([found[one].flatten(), found[other].flatten()]))[0, 1]) < 0.05
    assert len(mixed(torch.arange(2**16)).unique()) == 2**16


def test_baselines_are_the_noise_and_the_mean_patch():
    made, x, noise = learner(amount=0.7), pictures(8, 3, (32, 48)), torch.rand(8, 2)
    found = made.baselines(x, noise)
    assert found["copy_noisy"] == pytest.approx(0.49, rel=0.05)
    truth = patchify(x, (8, 8)).flatten(0, 1)
    assert found["best_constant"] == pytest.approx((truth - truth.mean(0)).square().mean().item(), rel=1e-4)
    rows = torch.tensor([5, 2])
    assert torch.equal(made(x[rows], noise, rows=rows)["loss"], made(x[rows], noise[rows])["loss"])


def test_it_is_drawn(tmp_path):
    made = learner().train()
    image = grid(made, pictures(2, 3, (32, 48)), ["a.png", "b.png"], mean=(0.5,) * 3, std=(0.25,) * 3, out=tmp_path / "sheet.png")
    assert Sheet.of(image).header == ["original", "what the network saw", "prediction"] and made.training


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="amount"):
        DAE(noise="masking", amount=1.2)
    with pytest.raises(ValueError, match="amount"):
        DAE(amount=0.0)
