"""Reconstructions: leak-free by default, exact where the truth is put in, for any channels, shape and mask."""

import json

import pytest
import torch
from torch import nn

from unmask import losses
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import STRATEGIES
from unmask.methods.mae import MAE
from unmask.model import MaskedModel, Predict
from unmask.patches import patchify
from unmask.targets.hog import HOG
from unmask.visualize import reconstruction
from unmask.visualize.reconstruction import grid, reconstruct, spread

SMALL = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}


def learner(size=(32, 32), channels=3, patch=8, **settings):
    torch.manual_seed(0)
    return MAE(**SMALL | settings).build("vit_tiny_patch16_224", size, channels, patch)


def pictures(count, channels=3, size=(32, 32)):
    """Smooth pictures, so that neighbours tell something."""
    torch.manual_seed(1)
    return nn.functional.interpolate(torch.randn(count, channels, 4, 4), size=size, mode="bicubic")


class Oracle(nn.Module):
    """A decoder that answers the truth: what the viewer makes of it can be checked exactly."""

    def __init__(self, model):
        super().__init__()
        self.target, self.x = model.objectives["pixels"].target, None

    def forward(self, features, mask):
        return mask.masked(self.target(self.x))


def with_truth(model, x):
    oracle = Oracle(model)
    oracle.x = x
    model.objectives["pixels"].decoder = oracle
    return model


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (1, (32, 48)), (5, (48, 32))])
def test_the_true_answer_gives_the_original_back(normalize, channels, size):
    x = pictures(2, channels, size)
    model = with_truth(learner(size, channels, norm_pix=normalize), x)
    answer = reconstruct(model, x, statistics="truth")
    assert torch.allclose(answer.pasted, x, atol=1e-4)
    assert torch.equal(answer.seen, ~answer.hidden) and answer.hidden.float().mean() == 0.75
    assert ("true patch mean" in answer.said) == normalize


@pytest.mark.parametrize("normalize", [True, False])
def test_nothing_hidden_moves_the_picture_by_default(normalize):
    """The leak law of the viewer: other hidden pixels, same reconstruction, bit for bit."""
    model, x = learner(norm_pix=normalize), pictures(2)
    mask = reconstruction.draw_mask(model, x)
    first = reconstruct(model, x, mask)
    changed = torch.where(first.hidden.unsqueeze(1), torch.randn_like(x), x)
    second = reconstruct(model, changed, mask)
    assert torch.equal(first.pasted, second.pasted) and torch.equal(first.filled, second.filled)
    if normalize:
        assert not torch.equal(reconstruct(model, x, mask, "truth").pasted, reconstruct(model, changed, mask, "truth").pasted)


def test_spread_gives_near_places_more_weight():
    mask = Mask(torch.tensor([[0, 8]]), torch.tensor([[1, 4, 7]]), (3, 3))
    said = spread(torch.tensor([[[0.0], [1.0]]]), mask)[0, :, 0]
    assert said[0] < 0.2 and abs(said[1] - 0.5) < 1e-6 and said[2] > 0.8
    constant = spread(torch.full((1, 2, 3), 7.0), mask)
    assert torch.allclose(constant, torch.full((1, 3, 3), 7.0))


def test_levels_make_borders_meet():
    """A slope across the picture: patches without their mean find it again, far from what is visible too."""
    x = torch.linspace(-1, 1, 64).expand(1, 3, 32, 64).contiguous()
    patches = patchify(x, (8, 8))  # (1, 32, 192)
    ids = torch.arange(32).unsqueeze(0)
    mask = Mask(ids[:, ids[0] % 8 == 0], ids[:, ids[0] % 8 > 0], (4, 8))  # only the left column is seen
    mean = mask.masked(patches).mean(-1, keepdim=True)
    flat = torch.full_like(mean, -0.9)  # what the left column says
    values = mask.masked(patches) - mean
    found = reconstruction.levels(values, flat, mask.visible(patches), mask, (8, 8))
    assert (found - mean).abs().mean() < 0.8 * (flat - mean).abs().mean()  # the trust in `flat` holds it back
    trusted = reconstruction.levels(values, mean, mask.visible(patches), mask, (8, 8))
    assert (trusted - mean).abs().max() < 0.1


