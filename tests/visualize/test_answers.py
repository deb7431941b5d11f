"""What is drawn of hidden places where no pixels are predicted: strokes for edges, nearest patches for features, one line where nothing can be."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from unmask.errors import Refused
from unmask.mask import Mask
from unmask.methods.beit import BEiT
from unmask.methods.data2vec import Data2Vec
from unmask.methods.ijepa import IJEPA
from unmask.methods.mae import MAE
from unmask.methods.maskfeat import MaskFeat
from unmask.model import MaskedModel
from unmask.patches import patchify
from unmask.targets.codes import described
from unmask.targets.hog import HOG
from unmask.testing import SMALL, pictures
from unmask.tokenizers.dvae import DVAE
from unmask.visualize.answers import _filled, glyphs, grid
from unmask.visualize.reconstruction import maps_of

WORDS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.mark.parametrize(
    ("method", "heading"),
    [
        (MaskFeat(), "prediction, in its surroundings"),
        (MAE(target="hog"), "prediction, in its surroundings"),
        (IJEPA(), "prediction, as the nearest patches"),
        (Data2Vec(), "prediction, as the nearest patches"),
        ("paints", "prediction, painted from codes"),
        ("paints nothing", "prediction, as patches"),
        (MAE(), "prediction"),
    ],
)
def test_every_kind_of_answer_is_drawn(method, heading, tmp_path, monkeypatch):
    from unmask.visualize.panels import Sheet

    if isinstance(method, str):
        network = DVAE(3, hidden=4, blocks=1, vocabulary=12, stride=4, first=8)
        network.paints = method == "paints"
        save_file({f"tokenizer.{key}": value for key, value in network.state_dict().items()}, tmp_path / "model.safetensors", {"tokenizer": described(network)})
        monkeypatch.setattr(DVAE, "paints", network.paints)
        method = BEiT(tokenizer=str(tmp_path))
    learner = method.build(**SMALL | {"patch_size": 4}, img_size=(32, 32))
    learner.train()
    image = grid(learner, pictures(3), ["a/one.png", "a/two.png", "a/three.png"], out=tmp_path / "sheet.png", **WORDS)
    sheet = Sheet.of(image)
    assert heading in sheet.header and [row.name for row in sheet.rows] == ["a/one.png", "a/two.png", "a/three.png"]
    assert (tmp_path / "sheet.png").is_file() and learner.training


def test_a_network_that_masks_nothing_is_refused():
    learner = MaskedModel(MAE().build(**SMALL, img_size=(32, 32)).encoder, None, {})
    with pytest.raises(Refused):
        grid(learner, pictures(2), ["a", "b"], **WORDS)


@pytest.mark.parametrize(("direction", "bright"), [("down", "down"), ("across", "across")])
def test_strokes_lie_along_the_edges(direction, bright):
    """A picture of vertical stripes gives upright strokes, one of horizontal stripes lying ones."""
    stripes = (torch.arange(32) // 4 % 2).float().expand(32, 32)  # columns differ: edges run down
    x = (stripes if direction == "down" else stripes.T).expand(1, 1, 32, 32)
    target = HOG((8, 8))
    drawn = np.asarray(glyphs(target(x)[0], target, (4, 4), 1).convert("L"), dtype=float)
    side = drawn.shape[0] // 4
    middle = drawn[side + side // 2 - 2 : side + side // 2 + 2, side : 2 * side]  # a band across one histogram
    upright = drawn[side : 2 * side, side + side // 2 - 2 : side + side // 2 + 2]
    assert (upright.mean() > 2 * middle.mean()) == (bright == "down")


def test_the_right_answer_shows_the_nearest_other_patch_and_never_a_hidden_one():
    x = pictures(2)
    patches = patchify(x, (8, 8))  # (2, 16, 192)
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    mask = Mask(order[:, :8], order[:, 8:], (4, 4))
    twins = patches.clone()
    twins[1, order[1, 0]] = patches[0, order[0, 8]]  # the other picture shows what is hidden in the first
    truth = torch.nn.functional.one_hot(torch.arange(32).reshape(2, 16), 33).float()
    truth[1, order[1, 0]] = truth[0, order[0, 8]]
    filled = _filled(mask, twins, list(mask.masked(truth) @ truth.flatten(0, 1).T))
    assert torch.equal(filled[0, order[0, 8]], twins[1, order[1, 0]])
    assert torch.equal(mask.visible(filled), mask.visible(twins))
    hidden = mask.masked(twins)[0]
    assert not any(torch.equal(filled[0, place], own) for place in order[0, 9:] for own in hidden)


def test_a_place_may_be_neither_seen_nor_asked_about():
    seen, hidden = maps_of(Mask(torch.tensor([[0, 1]]), torch.tensor([[5, 6, 5, 6]]), (2, 4)), (2, 2))
    assert seen.sum() == 8 and hidden.sum() == 8 and not (seen & hidden).any()
    seen, hidden = maps_of(Mask(torch.tensor([[0]]), torch.tensor([[1, 2, 3]]), (2, 2), torch.tensor([[1.0, 1.0, 0.0]])), (1, 1))
    assert seen.sum() == 2 and hidden.sum() == 2  # padding was seen
