"""What nobody said is chosen for the data and the machine, each choice with its reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from unmask.errors import Refused
from unmask.methods import METHODS, find
from unmask.methods.statement import known
from unmask.recipe import settle
from unmask.training import plan, pretraining


@dataclass(frozen=True)
class SimpleRecipe:
    """A recipe that says its method alone, as the statement without imports has it."""

    name: str
    method: object


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    return path


def choice(data: Path, size: int = 224, count: int = 1000, **said):
    recipe = settle("mae", str(data), None, said)
    source_format = pretraining.measured(recipe, pretraining.opened(recipe))
    return plan.choose(recipe, count, replace(source_format, size=(size, size)))


def test_what_nobody_said_is_chosen_with_a_reason(data):
    recipe, said = choice(data, accelerator="cpu")
    assert recipe.trunk.img_size == (64, 64) and recipe.trunk.patch_size == 8 and recipe.trunk.depth == 6
    assert recipe.train.batch_size == 128 and recipe.train.steps * 128 == pytest.approx(200_000, rel=0.01)
    assert all(any(line.startswith(word) for line in said) for word in ("accelerator", "img_size", "patch_size", "model", "batch_size", "epochs", "precision", "workers"))
    recipe, _ = choice(data, size=32, accelerator="cpu")
    assert recipe.trunk.img_size == (32, 32) and recipe.trunk.patch_size == 4
    recipe, _ = choice(data, accelerator="cpu", model="vit_base_patch16_224")
    assert recipe.trunk.img_size == (224, 224) and recipe.trunk.patch_size is None
    recipe, _ = choice(data, accelerator="cpu", epochs=10, batch_size=50, base_lr=1e-3)
    assert recipe.train.steps == 200 and recipe.train.base_lr == 1e-3


def test_networks_of_stages_are_small_on_a_cpu_too(data):
    """hiera_mae's own network is 96 wide at first and 768 at last, whose decoder would be the paper's 512 x 8."""
    recipe = settle("hiera_mae", str(data), None, {"img_size": 32, "accelerator": "cpu"})
    recipe, said = plan.choose(recipe, 1000, pretraining.measured(recipe, pretraining.opened(recipe)))
    assert (recipe.trunk.model, recipe.trunk.patch_size, recipe.trunk.width) == ("hiera_tiny_224", 1, 24) and any("192 at last" in line for line in said)
    learner = find("hiera_mae")().build(recipe.trunk.model, recipe.trunk.img_size, patch_size=1, width=recipe.trunk.width)
    recipe, _ = plan.sized(recipe, learner)
    assert learner.encoder.width == 192 and (recipe.method.decoder_width, recipe.method.decoder_depth) == (128, 4)
    asked = settle("hiera_mae", str(data), None, {"img_size": 32, "accelerator": "cpu", "model": "hiera_tiny_224", "patch_size": 1})
    assert plan.choose(asked, 1000, pretraining.measured(asked, pretraining.opened(asked)))[0].trunk.width is None


def test_an_hour_at_most_where_nobody_said_how_long(data):
    recipe, _ = choice(data, accelerator="cpu")
    slow, said = plan.paced(recipe, plan.Pace(60.0, 32))
    assert slow.train.steps == 59 and any("an hour" in line for line in said)  # the rest is for what is measured along the way
    told, _ = choice(data, accelerator="cpu", epochs=100)
    assert plan.paced(told, plan.Pace(60.0, 32))[0].train.steps == told.train.steps


def test_a_batch_is_cut_to_fit_the_memory(data):
    recipe, _ = choice(data, accelerator="cpu", batch_size=64)
    assert plan.fitting(recipe.train, 1e9, 1e12, False) == (recipe.train, [])
    cut, said = plan.fitting(recipe.train, 1e9, 40e9, False)
    assert cut.accumulate == 2 and "accumulate 2" in said[0]
    assert plan.fitting(recipe.train, 1e9, 40e9, True) == (recipe.train, [])


def test_a_batch_that_cannot_be_split_is_refused_before_anything_is_built(data):
    with pytest.raises(Refused, match="batch_size 50 cannot be split"):
        choice(data, accelerator="cpu", batch_size=50, accumulate=4)


ALONE = {"mocov3": {}, "simclr": {}, "mae_ct": {"method.joint": True}, "dinov2": {}}


@pytest.mark.parametrize("batch, accumulate, wanted", [(1, 1, "--batch_size 2 or more$"), (4, 4, "--batch_size 8 or more, two for each of 4 ")])
@pytest.mark.parametrize("name", ALONE)
def test_a_picture_alone_is_refused_where_pictures_are_compared(name, batch, accumulate, wanted, data):
    recipe = settle(name, str(data), None, ALONE[name] | {"batch_size": batch, "accumulate": accumulate})
    with pytest.raises(Refused, match=f"{name} compares pictures: {wanted}"):
        plan.together(recipe.method, recipe.name, recipe.train)
    plan.together(recipe.method, recipe.name, replace(recipe.train, batch_size=2 * accumulate))
    assert plan.fitting(replace(recipe.train, batch_size=8, accumulate=1), 1e9, 1e6, False, plan.least(recipe.method))[0].accumulate == 4


def test_one_picture_is_enough_where_none_are_compared(data):
    for name, said in (("mae", {}), ("dino", {}), ("dinov2", {"method.koleo": 0.0})):
        recipe = settle(name, str(data), None, said | {"batch_size": 1})
        assert plan.least(recipe.method) == 1
        plan.together(recipe.method, recipe.name, recipe.train)


def test_precision_is_what_the_hardware_is_fast_at(data, monkeypatch):
    assert choice(data, accelerator="cpu", precision="bf16-mixed")[0].train.precision == "bf16-mixed"
    for amx, wanted in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(plan.torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert choice(data, accelerator="cpu")[0].train.precision == wanted


@pytest.mark.parametrize("width", [96, 768])
@pytest.mark.parametrize("name", [name for name in METHODS if "decoder_size" in vars(find(name))])
def test_the_decoder_that_is_recorded_is_the_one_that_was_built(name, width):
    """Of every method, as its defaults have it: a run that writes another size could not be opened again."""
    own = {"teacher": "random:vit_tiny_patch16_224"} if name == "milan" else {}
    network = {"model": "hiera_tiny_224", "width": width // 8, "img_size": (64, 64)} if name == "hiera_mae" else {"model": "vit_tiny_patch16_224", "width": width, "depth": 3, "heads": 6, "img_size": (64, 64), "patch_size": 8}
    learner = find(name)(**own).build(**network)
    recipe, said = plan.sized(SimpleRecipe(name, known(name)(**own)), learner)
    again = find(name)(**vars(recipe.method)).build(**network)
    assert said and {key: value.shape for key, value in again.state_dict().items()} == {key: value.shape for key, value in learner.state_dict().items()}
    assert all(getattr(recipe.method, field) is not None for field in ("decoder_width", "decoder_depth", "decoder_heads"))
    assert plan.sized(recipe, again) == (recipe, [])
