"""The verbs of Mask against plain loops: with padding, with several masks a picture, with lists that do not complement each other."""

import pytest
import torch
from torch.testing import assert_close

from unmask.mask import Mask

B, N, D, GRID = 3, 12, 5, (3, 4)


def mask_of(masks: int, padded: bool, overlap: bool = False) -> Mask:
    """Random lists of 5 seen and 6 predicted patches a row; one patch is in neither, or (`overlap`) some are in both."""
    order = torch.rand(B * masks, N).argsort(1)
    masked = torch.rand(B * masks, N).argsort(1)[:, :6] if overlap else order[:, 6:]
    weight = (torch.rand(B * masks, 6) > 0.4).float() * torch.rand(B * masks, 6) if padded else None
    return Mask(order[:, :5], masked, GRID, weight)


def predicted(mask: Mask, row: int) -> list[tuple[int, int]]:
    """(rank, patch) of what a row really predicts."""
    return [(rank, int(patch)) for rank, patch in enumerate(mask.masked_ids[row]) if mask.weight is None or mask.weight[row, rank] > 0]


every = [pytest.param(masks, padded, id=f"{masks}-{'padded' if padded else 'full'}") for masks in (1, 3) for padded in (False, True)]


@pytest.mark.parametrize(("masks", "padded"), every)
class TestVerbs:
    def test_visible_and_masked(self, masks, padded):
        x = torch.randn(B, N, D)
        for shape in ((B, N), (B, N, D), (B, N, 2, 3)):
            x, mask = torch.randn(shape), mask_of(masks, padded)
            for row in range(B * masks):
                assert torch.equal(mask.visible(x)[row], torch.stack([x[row // masks, patch] for patch in mask.visible_ids[row]]))
                assert torch.equal(mask.masked(x)[row], torch.stack([x[row // masks, patch] for patch in mask.masked_ids[row]]))

    def test_map_is_true_where_masked(self, masks, padded):
        mask = mask_of(masks, padded)
        assert mask.map.dtype == torch.bool and mask.map.shape == (B * masks, N)
        for row in range(B * masks):
            assert set(mask.map[row].nonzero().flatten().tolist()) == {patch for _, patch in predicted(mask, row)}

    def test_cover(self, masks, padded):
        x, token, mask = torch.randn(B, N, D), torch.randn(1, 1, D), mask_of(masks, padded)
        covered = mask.cover(x, token)
        for row in range(B * masks):
            hidden = {patch for _, patch in predicted(mask, row)}
            for patch in range(N):
                assert torch.equal(covered[row, patch], token[0, 0] if patch in hidden else x[row // masks, patch])

    def test_join(self, masks, padded):
        mask = mask_of(masks, padded)
        visible, masked = torch.randn(B * masks, 5, D), torch.randn(B * masks, 6, D)
        for rest in ((), (D,), (2, 3)):
            visible, masked = torch.randn(B * masks, 5, *rest), torch.randn(B * masks, 6, *rest)
            wanted = torch.zeros(B * masks, N, *rest)
            for row in range(B * masks):
                for rank, patch in enumerate(mask.visible_ids[row]):
                    wanted[row, patch] = visible[row, rank]
                for rank, patch in predicted(mask, row):
                    wanted[row, patch] = masked[row, rank]
            assert torch.equal(mask.join(visible, masked), wanted)

    def test_join_undoes_the_lists(self, masks, padded):
        mask, x = mask_of(masks, padded), torch.randn(B, N, D)
        whole, seen = mask.join(mask.visible(x), mask.masked(x)), mask.map.scatter(1, mask.visible_ids, True)
        assert torch.equal(whole, torch.where(seen.unsqueeze(-1), mask.fold(x), 0))

    def test_mean_weighs(self, masks, padded):
        mask = mask_of(masks, padded)
        loss = torch.randn(B * masks, 6)
        pairs = [(loss[row, rank].item(), 1.0 if mask.weight is None else mask.weight[row, rank].item()) for row in range(B * masks) for rank in range(6)]
        assert_close(mask.mean(loss).item(), sum(a * w for a, w in pairs) / sum(w for _, w in pairs), rtol=1e-5, atol=1e-6)

    def test_rows_and_fold(self, masks, padded):
        mask, ids = mask_of(masks, padded), torch.tensor([2, 0])
        some = mask.rows(ids)
        assert torch.equal(some.visible_ids, mask.visible_ids[ids]) and torch.equal(some.masked_ids, mask.masked_ids[ids]) and some.grid == GRID
        assert (some.weight is None) == (mask.weight is None) and torch.equal(some.map, mask.map[ids])
        assert torch.equal(mask.fold(torch.arange(B)), torch.arange(B * masks) // masks)


def test_lists_may_overlap():
    """What is seen and predicted too (denoising) is masked in the map, and the prediction wins where both are joined."""
    mask, x = mask_of(1, padded=False, overlap=True), torch.randn(B, N, D)
    joined = mask.join(mask.visible(x), -mask.masked(x))
    for row in range(B):
        for patch in mask.masked_ids[row]:
            assert torch.equal(joined[row, patch], -x[row, patch])


def test_all_sees_and_predicts_everything():
    mask, x = Mask.all(B, GRID), torch.randn(B, N, D)
    assert mask.map.all() and torch.equal(mask.visible(x), x) and torch.equal(mask.masked(x), x) and torch.equal(mask.join(x, x), x)


def test_padding_may_repeat_a_patch():
    """Rows padded with a patch that is masked, or seen, leave it as it is, whatever the order."""
    mask = Mask(torch.tensor([[0, 1]]), torch.tensor([[3, 3, 0, 2]]), (2, 2), torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    joined = mask.join(torch.tensor([[10.0, 11.0]]), torch.tensor([[3.0, -1.0, -2.0, 2.0]]))
    assert joined.tolist() == [[10.0, 11.0, 2.0, 3.0]] and mask.map.tolist() == [[False, False, True, True]]


def test_padding_weighs_nothing():
    loss, weight = torch.tensor([[1.0, 100.0], [3.0, 5.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    ids = torch.tensor([[0, 1], [0, 1]])
    assert Mask(ids, ids, (1, 2), weight).mean(loss) == 3.0


def test_a_batch_without_any_mask_has_the_loss_zero():
    """iBOT leaves half of the views unmasked: sometimes all of a small batch."""
    mask, loss = Mask.all(2, (1, 2)), torch.ones(2, 2, requires_grad=True)
    mean = Mask(mask.visible_ids, mask.masked_ids, (1, 2), torch.zeros(2, 2)).mean(loss)
    mean.backward()
    assert mean == 0 and loss.grad.isfinite().all()


def test_rows_that_do_not_fit_are_an_error():
    with pytest.raises(RuntimeError):
        mask_of(1, padded=False).visible(torch.randn(B + 1, N, D)[:2])
