"""The contract of a decoder: a new one joins by a row of `DECODERS`."""

import pytest
import torch
from timm.models.vision_transformer import Block

from unmask import seeds
from unmask.decoders import Convolutions, CrossAttention, Decoder, Linear, Transformer, default_size, last_rows
from unmask.encoders.features import Features
from unmask.mask import Mask
from unmask.methods.aim import Perceptrons
from unmask.methods.fcmae import Convolved
from unmask.methods.ijepa import EachTarget

WIDTH, OUT = 24, 10
DECODERS = {  # how it is built, and whether its encoder drops what is masked
    "linear": (lambda grid: Linear(WIDTH, OUT), False),
    "transformer": (lambda grid: Transformer(WIDTH, OUT, grid, width=32, depth=2, heads=2), True),
    "convolutions": (lambda grid: Convolutions(WIDTH, OUT, width=WIDTH, depth=3, groups=4), True),
    "convolutions of another width": (lambda grid: Convolutions(WIDTH, OUT, width=16, depth=2, kernel=5, groups=2), True),
    "a target at a time": (lambda grid: EachTarget(Transformer(WIDTH, OUT, grid, width=16, depth=1, heads=1), 2), True),
    "cross-attention to three layers": (lambda grid: CrossAttention(WIDTH, OUT, grid, 3, width=32, depth=2, heads=2), True),
    "transformer, learned places": (lambda grid: Transformer(WIDTH, OUT, grid, width=32, depth=2, heads=2, learned=1), True),
    "a ConvNeXt V2 block over the grid": (lambda grid: Convolved(WIDTH, OUT, width=16), True),
    "perceptrons": (lambda grid: Perceptrons(WIDTH, OUT, grid, width=32, depth=2), False),
    "transformer of one block": (lambda grid: Transformer(WIDTH, OUT, grid, width=16, depth=1, heads=1), True),
}


def case(name, grid=(4, 6), built=None, prefix=1) -> tuple[Decoder, Features, Mask]:
    torch.manual_seed(0)
    build, drops = DECODERS[name]
    decoder = build(built or grid).eval()
    for value in decoder.parameters():
        value.data.normal_(std=0.3)
    N = grid[0] * grid[1]
    order = seeds.uniform((3, N), 0, "decoder").argsort(1)
    mask = Mask(order[:, : N // 3], order[:, N // 3 :], grid)
    return decoder, features_of(torch.randn(3, N // 3 if drops else N, WIDTH), torch.randn(3, prefix, WIDTH)), mask


def features_of(patches, prefix) -> Features:
    """With three layers that differ from each other."""
    layers, prefixes = ([part.roll(i, -1) * (1 + i) for i in range(3)] for part in (patches, prefix))
    return Features(patches, prefix, tuple(layers), tuple(prefixes))


def near(one, other, tolerance=1e-5):
    return (one - other).abs().max() <= tolerance * other.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(4, 6), (3, 3)])
@pytest.mark.parametrize("name", DECODERS)
def test_one_answer_for_each_masked_place(name, grid, prefix):
    """It belongs to the place, not to its rank in the list."""
    decoder, features, mask = case(name, grid, prefix=prefix)
    answer = decoder(features, mask)
    assert answer.shape == (3, mask.masked_ids.shape[1], OUT)
    assert near(decoder(features, Mask(mask.visible_ids, mask.masked_ids.flip(1), grid)).flip(1), answer)


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_answers_depend_on_the_own_row_only(name):
    decoder, features, mask = case(name)
    answer = decoder(features, mask)
    for row in range(3):
        part = features_of(features.patches[row : row + 1], features.prefix[row : row + 1])
        assert near(decoder(part, mask.rows(torch.tensor([row])))[0], answer[row])


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_answers_tell_places_apart(name):
    decoder, features, mask = case(name)
    answer = decoder(features, mask)
    assert (answer[:, 1:] - answer[:, :-1]).abs().amax(-1).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in DECODERS if "learned" not in name])
def test_another_grid_is_answered_as_if_built_for_it(name):
    built, features, mask = case(name, (4, 6))
    other, *_ = case(name, (4, 6), built=(3, 5))
    assert torch.equal(built(features, mask), other(features, mask))


@pytest.mark.parametrize("name", DECODERS)
def test_every_parameter_is_trained(name):
    decoder, features, mask = case(name)
    decoder(features, mask).square().sum().backward()
    assert not [key for key, value in decoder.named_parameters() if not value.grad.any()]


def test_the_visible_are_where_they_were():
    """Moving visible features to other places changes the answers of a decoder that attends."""
    decoder, features, mask = case("transformer")
    moved = Mask(mask.visible_ids.roll(1, 1), mask.masked_ids, mask.grid)
    assert not near(decoder(features, moved), decoder(features, mask), 1e-3)


@pytest.mark.parametrize("rows", [1, 7, 12])
def test_last_rows_equal_the_whole_block(rows):
    torch.manual_seed(0)
    block, x = Block(32, 4, qkv_bias=True), torch.randn(2, 12, 32, requires_grad=True)
    for value in block.parameters():
        value.data.normal_(std=0.3)
    weight, found = torch.randn(2, rows, 32), []
    for answer in (last_rows(block, x, rows), block(x)[:, -rows:]):
        found.append((answer, *torch.autograd.grad((answer * weight).sum(), [x, *block.parameters()])))
    for ours, whole in zip(*found):
        assert near(ours, whole)


def test_default_sizes():
    assert default_size(768) == default_size(1280) == (512, 8, 16)
    assert [default_size(width) for width in (384, 192, 128, 24)] == [(256, 4, 8), (128, 4, 4), (96, 4, 3), (32, 4, 1)]
