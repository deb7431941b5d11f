"""The discrete VAE against DALL-E's own code, and its parts against BEiT's and lucidrains' numbers."""

import math

import pytest
import torch
from golden_files import names
from torch.nn import functional as F
from torch.testing import assert_close

from unmask.interchange.tokenizers import from_dalle
from unmask.tokenizers.dvae import DVAE, EDGE, divergence, soft

CLOSE = {"rtol": 2e-5, "atol": 1e-5}  # the note's


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.golden
@pytest.mark.parametrize("name", names("dalle_dvae", "output.codes", "openai/DALL-E@"))
def test_codes_and_pictures_equal_dalles_own(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    network = from_dalle(part(tensors, "weights_encoder."), part(tensors, "weights_decoder."))
    assert (network.vocabulary, network.stride) == (config["vocab_size"], 8)
    x = tensors["input.x"]
    logits = network.logits(x)
    assert_close((1 - 2 * EDGE) * x + EDGE, tensors["output.mapped"])
    assert_close(logits, tensors["output.logits"], **CLOSE)
    codes = network.codes(x)
    assert torch.equal(codes, tensors["output.codes"])
    shares = F.one_hot(codes, network.vocabulary).movedim(-1, 1).float()
    assert_close(torch.cat(network.statistics(shares), 1), tensors["output.decoder_stats"], **CLOSE)
    assert_close(network.pictures(shares), tensors["output.reconstruction"], **CLOSE)
    gentle = (logits / config["tau"]).softmax(1)
    assert_close(torch.cat(network.statistics(gentle), 1), tensors["output.decoder_stats_soft"], **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("dvae_", "output.soft_one_hot"))
def test_the_soft_draw_and_the_divergence_equal_the_official_code(golden, name):
    """Their divergence is a sum over pictures and places, whatever its name says."""
    tensors, metadata = golden(name)
    logits = tensors["output.logits"]
    drawn = soft(logits, metadata["config"]["temperature"], tensors["input.gumbel"])
    if metadata["config"]["straight_through"]:  # theirs is the largest share alone, with the gradient of the soft draw
        drawn = F.one_hot(drawn.argmax(1), drawn.shape[1]).movedim(-1, 1).float()
    assert_close(drawn, tensors["output.soft_one_hot"], **CLOSE)
    assert_close(divergence(logits).sum(), tensors["output.kl"], rtol=2e-5, atol=1e-4)


def test_the_likelihood_is_a_density():
    """Over all values of a pixel it adds up to 1 (in the range in which pixels are mapped, and outside)."""
    torch.manual_seed(0)  # of other weights the scale may be so wide that the ends of the range matter
    network = DVAE(1, hidden=4, blocks=1, vocabulary=4, stride=2, first=4)
    shares = torch.zeros(1, 4, 1, 1).index_fill(1, torch.tensor([1]), 1.0)
    values = torch.linspace(-0.125 + 1e-5, 1.125 - 1e-5, 40_001)  # mapped to 0..1
    location, scale = (found.detach() for found in network.statistics(shares))
    log = network.likelihood(shares, values.reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2))[:, 0, 0, 0]
    total = torch.trapezoid(log.exp(), (1 - 2 * EDGE) * values + EDGE)
    assert math.isfinite(float(location.sum() + scale.sum())) and abs(total.item() - 1) < 1e-3


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_a_code_for_each_square(stride):
    network = DVAE(2, hidden=4, blocks=1, vocabulary=16, stride=stride, first=8)
    x = torch.rand(2, 2, 16, 24)
    codes = network.codes(x)
    assert codes.shape == (2, 16 // stride, 24 // stride) and codes.max() < 16
    assert network.pictures(F.one_hot(codes, 16).movedim(-1, 1).float()).shape == x.shape
    with pytest.raises(ValueError, match="stride"):
        DVAE(stride=3)
