"""Two parts of one table: alike in classes, tags and numbers, and no group on both sides."""

from __future__ import annotations

import time

import numpy as np
import pytest

from unmask.data.labels import Labels
from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.splits import held_out, parts
from unmask.data.statistics import Format
from unmask.errors import Refused
from unmask.settings import Labelled, Views

FORM = Format(1, (0,), (255,), (0.5,), (0.25,))


def of_classes(numbers, groups=None) -> Labels:
    numbers = np.asarray(numbers)
    return Labels("classes", numbers, [str(name) for name in range(numbers.max() + 1)], None if groups is None else np.asarray(groups))


def pictures(count: int, labels) -> Pictures:
    return Pictures(open_source(np.zeros((count, 8, 8), np.uint8), labels), FORM, Views(), (8, 8))


def test_a_share_of_every_class():
    numbers = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    kept, held, said = held_out(of_classes(numbers), 0.2, seed=3)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(63)) and "20%" in said
    assert np.bincount(numbers[held], minlength=4).tolist() == [10, 2, 1, 0], "a class of one picture is only learnt from"
    again, other = (held_out(of_classes(numbers), 0.2, seed=seed)[1] for seed in (3, 4))
    assert np.array_equal(again, held) and not np.array_equal(other, held)


def test_rare_tags_are_on_both_sides():
    """Iterative stratification keeps the rare tags, of which plain chance would often leave a side without any."""
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.3, 0.1, 0.02, 0.01])
    for seed in range(5):
        values = (rng.random((400, 5)) < shares).astype(np.float32)
        kept, held, _ = held_out(Labels("tags", values, list("abcde")), 0.2, seed)
        counts = values.sum(axis=0)
        assert len(kept) + len(held) == 400 and abs(len(held) - 80) <= 8
        assert (np.abs(values[held].sum(axis=0) - 0.2 * counts) <= np.maximum(1.5, 0.05 * counts)).all(), (seed, values[held].sum(axis=0), counts)
        assert (values[held].sum(axis=0)[counts > 1] >= 1).all() and (values[kept].sum(axis=0)[counts > 0] >= 1).all()


@pytest.mark.parametrize("targets", [1, 2])
def test_low_and_high_numbers_are_on_both_sides(targets):
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=(300, targets)).astype(np.float32)
    kept, held, _ = held_out(Labels("numbers", values, ["x"] * targets), 0.2, seed=1)
    assert 54 <= len(held) <= 66
    for column in values.T:
        quantiles = np.quantile(column, [0.1, 0.5, 0.9])
        shares = [(column[rows, None] < quantiles).mean(axis=0) for rows in (kept, held)]
        assert np.abs(shares[0] - shares[1]).max() < 0.05


@pytest.mark.parametrize("kind", ["classes", "tags", "numbers"])
def test_groups_stay_whole_and_the_sides_alike(kind):
    rng = np.random.default_rng(0)
    for seed in range(4):
        groups = rng.integers(0, 40, 600)
        lean = rng.random((40, 3))[groups]  # groups lean to classes, as patients and scenes do
        values = {
            "classes": (lean + 0.5 * rng.random((600, 3))).argmax(axis=1),
            "tags": (lean + rng.random((600, 3)) > 1.2).astype(np.float32),
            "numbers": (lean[:, :1] + 0.3 * rng.random((600, 1))).astype(np.float32),
        }[kind]
        labels = Labels(kind, values, list("abc")[: 3 if kind != "numbers" else 1], groups)
        kept, held, said = held_out(labels, 0.2, seed)
        assert not set(groups[kept]) & set(groups[held]) and len(kept) + len(held) == 600
        assert 90 <= len(held) <= 150 and f"{len(set(groups[held]))} of 40 groups" in said, said
        if kind == "tags":
            shares = [values[rows].mean(axis=0) for rows in (kept, held)]
        else:
            flat = values if kind == "classes" else (values[:, 0] > np.median(values)).astype(int)
            shares = [np.bincount(flat[rows], minlength=3) / len(rows) for rows in (kept, held)]
        assert np.abs(shares[0] - shares[1]).max() < 0.1, said
    assert np.array_equal(held_out(labels, 0.2, 3)[1], held) and not np.array_equal(held_out(labels, 0.2, 4)[1], held)


def test_groups_are_exchanged():
    """Ten patients of six pictures, five leaning to each class: two of them held out can always be one of each."""
    numbers = np.concatenate([np.repeat([0, 1], [5, 1] if patient < 5 else [1, 5]) for patient in range(10)])
    for seed in range(20):
        _, held, said = held_out(of_classes(numbers, np.repeat(np.arange(10), 6)), 0.2, seed)
        assert np.bincount(numbers[held]).tolist() == [6, 6] and "differ by at most 0.0 points" in said


def test_thousands_of_groups_are_divided_in_seconds():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 5000, 20000)
    begin = time.perf_counter()
    kept, held, _ = held_out(of_classes(rng.integers(0, 100, 20000), groups), 0.2, 0)
    assert time.perf_counter() - begin < 20 and not set(groups[kept]) & set(groups[held]) and 3600 < len(held) < 4400


def test_a_class_of_one_group_is_only_learnt_from_and_one_group_is_refused():
    numbers, groups = np.repeat([0, 1, 2], 20), np.concatenate([np.arange(20) // 4, np.arange(20) // 4 + 5, np.full(20, 99)])
    for seed in range(6):
        kept, held, _ = held_out(of_classes(numbers, groups), 0.2, seed)
        assert set(numbers[held]) == {0, 1} and set(numbers[kept]) == {0, 1, 2}
    with pytest.raises(Refused, match="one group"):
        held_out(of_classes(numbers, np.zeros(60)), 0.2, 0)


def test_the_order_in_which_parts_are_chosen(tmp_path):
    labels = [0, 1] * 20
    _, teach, _, judge, said = parts(pictures(40, labels), None, "x", 0)
    assert (len(teach), len(judge)) == (32, 8) and "kept apart" in said
    table = {"label": labels, "split": ["train"] * 20 + ["val"] * 8 + ["test"] * 10 + [""] * 2}
    given = parts(pictures(40, table), None, "x", 0)
    assert (given.teach, given.judge) == (list(range(20)), list(range(20, 28))) and "val judges, 10 of test left alone, 2 of no part" in given.said
    given = parts(pictures(40, Labelled(labels=table, split="split=test")), None, "x", 0)
    assert given.judge == list(range(28, 38)) and len(given.teach) == 28
    seen = pictures(40, table)
    given = parts(seen, pictures(6, ["1", "0", "9", "1", "1", "1"]), "x", 0)
    assert given.said == "--val" and given.judge == [0, 1, 3, 4, 5] and given.judging.labels.values.tolist() == [1, 0, -1, 1, 1, 1] and len(given.teach) == 40
    with pytest.raises(Refused, match="judge"):
        parts(pictures(4, {"label": [0, 1, 0, 1], "split": ["train"] * 4}), None, "x", 0)


def test_groups_on_both_sides_of_a_given_split_are_said():
    table = {"label": [0, 1] * 4, "group": list("aabbccdd"), "split": ["train"] * 4 + ["val"] * 4}
    assert parts(pictures(8, table), None, "x", 0).said.endswith("groups apart")
    table["group"] = list("aabbccda")
    assert "1 groups stand on both sides" in parts(pictures(8, table), None, "x", 0).said


def test_a_class_that_nobody_teaches_is_said():
    table = {"label": list("aabbcdabc"), "split": ["train"] * 4 + ["val"] * 5}
    assert parts(pictures(9, table), None, "x", 0).said.endswith("warning: no picture teaches c, d")
