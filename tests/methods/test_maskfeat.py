"""MaskFeat against the official code's numbers."""

import json

import pytest
import torch
from golden_files import check_gradients, check_law, mask_of, names
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.methods.mae import MAE
from unmask.methods.maskfeat import MaskFeat
from unmask.testing import SMALL, pictures

OFFICIAL = "facebookresearch/SlowFast@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
TABLE = {"pred_head.transforms.0.0.": "encoder.trunk.norm.", "pred_head.projections.0.": "objectives.hog.decoder.predict.", "mask_token": "encoder.mask_token"}


def ours(official: dict) -> dict:
    """The official names as ours; the norm of their head is our trunk's last. The Sobel kernels are constants."""
    found = {}
    for key, value in official.items():
        if not key.startswith("hogs."):
            table = next((theirs for theirs in TABLE if key.startswith(theirs)), None)
            found["encoder.trunk." + key if table is None else TABLE[table] + key[len(table) :]] = value
    return found


def learner_at(config, width=None):
    size, patch = config["img_size"], config["patch_size"]
    return MaskFeat().build("vit_tiny_patch16_224", (size, size), 3, patch, width=width or config["embed_dim"], depth=config["depth"], heads=config["num_heads"])


@pytest.mark.golden
@pytest.mark.parametrize("name", names("maskfeat", "output.prediction_all", OFFICIAL))
def test_target_prediction_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    learner = learner_at(metadata["config"])
    learner.load_state_dict(ours({key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}))
    x, mask = tensors["input.x"], mask_of(tensors["input.mask"])
    target = learner.objectives["hog"].target
    assert_close(target.histograms(x), tensors["output.hog_cells"], **CLOSE)
    assert_close(target(x), tensors["output.target_all"], **CLOSE)
    found = learner.predict(x, mask, "hog")
    kept = mask.weight > 0
    assert_close(found["prediction"][kept], tensors["output.prediction_masked"], **CLOSE)
    assert_close(found["truth"][kept], tensors["output.target_masked"], **CLOSE)
    loss = learner(x, mask=mask)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    check_gradients(learner, ours({key.removeprefix("grad."): value for key, value in tensors.items() if key.startswith("grad.")}))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("maskfeat", "law.pretrain_mean_std_absmax_count", OFFICIAL))
def test_initial_values_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    config, width = golden("maskfeat")[1]["config"], int(metadata["config"]["model"].split("width ")[1])
    order = json.loads(metadata["pretrain_names"])
    torch.manual_seed(0)

    def draw():
        state = learner_at(config, width).state_dict()
        return {theirs: state[mine] for theirs, mine in zip(order, ours(dict.fromkeys(order)))}

    check_law(tensors["law.pretrain_mean_std_absmax_count"], order, draw)


def test_the_papers_sizes_and_other_patches():
    with torch.device("meta"):
        learner = MaskFeat().build()
    assert learner.objectives["hog"].decoder.predict.out_features == 108 and learner.masking.smallest == 15
    small = MaskFeat(bins=6).build(**SMALL | {"patch_size": 4}, img_size=(32, 32), in_chans=2)
    assert small.objectives["hog"].decoder.predict.out_features == 12 and small.objectives["hog"].target.cell == 4


def test_hog_is_a_target_for_mae():
    learner = MAE(target="hog").build(**SMALL, img_size=(32, 32))
    losses = learner(pictures(4))
    assert set(losses) == {"hog", "loss"} and learner.objectives["hog"].decoder.predict.out_features == 27


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="bins"):
        MaskFeat(bins=0)
    with pytest.raises(Refused, match="cells of 5"):
        MaskFeat(cell=5).build(**SMALL, img_size=(32, 32))
