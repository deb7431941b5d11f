"""The sentence, on cases where it is known what it has to say."""

import numpy as np
import pytest

from unmask.evaluation.paired import Difference, Judged, difference
from unmask.evaluation.ranking import Field, amount, listed, verdict

N = 500


def figure(right, unsure=40, seed=0):
    """So many of 500 right: the same easy ones for everybody, but for some that are dealt anew."""
    hits = np.arange(N) < right
    rng = np.random.default_rng(seed)
    hits[rng.permutation(N)[:unsure]] = rng.random(unsure) < right / N
    return Judged(100 * hits.mean(), 100 * (hits - hits.mean()) / N, hits)


FIGURES = {"A": figure(430, seed=1), "B": figure(400, seed=2), "C": figure(399, seed=3), "D": figure(330, seed=4), "pixels": figure(200, seed=5), "random": figure(260, seed=6)}


def field(names, floors=("pixel statistics", "the random encoder"), before=None, **others):
    rows = {"pixel statistics": "pixels", "the random encoder": "random"}
    judged = {**({"knn": FIGURES | before} if before is not None else {}), "linear": FIGURES | others}
    return Field(judged, list(names), {floor: dict.fromkeys(names, rows[floor]) for floor in floors})


def test_one_is_better():
    found = verdict(field("AB"))
    gap = difference(FIGURES["A"], FIGURES["B"])
    assert found == f"A is better than B by {gap.value:.1f} ± {gap.half:.1f} points (linear); both beat pixel statistics and the random encoder."
    assert verdict(field("BA")) == found, "the order of the words changes nothing"


def test_a_tie():
    gap = difference(FIGURES["B"], FIGURES["C"])
    high, low = ("B", "C") if gap.value > 0 else ("C", "B")
    assert verdict(field("BC", floors=())) == (
        f"{high} and {low} cannot be told apart on these 500 pictures: the difference is {abs(gap.value):.1f} ± {gap.half:.1f} points (linear)."
    )
    assert "are right and wrong on the same 500 pictures" in verdict(field("AB", floors=(), B=FIGURES["A"]))


def test_three_of_which_one_is_best():
    found = verdict(field("ABD"))
    wide, narrow = (difference(FIGURES["A"], FIGURES["B"], level=level) for level in (1 - 0.05 / 3, 0.95))
    assert found == f"A is the best of the 3, {wide.value:.1f} ± {wide.half:.1f} points above B, the next (linear); all 3 beat pixel statistics and the random encoder."
    assert wide.half > 1.2 * narrow.half, "three comparisons want wider intervals"


def test_three_of_which_two_cannot_be_told_apart():
    found = verdict(field("BCD", floors=()))
    first, second = sorted("BC", key=lambda name: -FIGURES[name].value)
    assert found.startswith(f"{first} has the highest figure, but {second} cannot be told from it on these 500 pictures (")
    assert f"; D is worse than {first}, by " in found
    assert verdict(field("BCE", floors=(), E=figure(401, seed=7))).count("cannot be told") == 1


def test_all_below_pixel_statistics():
    strong = figure(480, seed=8)
    assert verdict(field("AB", floors=("pixel statistics",), pixels=strong)).endswith("; both are worse than pixel statistics.")
    assert verdict(field("ABC", floors=("pixel statistics",), pixels=strong)).endswith("; all 3 are worse than pixel statistics.")
    assert "it is worse than pixel statistics by " in verdict(field("A", pixels=strong))


def test_floors_that_only_some_beat():
    said = verdict(field("AD", pixels=figure(331, seed=9)))
    assert "A beats pixel statistics, D is not shown to beat it" in said and "both beat the random encoder" in said
    assert verdict(field("BC", floors=("pixel statistics",), pixels=figure(400, seed=9))).endswith("; neither is shown to beat pixel statistics.")


def test_a_floor_that_is_not_everybodys():
    """An encoder that is itself random has no random encoder to beat."""
    one = field("AD")
    found = verdict(Field(one.judged, one.encoders, {"pixel statistics": {"A": "pixels", "D": "pixels"}, "the random encoder": {"A": "random"}}))
    assert found.endswith("; both beat pixel statistics; A beats the random encoder.")


def test_one_alone():
    found = verdict(field("A"))
    assert found.startswith(f"A reaches {FIGURES['A'].value:.1f} % on 500 pictures (linear); it beats pixel statistics by ")
    assert " and the random encoder by " in found
    assert "it is not shown to beat pixel statistics (difference " in verdict(field("A", floors=("pixel statistics",), pixels=figure(430, seed=11)))


@pytest.mark.parametrize(
    ("before", "says"),
    [({}, "; kNN agrees)"), ({"A": FIGURES["C"]}, "; kNN cannot tell them apart)"), ({"A": FIGURES["D"]}, "; kNN says the opposite, by ")],
)
def test_the_other_protocol_is_asked(before, says):
    assert says in verdict(field("AB", before=before))


def test_the_other_protocol_of_a_tie_and_of_many():
    assert "; kNN puts B ahead, by " in verdict(field("BC", before={"C": FIGURES["D"]}))
    assert "; kNN too)" in verdict(field("ABD", before={})) and "; kNN puts B first)" in verdict(field("ABD", before={"A": FIGURES["D"]}))


def test_groups_count_as_one():
    """Two hundred pictures of four patients are four, not two hundred."""
    one = field("AB", floors=())
    assert "is better than" in verdict(one)
    spread_out = Field(one.judged, one.encoders, {}, groups=np.arange(N) // 125)
    assert "cannot be told apart" in verdict(spread_out)
    assert "all of one group" in verdict(Field(one.judged, one.encoders, {}, groups=np.zeros(N)))


def test_amounts_and_lists():
    points, area = field("AB"), Field({"linear": FIGURES}, ["A", "B"], {}, metric="auroc")
    assert amount(points, Difference(-3.14, 0.81, 0.95)) == "3.1 ± 0.8 points" and amount(points, Difference(0.123, 0.0456, 0.95)) == "0.12 ± 0.05 points"
    assert amount(area, Difference(0.0314, 0.0081, 0.95)) == "0.031 ± 0.008 AUROC"
    assert [listed(list(word)) for word in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