@pytest.mark.parametrize(("grid", "shown"), [((14, 14), 49), ((5, 9), 3), ((32, 32), 256)])
def test_levels_solve_their_equations(grid, shown):
    """Beside the whole matrix, solved at once: the same to 1e-4, also where patches are neither seen nor predicted."""
    torch.manual_seed(2)
    N, (height, width) = grid[0] * grid[1], grid
    ids = torch.rand(2, N).argsort(1)
    mask = Mask(ids[:, :shown], ids[:, shown + N // 10 :], grid)
    values, visible, mean = torch.randn(2, mask.masked_ids.shape[1], 12), torch.randn(2, shown, 12), torch.randn(2, mask.masked_ids.shape[1], 1)
    found = reconstruction.levels(values, mean, visible, mask, (2, 2))
    for row in range(2):
        whole = torch.zeros(N, 3, 2, 2).index_copy(0, mask.visible_ids[row], visible[row].unflatten(-1, (3, 2, 2)))
        whole = whole.index_copy(0, mask.masked_ids[row], values[row].unflatten(-1, (3, 2, 2))).unflatten(0, grid)
        hidden = mask.map[row]
        known = hidden.clone().index_fill(0, mask.visible_ids[row], True)
        matrix, right = torch.eye(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
        for at, place in enumerate(mask.masked_ids[row].tolist()):
            matrix[place, place], right[place] = reconstruction.TRUST, reconstruction.TRUST * mean[row, at, 0]
        sideways = [(y * width + x, y * width + x + 1, whole[y, x + 1, :, :, 0].mean() - whole[y, x, :, :, -1].mean()) for y in range(height) for x in range(width - 1)]
        downwards = [(y * width + x, (y + 1) * width + x, whole[y + 1, x, :, 0].mean() - whole[y, x, :, -1].mean()) for y in range(height - 1) for x in range(width)]
        for a, b, gap in sideways + downwards:
            for one, other, sign in ((a, b, 1), (b, a, -1)):
                if known[a] and known[b] and hidden[one]:
                    matrix[one, one] += 1
                    matrix[one, other] -= float(hidden[other])
                    right[one] += sign * gap
        wanted = torch.linalg.solve(matrix, right)[mask.masked_ids[row]]
        assert (found[row, :, 0] - wanted).abs().max() < 1e-4 < wanted.abs().max()


def test_what_is_seen_is_pasted_and_what_is_neither_is_neither():
    model, x = learner(), pictures(1)
    mask = Mask(torch.arange(6).unsqueeze(0), torch.arange(8, 12).unsqueeze(0), (4, 4))
    answer = reconstruct(model, x, mask)
    seen = answer.seen.unsqueeze(1).expand_as(x)
    assert torch.equal(answer.pasted[seen], x[seen])
    assert answer.seen.sum() == 6 * 64 and answer.hidden.sum() == 4 * 64


def test_padded_masks_draw():
    from unmask.encoders.build import build
    from unmask.model import Predict

    mae = learner(size=(64, 64), patch=8)
    encoder = build("vit_tiny_patch16_224", (64, 64), 3, 8, masked="token")

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(192, 192)

        def forward(self, features, mask):
            return self.layer(mask.masked(features.patches))

    part = mae.objectives["pixels"]
    model = MaskedModel(encoder, STRATEGIES["block"](0.4), {"pixels": Predict(Head(), part.target, part.loss)})
    answer = reconstruct(model, pictures(4, size=(64, 64)))
    assert not (answer.seen & answer.hidden).any() and (answer.seen | answer.hidden).all()


def test_training_mode_and_random_state_stay_as_they_were():
    model, x = learner().train(), pictures(1)
    before = torch.get_rng_state()
    reconstruct(model, x)
    assert model.training and torch.equal(before, torch.get_rng_state())


def test_the_sheet_is_drawn_written_and_repeatable(tmp_path):
    model, x = learner(), pictures(2)
    words = {"mean": [0.5] * 3, "std": [0.25] * 3}
    first = grid(model, x, ["a.png", "b.png"], **words, out=tmp_path / "new" / "grid.png")
    assert (tmp_path / "new" / "grid.png").is_file() and min(first.size) >= 100
    assert first.tobytes() == grid(model, x, ["a.png", "b.png"], **words).tobytes()
    assert first.tobytes() != grid(model, x, ["a.png", "b.png"], **words, seed=1).tobytes()
    assert first.tobytes() != grid(model, x, ["a.png", "b.png"], **words, statistics="truth").tobytes()


def test_the_error_counts_hidden_pixels_only():
    hidden = torch.zeros(1, 4, 4, dtype=torch.bool)
    hidden[:, :, :2] = True
    maps, mean = reconstruction.error(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5), hidden)
    assert mean.item() == 0.5 and maps[0, :, 2:].sum() == 0


def test_learners_without_pixels_are_refused_kindly():
    model = learner()
    part = model.objectives["pixels"]
    with pytest.raises(Refused, match="reconstruct"):
        reconstruct(nn.Linear(2, 2), pictures(1))
    del model.objectives["pixels"]
    with pytest.raises(Refused, match="nothing to reconstruct"):
        reconstruct(model, pictures(1))
    model.objectives["edges"] = Predict(part.decoder, HOG(part.target.patch), losses.mse)
    with pytest.raises(Refused, match="predicts edges instead"):
        reconstruct(model, pictures(1))
    assert patchify(pictures(1), part.target.patch).shape == (1, 16, 192)


def test_the_bands_that_are_drawn_are_chosen_and_said():
    model, x, words = learner(channels=13), pictures(1, 13), {"mean": [0.5] * 13, "std": [0.2] * 13}
    first, chosen = grid(model, x, ["many"], **words), grid(model, x, ["many"], **words, bands=(3, 2, 1))
    assert first.tobytes() != chosen.tobytes()
    for sheet, said in ((first, "original, bands 1 2 3"), (chosen, "original, bands 4 3 2")):
        layout = json.loads(sheet.info["unmask-sheet"])
        assert layout["header"][0] == said and any(said[-5:].replace(" ", ", ") in line for line in layout["legend"])
