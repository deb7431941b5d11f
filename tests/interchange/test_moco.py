"""Training checkpoints of MoCo v3: every name is used and found again, and the learner's loss is the official one."""

import pytest
import torch
from golden_files import keys, lists, names, published
from torch.testing import assert_close

import unmask
from unmask.errors import Refused
from unmask.interchange import moco
from unmask.methods.mocov3 import MoCoV3


@pytest.mark.parametrize("name", sorted({"mocov3_vits", "mocov3_vitb"} & lists().keys()))
def test_published_names_and_shapes_fill_a_learner_and_are_found_again(name):
    weights = published(name)
    assert moco.tells(weights.state)
    width = weights.state["base_encoder.cls_token"].shape[-1]
    with torch.device("meta"):
        learner = MoCoV3(**moco.settings(weights.state)).build("vit_base_patch16_224", width=width, heads=12)
    shapes = lambda state: {key: tuple(value.shape) for key, value in state.items()}  # noqa: E731
    found, left = moco.ours(weights.state)
    assert not left and shapes(found) == shapes(learner.state_dict())
    assert shapes(moco.theirs(learner.state_dict())) == keys(name)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mocov3", "output.q1", "facebookresearch/moco-v3@"))
def test_a_checkpoint_opens_as_the_learner_and_goes_back(golden, name, tmp_path):
    tensors, metadata = golden(name)
    config = metadata["config"]
    state = {f"module.{key.removeprefix('weights.')}": value for key, value in tensors.items() if key.startswith("weights.")}
    torch.save({"state_dict": state, "arch": "vit_small", "epoch": 300}, tmp_path / "vit-s-300ep.pth.tar")
    learner = unmask.load(f"{tmp_path / 'vit-s-300ep.pth.tar'}:heads={config['heads']}").train()
    contrast = learner.objectives["contrast"]
    contrast.move(learner.encoder, config["m"])
    loss = learner({"global": torch.cat([tensors["input.view1"], tensors["input.view2"]])})["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-5, atol=1e-5)
    again = moco.theirs(unmask.load(f"{tmp_path / 'vit-s-300ep.pth.tar'}:heads={config['heads']}").state_dict())
    assert {key for key in again if not key.endswith("num_batches_tracked")} == state.keys()  # counts, which the golden file leaves out
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.golden
def test_what_does_not_fit_is_refused(golden, tmp_path):
    tensors, metadata = golden("mocov3")
    state = {f"module.{key.removeprefix('weights.')}": value for key, value in tensors.items() if key.startswith("weights.")}
    torch.save({"state_dict": state | {"module.queue": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(Refused, match=r"unknown.*queue"):
        unmask.load(f"{tmp_path / 'other.pth'}:heads={metadata['config']['heads']}")
