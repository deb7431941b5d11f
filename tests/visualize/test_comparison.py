"""compare.html: one file, nothing from a network, every picture with words, the sentence first."""

import re

import numpy as np
import pytest

from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.statistics import IMAGENET, Format
from unmask.evaluation.comparison import Comparison, Entrant
from unmask.settings import Views
from unmask.visualize.comparison import SHOWN, around_zero, write

ENTRANTS = [Entrant("runs/<A>", "encoder", "vit"), Entrant("runs/B", "encoder", "vit"), Entrant("runs/C", "encoder"), Entrant("pixel statistics", "pixels", "", ("runs/<A>", "runs/B", "runs/C"))]


@pytest.fixture(scope="module")
def photos(imagenette):
    source = open_source(imagenette / "val")
    return Pictures(source, Format(3, (0,) * 3, (255,) * 3, *IMAGENET), Views(), (32, 32))


def comparison(photos, task):
    rng, n = np.random.default_rng(0), len(photos)
    labels = photos.source.labels
    truth = labels.values if task == "classes" else rng.random((n, 2)).round() if task == "tags" else rng.normal(size=(n, 2))
    answers = {}
    for one, share in zip(ENTRANTS, (0.8, 0.6, 0.58, 0.2)):
        right = rng.random(n) < share
        answers[one.name] = 4.0 * np.eye(10)[np.where(right, truth, (truth + 1) % 10)] - 2 if task == "classes" else truth + (1.1 - share) * rng.normal(size=(n, 2))
    names = labels.names if task == "classes" else ["sharp", "dark"]
    paths = [photos.source.name(i) for i in range(n)]
    about = {"n_train": 500, "val": "--val", "img_size": [32, 32], "seed": 0, "seconds": 1.0}
    return Comparison(task, names, paths, truth, None, ENTRANTS, {"knn": answers, "linear": answers}, {}, list(range(n)), about, ("3 pictures are too good",))


@pytest.mark.parametrize("task", ["classes", "tags", "numbers"])
def test_the_page(photos, tmp_path, task):
    found = comparison(photos, task)
    told = found.told()
    text = write(found, {**told, "data": "photos"}, photos, tmp_path / "compare.html").read_text(encoding="utf-8")
    assert text.index(told["verdict"].replace("<", "&lt;").replace(">", "&gt;")) < text.index("<h2>The table")
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|https?://|@import|url\(", text), "something is loaded from elsewhere"
    assert "runs/<A>" not in text and "runs/&lt;A&gt;" in text
    pictures = re.findall(r"<img [^>]*>", text)
    alts = [re.search(r'alt="([^"]+)"', picture) for picture in pictures]
    assert len(pictures) > 20 and all(alts), "a picture without words"
    assert all(re.search(r'role="img" aria-label="[^"]+"', picture) for picture in re.findall(r"<svg width=\"160\" height=\"18\"[^>]*>", text))
    assert text.count("<details>") == 1, "the second pair is folded"
    assert ("By class" in text) == (task == "classes") and "too good" in text and "3 pictures are" in text.lower()
    if task == "classes":
        right = [found.answers["linear"][name].argmax(1) == found.truth for name in found.field().ranked()[:2]]
        only = [int((one & ~two).sum()) for one, two in (right, right[::-1])]
        assert f"<b>{only[0]}</b>" in text and text.count("taken for") >= sum(min(number, SHOWN) for number in only)


def test_a_line_around_zero():
    drawn = around_zero(5.0, 2.0, 10.0)
    assert "var(--good)" in drawn and "from 3 to 7" in drawn
    assert "var(--bad)" in around_zero(-5.0, 2.0, 10.0) and "var(--quiet)" in around_zero(1.0, 2.0, 10.0)
