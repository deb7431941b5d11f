"""The views on the sheet are the run's own, crop by crop and flip by flip."""

import pytest
import torch
from PIL import Image

import unmask
from unmask import cli
from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.statistics import survey
from unmask.errors import Refused
from unmask.settings import Views
from unmask.visualize import views


@pytest.fixture
def pictures(tmp_path):
    torch.manual_seed(0)
    for i in range(5):
        Image.effect_noise((60 + 9 * i, 48), 90).convert("RGB").save(tmp_path / f"{i}.png")
    source = open_source(str(tmp_path))
    return Pictures(source, survey(source, None, "measured", 0, 0.05), Views(), (32, 48), seed=3)


def test_the_crops_are_those_of_the_run(pictures):
    taken = {}
    for epoch, batch in enumerate(pictures.batches(5, 0, 2)):
        x = pictures.finish(batch, "cpu")
        taken |= {(epoch, int(index)): view for index, view in zip(batch["index"], x)}
    for index in range(5):
        ours = views.crops(pictures, index, 2)
        assert all(torch.equal(ours[epoch], taken[epoch, index]) for epoch in range(2))


def test_the_sheet_is_drawn_and_bad_pictures_are_named(pictures, tmp_path):
    drawn = views.show(pictures, epochs=3, out=tmp_path / "out" / "views.png")
    assert min(drawn.size) >= 100 and (tmp_path / "out" / "views.png").is_file()
    (tmp_path / "2.png").write_bytes(b"nothing")
    views.show(pictures, [1, 2], epochs=1)
    with pytest.raises(Refused, match=r"2\.png"):
        views.show(pictures, [2], epochs=1)


def test_the_words_of_a_run_are_taken_and_local_crops_are_the_runs(pictures, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(views, "show", lambda pictures, *rest, out: (seen.append(pictures.views), Image.new("RGB", (48, 48)).save(out)))
    for words in (["--patch_size", "4"], [], ["--views.local_size", "16", "--views.blur", ".5,0,0"], ["--patch_size", "8", "--views.global_scale", ".5,1"]):
        assert cli.main(["show", "views", "dino", str(tmp_path), "--img_size", "32", "--out", str(tmp_path.parent / "views-sheet.png"), *words]) == 0
    assert [crops.local_size for crops in seen] == [(12, 12), (12, 12), (16, 16), (16, 16)]
    assert seen[2].blur == (0.5, 0, 0) and seen[3].global_scale == (0.5, 1)
    with pytest.raises(Refused, match="no whole patches of 4 x 4"):
        unmask.show_views(str(tmp_path), "dino", img_size=32, patch_size=4, **{"views.local_size": (14, 14)})
    with pytest.raises(Refused, match=r"views\.local_crops"):
        unmask.show_views(str(tmp_path), "mae", img_size=32, **{"views.local_crops": 4})
