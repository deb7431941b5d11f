"""The page can be read: by eye in light and dark, without colour, by keyboard, aloud; and it loads nothing."""

from __future__ import annotations

import re

import pytest
from html_pages import check
from PIL import Image

from unmask.visualize import page

GROUNDS = ("page", "card", "code")  # what text stands on
TEXTS = ("ink", "quiet", "good", "bad", "open", "note", *(f"series-{i}" for i in range(1, 7)))


def brightness(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


def schemes() -> dict[str, dict[str, str]]:
    """The colours of the light page and of the dark one, from its style."""
    light, _, dark = page.STYLE.partition("@media (prefers-color-scheme: dark)")
    found = {name: dict(re.findall(r"--([\w-]+): *(#[0-9a-f]{6})", part)) for name, part in (("light", light), ("dark", dark[: dark.index("}")]))}
    return {"light": found["light"], "dark": found["light"] | found["dark"]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast_on_every_ground(scheme):
    """WCAG 2.1, success criterion 1.4.3: at least 4.5."""
    colours = schemes()[scheme]
    assert {*GROUNDS, *TEXTS, "rule"} == set(colours)
    weak = {(text, ground): round(ratio, 2) for text in TEXTS for ground in GROUNDS if (ratio := contrast(colours[text], colours[ground])) < 4.5}
    assert not weak


def test_the_style_uses_only_the_colours_that_are_tested():
    """A colour written beside the variables would escape the test above; white under pictures and in print carries no text of ours."""
    rules = re.sub(r":root \{.*?\}", "", page.STYLE, flags=re.S)
    assert set(re.findall(r"#[0-9a-f]{3,6}\b", rules)) <= {"#fff"}
    grounds = set(re.findall(r"background: var\(--([\w-]+)\)", rules))
    texts = set(re.findall(r"(?<![\w-])(?:color|fill): var\(--([\w-]+)\)", rules))
    assert grounds <= {*GROUNDS, "rule"} and texts <= set(TEXTS)  # rule: the ground of a picture, which covers it
    assert "opacity" not in rules  # text that is made fainter


def test_contrast_is_computed_as_the_standard_says():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_the_pieces_make_a_page():
    picture = Image.effect_noise((40, 40), 80)
    body = [
        page.section("In words", page.findings([("good", "a < b"), ("bad", "c")], first=True)),
        page.tiles([("loss", "0.5", "patch mean 1"), ("steps", "3", "")]),
        page.section("Pictures & more", page.figure(page.image(picture, 'an "apple"'), "caption")),
        page.section("Table", page.table(["name", "<b>value</b>"], [["<code>a</code>", "1"], ["b", page.whisker(1, 0, 2, 0, 4)]], "What's in it")),
        page.section("Empty", page.table(["name"], [], "nothing"), page.pairs([]), page.folded("more", ""), page.tiles([]), page.findings([])),
        page.section("Folded", page.folded("more", page.pairs([("lr", "1", "the paper's: 2")])), page.commands([("do", "unmask runs 'a b'")])),
    ]
    text = page.page("title", "heading <i>x</i>", "under & under", body, "foot")
    seen = check(text)
    assert "a &lt; b" in text and "alt=\"an &quot;apple&quot;\"" in text and "Empty" not in text
    assert [link["href"] for link in seen.all("a")] == ["#in-words", "#pictures-more", "#table", "#folded"]
    assert seen.all("img")[0]["class"] == "small"  # drawn pixel by pixel


def test_large_pictures_are_kept_small():
    photograph = Image.radial_gradient("L").resize((400, 400)).convert("RGB")
    assert "image/jpeg" in page.image(photograph, "large") and "image/png" in page.image(photograph.resize((64, 64)), "small")


def test_a_wide_page_has_no_width_of_its_own():
    """Nothing in the style is wider than a phone: grids fall to one column, tables scroll inside themselves."""
    assert all(int(least) <= 158 or "min(100%" in whole for whole, least in re.findall(r"(minmax\(([\d]+)px)", page.STYLE))
    assert not [width for width in re.findall(r"(?<!max-)(?:min-)?width: (\d+)px", page.STYLE) if int(width) > 100]
