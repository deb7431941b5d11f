"""The layers of settings: dataclass < paper < file < words."""

from __future__ import annotations

import dataclasses

import pytest

from unmask.errors import Refused
from unmask.methods import find
from unmask.recipe import absolute, name_of, settle
from unmask.settings import Ratio


def test_what_is_typed_goes_above_the_file_and_that_above_the_paper(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("method: mae\ndata: photos\nsteps: 20\nweight_decay: 0.1\nmethod.mask_ratio: 0.6\nviews.flip: 0\n")
    recipe = settle(None, None, file, {"weight_decay": 0.2, "img_size": "64 32"})
    assert (recipe.name, recipe.data) == ("mae", "photos")
    assert (recipe.train.weight_decay, recipe.train.steps, recipe.train.epochs, recipe.train.batch_size) == (0.2, 20, None, 4096)
    assert (recipe.method.mask_ratio, recipe.views.flip, recipe.trunk.img_size) == (Ratio(0.6, 0.6), 0.0, (64, 32))
    assert recipe.given == {"steps", "weight_decay", "method.mask_ratio", "views.flip", "img_size"}
    assert settle("mae", "photos", None, {}).train == find("mae").paper


def test_the_file_of_a_run_settles_into_the_same_recipe(tmp_path):
    file = tmp_path / "config.yaml"
    recipe = settle("mae", str(tmp_path), None, {"time": "8h", "lr": 0.1 + 0.2, "method.mask_ratio": ".5:.75", "views.scale": (1 / 3, 1), "normalize": "imagenet"})
    file.write_text(recipe.text())
    again = settle(None, None, file, {})
    for one in ("name", "data", "trunk", "input", "train", "views"):
        assert getattr(again, one) == getattr(recipe, one)
    assert vars(again.method) == vars(recipe.method)
    assert again.lines() == recipe.lines()
    assert "\nout:" not in recipe.text()


def test_an_instance_is_a_method():
    recipe = settle(find("mae")(mask_ratio=0.6), ["a.png"], None, {"method.norm_pix": False})
    assert (recipe.name, recipe.method.mask_ratio, recipe.method.norm_pix) == ("mae", Ratio(0.6, 0.6), False)


@dataclasses.dataclass(frozen=True)
class Mine:
    """A method outside the tree."""

    strength: int = 1  # how much


def test_somebody_elses_instance_is_found_again_by_its_file():
    assert name_of(Mine()) in (f"{__file__}:Mine", f"{__name__}:Mine")


def test_another_method_above_a_file_leaves_the_settings_of_its_own_method(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("method: other\ndata: x\nmethod.unknown: 3\nsteps: 2\n")
    assert settle("mae", None, file, {}).train.steps == 2


@pytest.mark.parametrize(
    ("text", "answer"), [("method: maee\ndata: x", "mae"), ("method: mae\ndata: x\nepoch: 3", "c.yaml: unknown option epoch, did you mean epochs"), ("data: x", "method")]
)
def test_a_wrong_file_is_refused(tmp_path, text, answer):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(Refused, match=answer):
        settle(None, None, tmp_path / "c.yaml", {})


def test_paths_in_the_file_hold_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("photos") == str(tmp_path / "photos")
    assert absolute("my.py:Mine") == f"{tmp_path}/my.py:Mine"
    for word in ("mae", "hf:a/b", "timm:vit", "package.module:Mine", None):
        assert absolute(word) == word
