"""The laws of training find what they are for: each is shown a method that breaks it."""

import copy

import pytest
import torch
from altered import altered
from torch import nn

from unmask import losses, testing
from unmask.decoders import Linear
from unmask.encoders.build import build
from unmask.masking import Random
from unmask.model import MaskedModel, Objective, Predict
from unmask.targets.pixels import Pixels
from unmask.testing import SMALL, Case, check_gradients, check_graph, check_learning, check_saving, pictures


def test_a_parameter_without_gradient():
    def idle(learner):
        learner.unused = nn.Parameter(torch.ones(3))

    with pytest.raises(AssertionError, match="unused"):
        check_gradients(altered(idle))


def test_a_loss_that_is_no_number():
    def spoil(learner):
        learner.objectives["pixels"].loss = lambda prediction, truth: (prediction - truth).mean(-1) / 0

    with pytest.raises(AssertionError, match="finite"):
        check_gradients(altered(spoil))


def test_a_broken_graph():
    def branch(learner):
        learner.objectives["pixels"].loss = lambda prediction, truth: losses.mse(prediction, truth) if truth.mean() > -9 else losses.l1(prediction, truth)

    with pytest.raises(Exception, match=r"(?i)data-dependent"):
        check_graph(altered(branch))


def test_a_graph_for_every_step():
    def count(learner):
        learner.steps = 0
        learner.before_step = lambda progress, u: setattr(learner, "steps", [str(progress)])
        learner.objectives["pixels"].loss = lambda prediction, truth: losses.mse(prediction, truth) * len(learner.steps[0])

    with pytest.raises(AssertionError, match="graphs were compiled"):
        check_graph(altered(count), progress=(0.1, 0.25, 0.125))


class Drifting(Objective):
    """Keeps something that no buffer holds."""

    def __init__(self):
        super().__init__()
        self.seen = 0.0

    def forward(self, features, mask, x, encoder):
        return features.patches.square().mean() + self.seen

    def follow(self, encoder, progress):
        self.seen += 1.0


def test_state_that_is_not_saved():
    def drift(learner):
        learner.objectives["drift"] = Drifting()

    with pytest.raises(AssertionError, match="no buffer"):
        check_saving(altered(drift))


def test_a_loss_that_does_not_fall():
    def invert(learner):
        learner.objectives["pixels"].loss = lambda prediction, truth: losses.mse(prediction.detach() + 0 * prediction, truth)

    with pytest.raises(AssertionError, match="the loss went"):
        check_learning(altered(invert))


def test_learners_of_ones_own_sizes():
    def make():
        encoder = build(**SMALL, img_size=(32, 32), masked="token")
        return MaskedModel(encoder, Random(0.5), {"pixels": Predict(Linear(48, 192), Pixels((8, 8)), losses.mse)})

    case = Case(make, pictures(4), 4)
    before = copy.deepcopy(torch.random.get_rng_state())
    for law in (testing.check_leak, testing.check_gradients, testing.check_saving, testing.check_learning):
        law(case)
    assert torch.equal(before, torch.random.get_rng_state())  # the laws leave the generators as they were
