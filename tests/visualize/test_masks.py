"""Masks to look at: every strategy draws, the sheet tells the share, wrong words are refused."""

import pytest
import torch
from PIL import Image

import unmask
from unmask.errors import Refused
from unmask.masking import STRATEGIES, Attended, Random
from unmask.methods import METHODS
from unmask.methods.statement import known
from unmask.visualize import masks

HIDES_NOTHING = ("nothing", "none", "–")  # how the masking column of a method's row begins then


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_draws(name, tmp_path):
    drawn = masks.show(name, draws=50, out=tmp_path / "deep" / "mask.png")
    assert min(drawn.size) >= 100
    assert Image.open(tmp_path / "deep" / "mask.png").size == drawn.size


@pytest.mark.parametrize("name", METHODS)
def test_what_every_method_hides_is_drawn(name, tmp_path):
    """Or, of a method that hides nothing (its row says so), refused."""
    if known(name).row[1].startswith(HIDES_NOTHING):
        with pytest.raises(Refused, match="hides no patches"):
            masks.show(name)
    else:
        assert min(masks.show(name, draws=20, out=tmp_path / "mask.png").size) >= 100


def test_a_teacher_guides_the_mask():
    """What it looks at stays visible more often; without one a stand-in is drawn and called that."""
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    scores = masks.attention("random:vit_tiny_patch16_224", picture, (4, 4))
    assert scores.shape == (16,) and 0 < scores.sum() <= 1
    assert masks.show("milan", grid=(4, 4), scores=scores, draws=10).tobytes() != masks.show("milan", grid=(4, 4), draws=10).tobytes()
    often = Attended(0.5)((4, 4), torch.rand(4000, 16), masks.middle((4, 4)).expand(4000, -1)).map.float().mean(0).reshape(4, 4)
    assert often[1:3, 1:3].max() < often[[0, 0, -1, -1], [0, -1, 0, -1]].min()
    with pytest.raises(Refused, match="SwinTransformer has no attention"):
        masks.attention("random:swin_tiny_patch4_window7_224", picture, (4, 4))


def test_a_ratio_a_grid_and_a_picture_may_be_given():
    picture = Image.effect_noise((50, 90), 60)
    assert masks.show("random", ratio=0.5, grid=(4, 9), picture=picture, count=3, draws=10).width > 400
    assert masks.show(Random(0.6, cell=2), grid=(8, 8), draws=10).height > 400


def test_the_same_seed_draws_the_same_sheet():
    first, second, third = (masks.show("block", draws=20, seed=seed).tobytes() for seed in (1, 1, 2))
    assert first == second != third


@pytest.mark.parametrize(("name", "ratio", "said"), [("blok", None, "block"), ("zzz", None, "random, block"), ("random", 1.5, "mask_ratio"), ("aim", 0.5, "no ratio"), ("mae", 1.5, "mask_ratio"), ("bootmea", None, "bootmae")])
def test_wrong_words_are_refused(name, ratio, said):
    with pytest.raises(Refused, match=said):
        masks.show(name, ratio=ratio)


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(Refused, match="cells"):
        masks.show(Random(0.5, cell=2), grid=(7, 7), draws=10)


def test_the_histogram_has_a_bar_where_the_count_is_fixed():
    drawn = masks._histogram(torch.full((100,), 147), 196, (224, 224))
    assert (46, 107, 190) in [colour for _, colour in drawn.getcolors(maxcolors=1 << 16)]


def test_a_runs_own_chances_are_drawn(tmp_path):
    """Two pictures, two sets of chances that add up to one; without a run every patch has the same, and no teacher is spoken of."""
    for number in range(6):
        Image.effect_noise((40, 40), 20 + 30 * number).convert("RGB").save(tmp_path / f"{number}.png")
    words = {"width": 48, "depth": 1, "heads": 3, "img_size": 32, "patch_size": 8, "steps": 2, "batch_size": 4, "workers": 0, "method.decoder_depth": 1}
    run = unmask.pretrain("adamae", str(tmp_path), tmp_path / "run", model="vit_tiny_patch16_224", **words)
    told = [masks.of_run(run, Image.open(tmp_path / f"{number}.png")) for number in (0, 5)]
    assert isinstance(told[0][0], Attended) and told[0][2] == (4, 4)
    assert all(scores.sum() == pytest.approx(1, abs=1e-5) for _, scores, _ in told) and not torch.equal(told[0][1], told[1][1])
    assert unmask.show_mask(str(run), picture=str(tmp_path / "0.png"), out=str(tmp_path / "of" / "run.png")).is_file()
    with pytest.raises(Refused, match="depend on the picture"):
        unmask.show_mask(str(run))
    with pytest.raises(Refused, match="leave --mask_ratio"):
        unmask.show_mask(str(run), mask_ratio=0.5)
    assert masks.learned("adamae") and not masks.learned("milan")
    fresh = masks.show("adamae", grid=(4, 4), draws=10).tobytes()
    assert fresh == masks.show("adamae", grid=(4, 4), draws=10, scores=None).tobytes() != masks.show("milan", grid=(4, 4), draws=10).tobytes()


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    for name in ("x.png", "cut.png"):
        with pytest.raises(Refused, match="is no picture that can be read"):
            unmask.show_mask("random", picture=str(tmp_path / name))
