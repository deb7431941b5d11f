"""Training checkpoints of DINO, iBOT and DINOv2: every name is used and found again, and the learner says what the official one says."""

from __future__ import annotations

import re

import pytest
import torch
from golden_files import lists, names, published
from torch.testing import assert_close

import unmask
from unmask.errors import Refused
from unmask.interchange import distilled
from unmask.interchange.official import take_apart
from unmask.interchange.shapes import network_of
from unmask.interchange.timm import rebuild
from unmask.methods import find

WHOLE = {"dino_vits16_full_teacher": "dino", "dino_vitb16_full_teacher": "dino", "dinov2_vitl16_short_teacher": "dinov2"}
WHOLE |= {f"ibot_vit{size}16_student_full": "ibot" for size in "sbl"}


@pytest.mark.parametrize("name", sorted(WHOLE.keys() & lists()))
def test_published_names_and_shapes_fill_a_learner_and_are_found_again(name):
    weights = published(name)
    state, method = weights.state, WHOLE[name]
    assert distilled.method_of(state) == method
    network = network_of(take_apart(weights).trunk, name)
    with torch.device("meta"):
        learner = find(method)(**distilled.settings(state)).build(rebuild(network.name, network.kwargs, empty=True))
    own = {key: value.shape for key, value in learner.state_dict().items() if key.startswith(("encoder.", "head.", "patch_head."))}
    found, left = distilled.ours(state)
    assert not left
    token = {"encoder.mask_token"} & own.keys() - found.keys()  # a teacher has none
    assert {key: value.shape for key, value in found.items()} == {key: shape for key, shape in own.items() if key not in token}
    again = distilled.theirs(learner.state_dict(), method, teacher="teacher" in name)
    chunked = {re.sub(r"blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value.shape for key, value in state.items()}
    if "teacher" in name:
        chunked = {key: shape for key, shape in chunked.items() if not key.endswith(("mask_token", "masked_embed"))}
    assert {key: value.shape for key, value in again.items()} == chunked


FILES = [*names("dino", "output.student_logits"), *names("ibot", "output.student_patch"), *names("dinov2", "output.student_patch_logits")]


@pytest.mark.golden
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_opens_as_the_learner_and_goes_back(golden, name, tmp_path):
    tensors, metadata = golden(name)
    config = metadata["config"]
    student = {key.removeprefix("weights.student."): value for key, value in tensors.items() if key.startswith("weights.student.")}
    torch.save({"student": {f"module.{key}": value for key, value in student.items()}, "epoch": 3}, tmp_path / "checkpoint.pth")
    learner = unmask.load(f"{tmp_path / 'checkpoint.pth'}:heads={config['heads']}")
    if name.startswith("dino") and not name.startswith("dinov2"):
        views = torch.cat([tensors["input.view.0"], tensors["input.view.1"]])
        assert_close(learner.head(learner.encoder(views).prefix[:, 0]), tensors["output.student_logits"][: len(views)], rtol=1e-5, atol=2e-6)
        assert_close(learner.teacher["head"](learner.teacher["encoder"](views).prefix[:, 0]), tensors["output.student_logits"][: len(views)], rtol=1e-5, atol=2e-6)
    again = distilled.theirs(learner.state_dict(), distilled.method_of(student))
    flat = {re.sub(r"blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in student.items()}
    flat = flat if config.get("block_chunks", 0) > 1 else student
    assert again.keys() == flat.keys()
    places = {"backbone.cls_token", "backbone.pos_embed"} if config.get("registers") else set()  # there the class token has its place within it
    for key in flat.keys() - places:
        assert torch.equal(again[key], flat[key]), key
    if places:
        assert_close(again["backbone.cls_token"] + again["backbone.pos_embed"][:, :1], flat["backbone.cls_token"] + flat["backbone.pos_embed"][:, :1])


def test_what_does_not_fit_is_refused(tmp_path):
    from unmask.methods.dino import DINO
    from unmask.testing import SMALL

    learner = DINO(prototypes=12, hidden=16, bottleneck=8).build(**SMALL, img_size=(32, 32))
    state = distilled.theirs(learner.state_dict(), "dino")
    torch.save({"teacher": state | {"backbone.odd": torch.zeros(1)}}, tmp_path / "odd.pth")
    with pytest.raises(Refused, match="odd"):
        unmask.load(tmp_path / "odd.pth")
    torch.save({"teacher": {key: value for key, value in state.items() if "mlp.4" not in key}}, tmp_path / "less.pth")
    with pytest.raises(Refused, match=r"missing \['head\.mlp\.4"):
        unmask.load(f"{tmp_path / 'less.pth'}:heads=3")


def test_heads_continue_where_they_fit(tmp_path):
    from unmask.interchange.initialise import fill_heads
    from unmask.methods.dino import DINO
    from unmask.testing import SMALL

    first, second = (DINO(prototypes=12, hidden=16, bottleneck=8).build(**SMALL, img_size=(32, 32)) for _ in range(2))
    torch.save({"teacher": distilled.theirs(first.state_dict(), "dino")}, tmp_path / "checkpoint.pth")
    assert fill_heads(second, str(tmp_path / "checkpoint.pth")) == ["heads: continue from the source's"]
    assert torch.equal(first.head.last_layer.weight_v, second.head.last_layer.weight_v) and torch.equal(first.head.mlp[0].bias, second.head.mlp[0].bias)
    other = DINO(prototypes=13, hidden=16, bottleneck=8).build(**SMALL, img_size=(32, 32))
    assert fill_heads(other, str(tmp_path / "checkpoint.pth")) == ["heads: begin anew, the source's have other sizes"]
    assert fill_heads(torch.nn.Linear(2, 2), "nothing") == []
