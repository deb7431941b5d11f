"""The contracts of a method's parts: its masks and its target."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from unmask import seeds
from unmask.masking import Masking
from unmask.settings import Ratio
from unmask.targets.target import Target


def check_masking(strategy: Masking, grid: tuple[int, ...] = (8, 8), rows: int = 32, partition: bool = True, alone: bool = True) -> None:
    """A strategy is a pure function of its noise; its lists are sound, equally long, and their lengths come from few values.

    `partition`: every patch is seen or predicted, never both. `alone`: a row of the mask depends on its row of noise only
    (not so where sizes are drawn once a batch).
    """
    noise, N, before = seeds.uniform((rows, strategy.draws(grid)), 0, "testing masks"), math.prod(grid), torch.random.get_rng_state()
    mask, again = strategy(grid, noise), strategy(grid, noise.clone())
    assert torch.equal(before, torch.random.get_rng_state()), "the strategy draws numbers of its own: use the noise"
    assert torch.equal(mask.visible_ids, again.visible_ids) and torch.equal(mask.masked_ids, again.masked_ids), "same noise, other mask"
    for ids in (mask.visible_ids, mask.masked_ids):
        assert ids.dtype == torch.int64 and ids.dim() == 2 and len(ids) == rows and 0 < ids.shape[1] <= N
        assert ids.min() >= 0 and ids.max() < N
    assert all(row.unique().numel() == row.numel() for row in mask.visible_ids), "a patch is seen twice"
    if mask.weight is not None:
        assert mask.weight.shape == mask.masked_ids.shape and (mask.weight >= 0).all() and mask.weight.isfinite().all()
    if partition:
        every = torch.cat([mask.visible_ids, mask.masked_ids], dim=1).sort(dim=1).values
        assert torch.equal(every, torch.arange(N).expand(rows, -1)), "not every patch is in exactly one list"
    if alone:
        some = torch.arange(rows - 1, -1, -3)
        assert torch.equal(strategy(grid, noise[some]).masked_ids, mask.rows(some).masked_ids), "a row depends on other rows"
    lengths = set()
    for place in range(64):
        strategy.prepare(place / 64, seeds.dice(0, "testing ratio", place).random())
        moved = strategy(grid, noise[:2])
        lengths.add((moved.visible_ids.shape[1], moved.masked_ids.shape[1]))
    assert not alone or len(lengths) <= Ratio.LEVELS, f"{len(lengths)} pairs of lengths over a run: each may want a graph of its own"


def check_target(target: Target, x: Tensor, patches: int, loss: Callable[[Tensor, Tensor], Tensor] | None = None, answers: int | None = None) -> None:
    """A target is a plain function of each picture, without gradient; with `loss`, its baseline is the best constant answer.

    `patches`: how many patches `x` has. `answers`: how many numbers an answer has, where that is not the truth's last size.
    """
    target = target.eval()
    truth = target(x.clone().requires_grad_())
    assert truth.shape[:2] == (len(x), patches), f"{tuple(truth.shape)} is not ({len(x)}, {patches}, …)"
    assert not truth.requires_grad, "a target carries no gradient"
    assert torch.equal(truth, target(x)), "the same pictures, another truth"
    torch.testing.assert_close(target(x[:1]), truth[:1], msg=lambda said: f"the truth of a picture depends on the others: {said}")
    if loss is None:
        return
    said = target.baseline(truth, loss).item()
    begin = torch.zeros(answers) if answers else truth.flatten(0, -2).float().mean(0)
    constant = begin.requires_grad_()
    descent = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12)

    def found() -> Tensor:
        descent.zero_grad()
        value = loss(constant.expand(*truth.shape[:2], -1), truth).mean()
        value.backward()
        return value

    descent.step(found)
    best = found().item()
    assert said <= best + 1e-4 * abs(best), f"baseline() says {said:.5f}, but a constant answer reaches {best:.5f}"
    assert said >= best - 0.01 * abs(best), f"baseline() says {said:.5f}, and no constant answer reaches that: {best:.5f}"
