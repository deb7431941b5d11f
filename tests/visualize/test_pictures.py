"""Numbers to pictures: the right numbers, readable sheets."""

import pytest
import torch
from PIL import Image

from unmask.errors import Refused
from unmask.visualize.pictures import Colours, Row, cover, enlarge, heat, sheet, shorten, wrap
from unmask.visualize.pictures import font as letters


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_undone_exactly(channels):
    pixels = torch.randint(0, 256, (2, channels, 6, 9))
    mean, std = [0.4, 0.5, 0.3][:channels], [0.2, 0.25, 0.3][:channels]
    x = (pixels / 255 - torch.tensor(mean).reshape(-1, 1, 1)) / torch.tensor(std).reshape(-1, 1, 1)
    colours = Colours.of(x, mean, std)
    picture = colours.images(x)[1]
    assert picture.size == (9, 6) and not colours.note
    values = torch.tensor(list(picture.tobytes())).reshape(6, 9, 3).permute(2, 0, 1)
    assert torch.equal(values, pixels[1].expand(3, -1, -1))


def test_many_channels_show_three_bands_and_say_so():
    x = torch.randn(2, 13, 8, 8)
    colours = Colours.of(x, [0.0] * 13, [1.0] * 13, bands=(3, 2, 1))
    assert "Bands 4, 3, 2 of 13" in colours.note and colours.images(x)[0].mode == "RGB" and colours.label == ", bands 4 3 2"
    grey = Colours.of(x, [0.0] * 13, [1.0] * 13, bands=(7,))
    assert grey.label == ", band 8" and len(set(grey.images(x)[0].getpixel((3, 3)))) == 1
    assert Colours.of(x[:, :3], [0.0] * 3, [1.0] * 3).label == ""  # all that the network sees
    assert colours.unit(x).shape == x.shape
    assert Colours.of(x[:, :2], [0.0], [1.0]).bands == (0,)  # two channels: the first, in grey
    with pytest.raises(Refused, match="1 to 13"):
        Colours.of(x, [0.0], [1.0], bands=(0, 1, 13))


def test_unknown_statistics_still_give_a_picture():
    x = 5 + 3 * torch.randn(1, 3, 16, 16)
    assert len(Colours.of(x, None, None).images(x)[0].getcolors(maxcolors=1 << 20)) > 100


def test_small_pictures_grow_by_whole_numbers_and_keep_their_pixels():
    picture = Image.effect_noise((32, 48), 80).convert("RGB")
    grown = enlarge(picture)
    assert grown.size == (160, 240)
    assert grown.resize((32, 48), Image.Resampling.NEAREST).tobytes() == picture.tobytes()
    assert enlarge(Image.new("RGB", (4000, 200))).size == (2880, 144)  # long ones keep a short side that can be seen
    assert enlarge(Image.new("RGB", (224, 224))).size == (224, 224)


def test_cover_hides_exactly_the_unknown():
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[:2] = True
    covered = cover(Image.new("RGB", (4, 4), (255, 0, 0)), known)
    assert covered.getpixel((0, 0)) == (255, 0, 0) and covered.getpixel((0, 3)) == (138, 144, 154)


def test_heat_runs_from_black_to_bright():
    picture = heat(torch.tensor([[0.0, 0.5, 1.0]]), 1.0)
    light = [sum(picture.getpixel((i, 0))) for i in range(3)]
    assert light[0] < 10 < light[1] < light[2]
    assert heat(torch.zeros(2, 2)).size == (2, 2)  # nothing to divide by


def test_a_sheet_holds_all_its_rows_and_text_fits():
    rows = [Row([Image.new("RGB", (64, 64))] * 3, "a label", ["one", "two", "three"])] * 2
    drawn = sheet(rows, ["first", "second", "a heading that is far too long for its column"], "title", ["legend " * 60])
    assert drawn.width >= 3 * 192 and drawn.height > 2 * 192
    small = letters(14)
    assert small.getlength(shorten("a-very-long-file-name-" * 9 + ".jpg", 200, small)) <= 200
    assert all(small.getlength(line) <= 200 for line in wrap("words and words " * 20, 200, small))
    assert sheet([]).width >= 100
