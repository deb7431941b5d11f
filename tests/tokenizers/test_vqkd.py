"""The VQ-KD tokenizer and its codebook against BEiT v2's own code."""

import math

import pytest
import torch
from golden_files import names
from torch.nn import functional as F
from torch.testing import assert_close

from unmask.interchange.tokenizers import from_vqkd
from unmask.tokenizers.vqkd import VQKD, Codebook, kmeans

CLOSE = {"rtol": 1e-5, "atol": 2e-6}
OFFICIAL = "microsoft/unilm@"


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def stepped(codebook, z):
    """One step of training as the learner makes it: codes, what goes on (gradient straight through), the commitment, then the rows move."""
    flat = F.normalize(z.movedim(1, -1).flatten(0, 2), dim=-1)  # (n, columns)
    codes = codebook.fits(flat.detach()).argmax(-1)
    row = codebook.rows[codes].clone()
    codebook.collect(flat, codes)
    through = (flat + (row - flat).detach()).unflatten(0, (z.shape[0], *z.shape[2:])).movedim(-1, 1)
    return codes, through, F.mse_loss(flat, row)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit2_quantizer", "output.codebook0", OFFICIAL))
def test_codebook_codes_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    codebook = Codebook(config["n_code"], config["code_dim"], config["decay"])
    codebook.rows.copy_(tensors["input.codebook"])
    for step in range(config["steps"]):
        z = tensors[f"input.z{step}"].clone().requires_grad_()
        codes, through, far = stepped(codebook, z)
        assert torch.equal(codes, tensors[f"output.codes{step}"])
        assert_close(through, tensors[f"output.zq{step}"], **CLOSE)
        assert_close(config["beta"] * far, tensors[f"output.loss{step}"], rtol=1e-6, atol=1e-6)
        ((through * torch.arange(through.numel()).float().sin().reshape(through.shape)).sum() + config["beta"] * far).backward()
        assert_close(z.grad, tensors[f"output.grad_z{step}"], **CLOSE)
        codebook.follow()
        assert_close(codebook.rows, tensors[f"output.codebook{step}"], **CLOSE)
    codes, _, far = stepped(codebook, tensors["input.z_eval"])
    assert torch.equal(codes, tensors["output.codes_eval"])
    assert_close(far, tensors["output.loss_eval"], rtol=1e-6, atol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit2_quantizer", "output.kmeans0_means", OFFICIAL))
@pytest.mark.parametrize("case", [0, 1])
def test_k_means_equals_the_official_code(golden, name, case):
    tensors, metadata = golden(name)
    z, starts = tensors[f"input.kmeans{case}_samples"], tensors[f"input.kmeans{case}_start_indices"]
    assert_close(kmeans(z, starts, metadata["config"]["kmeans_iterations"]), tensors[f"output.kmeans{case}_means"], **CLOSE)
    assert_close(kmeans(z, starts, 3), tensors[f"output.kmeans{case}_means_3_iterations"], **CLOSE)
    codebook = Codebook(len(starts), z.shape[1], metadata["config"]["decay"])
    codebook.rows.copy_(kmeans(z, starts))
    codes, _, far = stepped(codebook, z.T[None, :, :, None])
    assert torch.equal(codes, tensors[f"output.kmeans{case}_first_forward_codes"])
    assert_close(far, tensors[f"output.kmeans{case}_first_forward_loss"], rtol=1e-6, atol=1e-6)
    codebook.follow()
    assert_close(codebook.rows, tensors[f"output.kmeans{case}_first_forward_codebook"], **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit2_vqkd", "output.to_quantizer", OFFICIAL))
def test_directions_codes_and_answers_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config, x = metadata["config"], tensors["input.x"]
    network = from_vqkd(part(tensors, "weights."), config["num_heads"]).eval()
    assert_close((2 * x - 1)[:, :, 0], tensors["output.preprocessed_first_row"], **CLOSE)
    assert_close(network.encoder(2 * x - 1).patches, tensors["output.encoder_features"], **CLOSE)
    assert_close(network.directions(x), F.normalize(tensors["output.to_quantizer"], dim=-1), **CLOSE)
    codes = network.codes(x).flatten(1)
    assert torch.equal(codes, tensors["output.codes"])
    rows = network.codebook.rows[codes]
    grid = tuple(tensors["output.quantised"].shape[2:])
    assert_close(rows.transpose(1, 2).unflatten(2, grid), tensors["output.quantised"], **CLOSE)
    assert_close(network.features(rows, grid), tensors["output.decoded"], **CLOSE)


def test_a_row_without_hits_stays_and_the_others_go_to_their_means():
    codebook = Codebook(3, 2, 0.5)
    codebook.rows.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -2.0]]))
    z = F.normalize(torch.tensor([[1.0, 0.2], [1.0, 0.4]]), dim=-1)
    codebook.collect(z[:1], torch.tensor([0]))
    codebook.collect(z[1:], torch.tensor([0]))  # parts of a batch add up
    codebook.follow()
    mean = F.normalize(z.mean(0), dim=-1)
    assert_close(codebook.rows[0], F.normalize(torch.tensor([1.0, 0.0]) + mean, dim=-1))
    assert_close(codebook.rows[1:], torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    assert not codebook.sums.any() and not codebook.counts.any()


def test_it_looks_at_any_size_and_says_where_it_paints_nothing():
    torch.manual_seed(0)
    trunk = {"model": "vit_tiny_patch16_224", "img_size": (32, 32), "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0}
    network = VQKD(trunk | {"dynamic_img_size": True}, out=5, vocabulary=9, columns=4, decoder_depth=1).eval()
    codes = network.codes(torch.rand(2, 3, 24, 40))
    assert codes.shape == (2, 3, 5) and codes.max() < 9
    assert network.pictures(torch.rand(2, 9, 3, 5)) is None
    assert network.features(network.codebook.rows[codes.flatten(1)], (3, 5)).shape == (2, 15, 5)
    assert math.isclose(float(network.codebook.rows.norm(dim=-1).min()), 1, rel_tol=1e-5)
