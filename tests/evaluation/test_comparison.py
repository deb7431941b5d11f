"""Figures, intervals and the plain values of a comparison, on answers that are known."""

import json

import numpy as np
import pytest

from unmask.evaluation.comparison import Comparison, Entrant
from unmask.evaluation.metrics import wilson
from unmask.evaluation.ranking import verdict

ENTRANTS = [
    Entrant("A", "encoder", "vit_tiny"),
    Entrant("B", "encoder", "vit_small"),
    Entrant("random encoder (A)", "random", "vit_tiny", ("A",)),
    Entrant("random encoder (B)", "random", "vit_small", ("B",)),
    Entrant("pixel statistics", "pixels", "", ("A", "B")),
]
SHARES = (0.9, 0.8, 0.5, 0.55, 0.3)


def planted(task="classes", n=300, groups=None, seed=0):
    rng = np.random.default_rng(seed)
    if task == "classes":
        truth = rng.integers(0, 4, n)
        answers = {}
        for one, share in zip(ENTRANTS, SHARES):
            right = rng.random(n) < share
            answers[one.name] = np.eye(4)[np.where(right, truth, (truth + 1) % 4)] * 3 - 1
    else:
        truth = (rng.random((n, 2)) < 0.4).astype(float) if task == "tags" else rng.normal(size=(n, 2))
        truth[0, 0] = np.nan
        clean = np.nan_to_num(truth)
        answers = {one.name: clean + (1.1 - share) * rng.normal(size=(n, 2)) for one, share in zip(ENTRANTS, SHARES)}
    names = list("wxyz") if task == "classes" else ["p", "q"]
    about = {"n_train": 500, "val": "--val", "img_size": [64, 64], "seed": 0, "seconds": 1.0}
    settings = {"linear": {one.name: {"pooling": "cls", "lr": 0.1} for one in ENTRANTS}}
    return Comparison(task, names, [f"{i}.jpg" for i in range(n)], truth, groups, ENTRANTS, {"linear": answers}, settings, list(range(n)), about)


@pytest.mark.parametrize(("task", "metric"), [("classes", "top1"), ("tags", "auroc"), ("numbers", "r2")])
def test_what_is_told(task, metric):
    found = planted(task)
    told = json.loads(json.dumps(found.told(), allow_nan=False))
    assert [row["name"] for row in told["table"]] == [one.name for one in ENTRANTS]
    assert told["pixel_statistics"]["name"] == "pixel statistics" and told["metric"] == metric and told["n_val"] == 300
    assert told["verdict"] == verdict(found.field()) and told["verdict"].startswith("A is better than B by ")
    assert "both beat pixel statistics and the random encoder" in told["verdict"]
    for row in told["table"]:
        low, high = row["linear"]["interval"]
        assert low < row["linear"][metric] < high and row["linear"]["pooling"] == "cls"
    values = [row["linear"][metric] for row in told["table"][:2]]
    gap = next(gap for gap in told["differences"] if gap["second"] == "B")
    assert gap["difference"] == pytest.approx(values[0] - values[1], abs=1e-3) and gap["told_apart"] and gap["level"] == 0.95
    floors = [gap for gap in told["differences"] if gap["second"] not in "AB"]
    assert {(gap["first"], gap["second"]) for gap in floors} == {
        *((name, "pixel statistics") for name in "AB"),
        *((name, f"random encoder ({name})") for name in "AB"),
    }
    assert all(gap["level"] == 1 - 0.05 / 4 for gap in floors)


def test_a_figure_has_the_interval_of_evaluate_and_groups_widen_it():
    found = planted()
    row = found.told()["table"][0]["linear"]
    right = int((found.answers["linear"]["A"].argmax(1) == found.truth).sum())
    assert row["interval"] == pytest.approx(wilson(right, 300), abs=0.01) and row["balanced_accuracy"] > 80
    groups, right = np.repeat(np.arange(30), 10), np.repeat(np.random.default_rng(0).random(30) < 0.7, 10)  # a group is right or wrong as a whole
    whole = Comparison("classes", ["a", "b"], [""] * 300, np.zeros(300, int), groups, ENTRANTS[:1], {"linear": {"A": np.eye(2)[(~right).astype(int)]}})
    told = whole.told()
    low, high = told["table"][0]["linear"]["interval"]
    assert high - low > 2 * (wilson(right.sum(), 300)[1] - wilson(right.sum(), 300)[0]), "thirty groups that agree within are thirty pictures"
    assert "300 pictures in 30 groups" in told["notes"][0] and "so few" not in told["notes"][0]
    assert "so few" in planted(groups=np.repeat(np.arange(3), 100)).told()["notes"][0]
    assert "all of one group" in planted(groups=np.zeros(300, int)).told()["verdict"]


def test_another_protocol_that_shows_less_is_a_note():
    found = planted()
    weak = {name: planted(seed=1).answers["linear"]["pixel statistics"] if name == "A" else answers for name, answers in found.answers["linear"].items()}
    both = Comparison("classes", found.names, found.paths, found.truth, None, ENTRANTS, {"knn": weak, **found.answers})
    notes = both.told()["notes"]
    assert any(note.startswith("by kNN, A ") and "pixel statistics" in note for note in notes) and not any(", B " in note for note in notes)


def test_closeness_and_words():
    found = planted()
    close = found.closeness("linear", "A")
    right = found.answers["linear"]["A"].argmax(1) == found.truth
    assert close[right].min() > 0.5 > close[~right].max() and (close <= 1).all()
    assert found.spoken(0) == found.names[found.truth[0]]
    numbers = planted("numbers")
    assert numbers.closeness("linear", "A").mean() > numbers.closeness("linear", "pixel statistics").mean()
    assert numbers.spoken(0).startswith("q ") and numbers.spoken(1).startswith("p ")
    tags = planted("tags")
    tags.truth[1] = (1, 0)
    tags.truth[2] = (0, 0)
    assert (tags.spoken(1), tags.spoken(2)) == ("p", "none")
    assert np.isfinite(tags.closeness("linear", "B")).all()
    listed = found.pictures()
    assert len(listed) == 300 and listed[5]["path"] == "5.jpg" and set(listed[5]["answers"]) == {one.name for one in ENTRANTS}
