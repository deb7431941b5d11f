"""The contracts of parts find masks and targets that break them."""

import pytest
import torch

from unmask import losses
from unmask.mask import Mask
from unmask.masking import Random
from unmask.targets.pixels import Pixels
from unmask.testing import check_masking, check_target, pictures


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
