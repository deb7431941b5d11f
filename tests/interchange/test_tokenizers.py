"""Published tokenizers by our names: every key, there and back."""

import pytest
import torch
from golden_files import keys, names

from unmask.interchange.tokenizers import UNUSED, dalle_name, from_vqkd, to_vqkd
from unmask.tokenizers.dvae import DVAE

OFFICIAL = "microsoft/unilm@"


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_every_published_key_of_dalle_is_ours(kind):
    with torch.device("meta"):
        network = DVAE()
    ours = {key: tuple(value.shape) for key, value in dict(network.named_children())[kind].state_dict().items()}
    assert {dalle_name(key): shape for key, shape in keys(f"dalle_dvae_{kind}").items()} == ours


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit2_vqkd", "output.to_quantizer", OFFICIAL))
def test_the_names_of_vqkd_there_and_back(golden, name):
    tensors, metadata = golden(name)
    state = part(tensors, "weights.")
    again = to_vqkd(from_vqkd(state, metadata["config"]["num_heads"]))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items() if not key.startswith(UNUSED))


def test_every_published_key_of_vqkd_is_ours():
    published = keys("vqkd_encoder_base_decoder_1x768x12_clip")
    with torch.device("meta"):
        network = from_vqkd({key: torch.empty(shape) for key, shape in published.items()})
        assert {key: tuple(value.shape) for key, value in to_vqkd(network).items()} == published
    assert (network.vocabulary, network.stride, network.sizes["decoder_depth"], network.sizes["out"]) == (8192, 16, 1, 512)
    assert network.encoder.trunk.blocks[0].attn.num_heads == 12
