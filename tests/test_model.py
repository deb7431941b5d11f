"""How a learner draws masks for views, for several masks a picture, and for its part of a batch."""

import pytest
import torch
from torch.testing import assert_close

from unmask import losses
from unmask.decoders import Linear, Transformer
from unmask.encoders.build import build
from unmask.mask import Mask
from unmask.masking import Random
from unmask.model import Learner, MaskedModel, Predict, first
from unmask.settings import Train
from unmask.targets.pixels import Pixels
from unmask.targets.target import Target
from unmask.testing import SMALL, pictures


def model(views=1, masks=1, ratio=0.75) -> MaskedModel:
    torch.manual_seed(0)
    encoder = build(**SMALL, img_size=(32, 32))
    decoder = Transformer(encoder.width, 192, (4, 4), width=32, depth=1, heads=1)
    return MaskedModel(encoder, Random(ratio), {"pixels": Predict(decoder, Pixels((8, 8)), losses.mse)}, views, masks)


@pytest.mark.parametrize(("views", "masks"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_noise_is_laid_out_view_major_with_masks_together(views, masks):
    learner, samples = model(views, masks), 2
    x = pictures(views * samples)
    assert learner.draws(x) == views * masks * 16
    noise = torch.rand(samples, views * masks * 16)
    mask, each = learner.draw_mask(x, noise), noise.reshape(samples, views, masks, 16)
    for v in range(views):
        for b in range(samples):
            for k in range(masks):
                row = (v * samples + b) * masks + k
                assert torch.equal(mask.visible_ids[row], each[b, v, k].argsort()[:4])


@pytest.mark.parametrize(("views", "masks"), [(1, 1), (2, 3)])
def test_a_part_of_the_batch_gets_its_rows_of_the_whole_mask(views, masks):
    learner, samples = model(views, masks), 6
    noise = torch.rand(samples, views * masks * 16)
    whole, rows = learner.draw_mask(pictures(views * samples), noise), torch.tensor([4, 1])
    part = learner.draw_mask(pictures(views * 2), noise, rows)
    wanted = [(v * samples + b) * masks + k for v in range(views) for b in rows.tolist() for k in range(masks)]
    assert torch.equal(part.visible_ids, whole.visible_ids[wanted]) and torch.equal(part.masked_ids, whole.masked_ids[wanted])


def test_a_given_mask_goes_before_noise_and_none_is_drawn_anew():
    learner, x = model().eval(), pictures(2)
    mask = learner.draw_mask(x, torch.rand(2, 16))
    assert torch.equal(learner(x, torch.rand(2, 16), mask=mask)["loss"], learner(x, mask=mask)["loss"])
    assert learner(x)["loss"] != learner(x)["loss"]


def test_several_masks_a_picture_equal_the_picture_several_times():
    learner, x = model(masks=3).eval(), pictures(2)
    mask = learner.draw_mask(x)
    assert_close(learner(x, mask=mask)["loss"], learner(x.repeat_interleave(3, 0), mask=mask)["loss"])


class Ones(Target):
    def forward(self, x):
        return torch.ones(len(x), 16, 3)

    def baseline(self, truth, loss):
        return torch.zeros(())


def test_the_loss_is_the_sum_of_its_parts():
    learner, x = model(), pictures(2)
    again = Predict(Linear(48, 3), Ones(), losses.l1)
    learner.encoder = build(**SMALL, img_size=(32, 32), masked="token")
    learner.objectives = torch.nn.ModuleDict({"ones": again, "twos": again})
    parts = learner(x, torch.rand(2, 16))
    assert list(parts) == ["ones", "twos", "loss"] and parts["loss"].isclose(parts["ones"] + parts["twos"])
    learner.objectives["ones"] = Predict(Linear(48, 3), Ones(), losses.l1, also=lambda step: step.each.sum(), named="threes")
    parts = learner(x, torch.rand(2, 16))
    assert list(parts) == ["ones", "threes", "twos", "loss"] and parts["loss"].isclose(parts["ones"] + parts["twos"] + parts["threes"])
    for name in learner.objectives:
        learner.objectives[name] = Predict(Linear(48, 3), Ones(), losses.l1, also=lambda step: step.each.sum(), named="twos")
    parts = learner(x, torch.rand(2, 16))
    assert list(parts) == ["ones", "ones.twos", "twos", "twos.twos", "loss"] and parts["loss"].isclose(sum(parts[name] for name in list(parts)[:-1]))


def test_predict_says_what_is_predicted_and_what_is_true():
    learner, x = model().eval(), pictures(2)
    mask = learner.draw_mask(x)
    found = learner.predict(x, mask)
    assert found["features"].patches.shape == (2, 4, 48) and not found["prediction"].requires_grad
    assert_close(mask.mean(losses.mse(found["prediction"], found["truth"])), learner(x, mask=mask)["loss"])
    everything = learner.predict(x, Mask.all(2, (4, 4)))  # for viewers that mask by hand
    assert everything["prediction"].shape == (2, 16, 192)


def test_the_first_entry_is_masked():
    x, y = pictures(2), pictures(2, seed=1)
    noise, learner = torch.rand(2, 16), model().eval()
    assert first({"a": x, "b": y}) is x is first(x)
    assert torch.equal(learner({"a": x, "b": y}, noise)["loss"], learner(x, noise)["loss"])


def test_before_step_sets_the_ratio_and_nothing_else():
    learner = model(ratio=".5:.75")
    learner.before_step(1.0, 0.3)
    assert learner.draw_mask(pictures(2)).masked_ids.shape[1] == 12
    learner.before_step(0.0, 0.3)
    assert learner.draw_mask(pictures(2)).masked_ids.shape[1] == 8


class Plain(Learner):
    """The least a learner is: no encoder, no noise, no groups."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, noise=None, mask=None, rows=None):
        return {"loss": (first(x).mean() - self.weight).square()}


def test_a_learner_needs_only_forward():
    learner, x = Plain(), pictures(2)
    assert learner.draws(x) == 0 and learner.draw_mask(x) is None and learner.parameter_groups(Train()) is None
    learner.before_step(0.5, 0.5)
    learner(x)["loss"].backward()
    learner.after_step(0.5)
    with pytest.raises(TypeError):
        Learner()
