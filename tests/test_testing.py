"""The laws find what they are for: each is shown a part that breaks it."""

import copy
import functools

import pytest
import torch
from torch import nn

from unmask import losses, testing
from unmask.decoders import Linear
from unmask.encoders.build import build
from unmask.mask import Mask
from unmask.masking import Random
from unmask.methods.mae import MAE
from unmask.model import MaskedModel, Objective, Predict
from unmask.targets.pixels import Pixels
from unmask.testing import (
    SMALL,
    Case,
    case_of,
    check_gradients,
    check_graph,
    check_leak,
    check_learning,
    check_masking,
    check_saving,
    check_target,
    pictures,
)


class Altered(Case):
    """MAE with something done to its learner."""

    def learner(self, seed=0):
        learner = super().learner(seed)
        self.build.keywords["alter"](learner)
        return learner


def build_altered(alter, **words):
    return MAE(decoder_depth=1).build(**words)


def altered(alter) -> Case:
    case = case_of(MAE())
    return Altered(functools.partial(build_altered, alter=alter, **case.build.keywords), case.x, case.samples)


def test_a_leak_through_the_encoder():
    def blur(learner):
        take = learner.encoder.take
        learner.encoder.take = lambda x: nn.functional.avg_pool2d(take(x), 3, 1, 1)  # neighbours see hidden pixels

    with pytest.raises(AssertionError, match="LEAK"):
        check_leak(altered(blur))


def test_a_leak_through_rows_shared_by_the_batch():
    def share(learner):
        norm = learner.encoder.trunk.patch_embed
        norm.register_forward_hook(lambda module, given, output: output - output.mean((0, 1, 2), keepdim=True))

    with pytest.raises(AssertionError, match="LEAK"):
        check_leak(altered(share))


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


class OwnDice(Random):
    def __call__(self, grid, noise, scores=None):
        return super().__call__(grid, torch.rand_like(noise))


class WholeBatch(Random):
    def __call__(self, grid, noise, scores=None):
        return super().__call__(grid, noise + noise.flip(0).square().cumsum(0))


class Twice(Random):
    def __call__(self, grid, noise, scores=None):
        mask = super().__call__(grid, noise)
        return Mask(mask.visible_ids, mask.visible_ids, grid)


class AnyLength(Random):
    def prepare(self, progress, u):
        self.now = 0.1 + 0.8 * u


@pytest.mark.parametrize(("kind", "said"), [(OwnDice, "numbers of its own"), (WholeBatch, "other rows"), (Twice, "exactly one list"), (AnyLength, "pairs of lengths")])
def test_strategies_that_break_their_contract(kind, said):
    with pytest.raises(AssertionError, match=said):
        check_masking(kind(0.5), (16, 16))


class Wrong(Pixels):
    def baseline(self, truth, loss):
        return super().baseline(truth, loss) * 1.1


class Centred(Pixels):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class Attached(Pixels):
    def forward(self, x):
        return super().forward(x) + x.sum() * 0


@pytest.mark.parametrize(("kind", "said"), [(Wrong, "baseline"), (Centred, "depends on the others"), (Attached, "no gradient")])
def test_targets_that_break_their_contract(kind, said):
    with pytest.raises(AssertionError, match=said):
        check_target(kind((8, 8)), pictures(4), 16, losses.mse)


def test_a_teachers_passes_are_not_mistaken_for_leaks():
    """Only what is told a mask is watched: a target that sees everything may move."""
    case = case_of(MAE())
    learner = case.learner()
    assert learner.encoder(case.x).patches.shape[1] == 16
    check_leak(case)


def test_learners_of_ones_own_sizes():
    def make():
        encoder = build(**SMALL, img_size=(32, 32), masked="token")
        return MaskedModel(encoder, Random(0.5), {"pixels": Predict(Linear(48, 192), Pixels((8, 8)), losses.mse)})

    case = Case(make, pictures(4), 4)
    before = copy.deepcopy(torch.random.get_rng_state())
    for law in (testing.check_leak, testing.check_gradients, testing.check_saving, testing.check_learning):
        law(case)
    assert torch.equal(before, torch.random.get_rng_state())  # the laws leave the generators as they were
