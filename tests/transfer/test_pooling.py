"""Attentive pooling equals the official code: pooled vector, answers, loss and gradients."""

from __future__ import annotations

import pytest
import torch
from golden_files import names
from torch import nn
from torch.nn import functional as F

from unmask.transfer.pooling import AttentivePool

NAMES = {"pooler.query_tokens": "pool.query", "linear.": "head.", "pooler.blocks.": "pool.blocks."}


def ours(key: str, complete: bool) -> str | None:
    """Our name of an official one; None for the map that it never uses."""
    inner = "pooler.cross_attention_block."
    if key.startswith(inner):
        rest = key.removeprefix(inner).removeprefix("xattn.")
        if rest.startswith("proj."):
            return None
        return f"pool.asking.{rest}" if rest.startswith(("q.", "kv.")) else f"pool.{rest}"
    return next(to + key.removeprefix(prefix) for prefix, to in NAMES.items() if key.startswith(prefix))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("attentive_probe", "output.pooled"))
def test_it_is_the_official_one(golden, name):
    tensors, metadata = golden(name)
    said = metadata["config"]
    pool = AttentivePool(said["dim"], said["heads"], said["depth"], said["mlp_ratio"], said["qkv_bias"], said["complete_block"])
    learner = nn.ModuleDict({"pool": pool, "head": nn.Linear(said["dim"], said["classes"])})
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    unused = [key for key in weights if ours(key, said["complete_block"]) is None]
    assert sorted(unused) == sorted(said["parameters_without_gradient"])
    learner.load_state_dict({ours(key, said["complete_block"]): value for key, value in weights.items() if key not in unused})
    pooled = learner["pool"](tensors["input.tokens"])
    torch.testing.assert_close(pooled, tensors["output.pooled"][:, 0], rtol=1e-5, atol=1e-6)
    logits = learner["head"](pooled)
    torch.testing.assert_close(logits, tensors["output.logits"], rtol=1e-5, atol=1e-6)
    loss = F.cross_entropy(logits, tensors["input.labels"])
    torch.testing.assert_close(loss, tensors["output.loss"], rtol=1e-5, atol=1e-6)
    loss.backward()
    grads = [key for key in tensors if key.startswith("grad.")]
    assert grads
    for key in grads:
        torch.testing.assert_close(learner.get_parameter(ours(key.removeprefix("grad."), True)).grad, tensors[key], rtol=1e-5, atol=1e-6)


def test_tokens_may_stand_in_any_order():
    pool, x = AttentivePool(16, 2, depth=2), torch.randn(3, 9, 16)
    torch.testing.assert_close(pool(x), pool(x[:, torch.randperm(9)]))
    assert pool(x).shape == (3, 16)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="3 heads"):
        AttentivePool(16, 3)
