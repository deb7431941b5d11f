"""SimCLR against the official code's numbers: NT-Xent, the projection head, its gradients and moving averages."""

import pytest
import torch
from golden_files import names
from torch.nn import functional as F
from torch.testing import assert_close

from unmask.contrast import nt_xent, perceptron
from unmask.methods.simclr import SimCLR
from unmask.optim.groups import parameter_groups
from unmask.testing import SMALL, pictures

OFFICIAL = "google-research/simclr@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@pytest.mark.golden
@pytest.mark.parametrize("name", names("simclr", "output.logits_ab", OFFICIAL))
def test_the_loss_equals_the_official_code(golden, name):
    tensors, metadata = golden(name)
    z = tensors["input.z"].clone().requires_grad_()
    loss = nt_xent(z, metadata["config"]["temperature"])
    assert_close(loss, tensors["output.loss"], **CLOSE)
    loss.backward()
    assert_close(z.grad, tensors["grad.z"], **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("simclr", "output.head", OFFICIAL))
def test_the_head_equals_the_official_code(golden, name):
    """Three linear layers without biases, batch norm over both views, the last one without a centre. TensorFlow's running variance is biased, torch's is not."""
    tensors, metadata = golden(name)
    hidden, out, layers = tensors["input.hidden"], metadata["config"]["proj_out"], metadata["config"]["proj_layers"]
    head = perceptron((*[hidden.shape[1]] * layers, out), last="scale").train()
    theirs, state = {key.split(".", 2)[2]: value for key, value in tensors.items() if key.startswith("weights.")}, {}
    for i in range(layers):
        part = {key.rsplit(".", 1)[1]: value for key, value in theirs.items() if key.startswith(f"projection_head.nl_{i}.")}
        state |= {f"{3 * i}.weight": part["kernel"].T, f"{3 * i + 1}.weight": part["gamma"], f"{3 * i + 1}.bias": part.get("beta", torch.zeros(part["gamma"].shape))}
        state |= {f"{3 * i + 1}.running_mean": part["moving_mean"], f"{3 * i + 1}.running_var": part["moving_variance"], f"{3 * i + 1}.num_batches_tracked": torch.tensor(0)}
    head.load_state_dict(state)
    assert head[-1].bias.requires_grad is False
    said = head(hidden)
    assert_close(said, tensors["output.head"], **CLOSE)
    loss = nt_xent(said, metadata["config"]["temperature"])
    assert_close(loss, tensors["output.head_loss"], **CLOSE)
    loss.backward()
    for key, value in ((key, value) for key, value in tensors.items() if key.startswith("grad.projection")):
        i, kind = int(key.split("nl_")[1][0]), key.rsplit(".", 1)[1]
        weight = {"kernel": head[3 * i].weight, "gamma": head[3 * i + 1].weight, "beta": head[3 * i + 1].bias}[kind]
        assert_close(weight.grad, value.T if kind == "kernel" else value, rtol=1e-4, atol=1e-5 * value.abs().max().item())
    rows = len(hidden)
    for key, value in ((key, value) for key, value in tensors.items() if key.startswith("output.after.")):
        norm = head[3 * int(key.split("nl_")[1][0]) + 1]
        if key.endswith("moving_mean"):
            assert_close(norm.running_mean, value, **CLOSE)
        else:
            before = state[f"{3 * int(key.split('nl_')[1][0]) + 1}.running_var"]
            biased = 0.9 * before + (norm.running_var - 0.9 * before) * (rows - 1) / rows
            assert_close(biased, value, **CLOSE)


def test_the_loss_is_the_sum_of_two_cross_entropies():
    """Written out over all rows at once, a row's own column shut."""
    torch.manual_seed(0)
    z = torch.randn(8, 5)
    unit = F.normalize(z, dim=1)
    logits = (unit @ unit.T / 0.3).fill_diagonal_(-torch.inf)
    assert_close(nt_xent(z, 0.3), 2 * F.cross_entropy(logits, (torch.arange(8) + 4) % 8))


def test_both_views_pass_the_batch_norm_together():
    learner, x = SimCLR(out=8).build(**SMALL, img_size=(32, 32)).train(), pictures(8)
    seen = []
    learner.objectives["contrast"].head[1].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    learner({"global": x})
    assert seen == [8] and learner.objectives["contrast"].head[0].out_features == 48


def test_everything_decays_as_in_moco_v3():
    learner = SimCLR(out=16).build(**SMALL, img_size=(32, 32))
    groups, factors = parameter_groups(learner, SimCLR.paper)
    assert [group["weight_decay"] for group in groups] == [0.1] and factors == [None]
    assert any(weight.dim() == 1 for weight in groups[0]["params"])


def test_pictures_that_look_alike_are_noticed():
    learner, x = SimCLR(out=16).build(**SMALL, img_size=(32, 32)).train(), pictures(8)
    learner({"global": x})
    assert learner.collapsed() is None and learner.signs()["pictures_alike"] < 0.97
    with torch.no_grad():
        for block in learner.encoder.trunk.blocks:
            block.attn.proj.weight.zero_()  # the class token sees no picture any more
    learner({"global": x})
    said, remedy = learner.collapsed()
    assert "1.000" in said and "--method.temperature" in remedy and learner.signs()["loss_of_guessing"] == pytest.approx(1, abs=0.1)
    learner.eval()
    learner({"global": x[:2]})
    assert learner.collapsed() is not None, "looking on notes nothing"
