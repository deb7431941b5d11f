"""Official state dicts: MAE's names both ways. Published key lists: methods/test_mae.py and test_foreign.py."""

import pytest
import torch

from unmask.interchange import official
from unmask.methods.mae import MAE
from unmask.testing import SMALL


@pytest.mark.parametrize(("patch", "channels"), [((8, 8), 3), ((4, 2), 5), ((16, 16), 1)])
def test_the_permutation_is_the_order_of_the_official_patchify(patch, channels):
    x = torch.randn(channels, *patch)
    theirs = torch.einsum("chw->hwc", x).reshape(-1)  # models_mae.py: nchpwq -> nhwpqc
    assert torch.equal(official.channel_first(theirs, patch), x.flatten())
    assert torch.equal(official.channel_last(x.flatten(), patch), theirs)


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_there_and_back(channels):
    learner = MAE().build(**SMALL, img_size=(32, 48), in_chans=channels)
    state = learner.state_dict()
    names = official.to_mae(state, learner.encoder.patch)
    assert len(names) == len(state) and {"cls_token", "decoder_pred.weight", "blocks.1.mlp.fc2.bias", "mask_token"} <= names.keys()
    again, left = official.from_mae(names)
    assert not left and again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)


def test_an_unknown_key_is_reported():
    state = {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4), "head.weight": torch.zeros(1), "decoder_pos_embed": torch.zeros(1)}
    ours, left = official.from_mae(state)
    assert left == ["head.weight"] and list(ours) == ["encoder.trunk.patch_embed.proj.weight"]
