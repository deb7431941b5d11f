"""Low-shot: the regression beside scikit-learn's, the subsets, the interval over them, and runs for each."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from unmask import api
from unmask.data.labels import Labels
from unmask.errors import Refused
from unmask.evaluation.metrics import shown
from unmask.transfer import lowshot
from unmask.transfer.supervised import asked_of, few


def features(n: int = 90, width: int = 12, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=dice)
    return lowshot.on_sphere(centres[labels] + torch.randn(n, width, generator=dice)), labels


@pytest.mark.parametrize("l2", [0.00025, 0.0025, 1.0])
def test_the_regression_is_that_of_scikit_learn(l2):
    linear = pytest.importorskip("sklearn.linear_model")
    x, labels = features()
    ours = lowshot.logistic(x, torch.nn.functional.one_hot(labels).double(), l2, tolerance=1e-10)
    theirs = linear.LogisticRegression(C=1 / l2, fit_intercept=False, tol=1e-10, max_iter=20_000).fit(x.numpy(), labels.numpy())
    answers, others = x @ ours, torch.from_numpy(x.numpy() @ theirs.coef_.T)
    torch.testing.assert_close(answers.softmax(1), others.softmax(1), rtol=0, atol=2e-5)
    torch.testing.assert_close(answers.argmax(1), others.argmax(1))


def test_tags_are_regressed_one_by_one_and_unknown_ones_left_out():
    linear = pytest.importorskip("sklearn.linear_model")
    x, labels = features()
    tags = torch.stack([labels == 0, labels < 2], 1).double()
    tags[:10, 1] = float("nan")
    ours = lowshot.logistic(x, tags, 0.5, one_of=False, tolerance=1e-10)
    for k, rows in ((0, slice(None)), (1, slice(10, None))):  # the mean is over all rows: with fewer the penalty weighs the same
        theirs = linear.LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=20_000).fit(x[rows].numpy(), tags[rows, k].numpy())
        torch.testing.assert_close(ours[:, k], torch.from_numpy(theirs.coef_[0]), rtol=1e-3, atol=1e-4)


def test_rows_lie_on_the_sphere_without_their_mean():
    x = lowshot.on_sphere(torch.randn(5, 7) * 3 + 1)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(5).double())
    torch.testing.assert_close(x.mean(1), torch.zeros(5).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [2, 5, 31])
def test_the_interval_is_students(count):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(count).normal(50, 3, count)
    wanted = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert lowshot.interval(values.tolist()) == pytest.approx(wanted, abs=1e-3)


def test_subsets_are_of_every_class_alike_and_differ():
    labels = Labels("classes", np.repeat([0, 1, 2, -1], [40, 30, 5, 9]), ["a", "b", "c"])
    rows = np.flatnonzero(labels.known).tolist()
    one, again, other = (few(labels, rows, 4, None, 0, number) for number in (0, 0, 1))
    assert one == again != other and np.bincount(labels.values[one]).tolist() == [4, 4, 4]
    assert np.bincount(labels.values[few(labels, rows, None, 0.1, 0)]).tolist() == [4, 3, 1]  # at least one
    assert few(labels, rows, None, None, 0) == rows
    with pytest.raises(Refused, match="the class c has only 5"):
        few(labels, rows, 6, None, 0)
    numbers = Labels("numbers", np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32), ["age"])
    assert len(few(numbers, range(50), None, 0.2, 0)) == 10
    with pytest.raises(Refused, match="numbers"):
        few(numbers, range(50), 3, None, 0)


def test_a_share_of_tags_and_numbers_is_one_of_every_part_of_them():
    ages = Labels("numbers", np.arange(200, dtype=np.float32)[:, None], ["age"])
    for subset in range(20):
        taken = few(ages, range(200), None, 0.05, 0, subset)
        assert [row // 20 for row in taken] == list(range(10)), "one of every tenth"
    tags = Labels("tags", (np.arange(200)[:, None] % np.array([2, 50])[None] == 0).astype(np.float32), ["often", "rare"])
    for subset in range(20):
        taken = few(tags, range(200), None, 0.1, 0, subset)
        assert tags.values[taken, 1].sum() >= 1 and 8 <= tags.values[taken, 0].sum() <= 12


def test_a_share_is_one_of_whole_groups():
    numbers, groups = np.arange(200) % 4 // 2, np.arange(200) // 10
    labels = Labels("classes", numbers, ["a", "b"], groups)
    one, other = (few(labels, range(200), None, 0.2, 0, subset) for subset in (0, 1))
    assert len(set(groups[one])) == 4 and len(one) == 40 and one != other, "four of twenty patients, with all their pictures"
    assert len(set(groups[few(labels, range(200), None, 0.01, 0)])) == 1, "at least one"
    with pytest.raises(Refused, match=r"--share 0.5 of 1 groups, which stay whole"):
        few(labels, range(10), None, 0.5, 0)
    assert len(few(labels, range(200), 3, None, 0)) == 6


def test_an_interval_is_of_possible_values_and_says_what_it_is_worth():
    rows = [{"metric": "auroc", "auroc": value, "interval": [0.4, 0.6], "interval_over": "pictures"} for value in (0.9, 0.98)]
    found = lowshot.together(rows)
    assert found["interval"][1] == 1.0 and 0 <= found["interval"][0] < 0.9 and "2 subsets are too few" in shown(found)
    more = lowshot.together([{"metric": "top1", "top1": value, "interval": [], "interval_over": ""} for value in (0.0, 2.0, 1.0)])
    assert more["interval"][0] == 0 and "interval_doubt" not in more


def test_numbers_are_learnt_in_deviations():
    numbers = Labels("numbers", np.array([[1.0, 5.0], [3.0, 5.0], [np.nan, 5.0], [90.0, 5.0]], np.float32), ["a", "b"])
    asked = asked_of(numbers, [0, 1, 2])
    assert asked.moments == ([2.0, 5.0], [1.0, 1.0])


def test_one_row_of_all_subsets(encoder, data):
    row = api.evaluate("lowshot", encoder, str(data), shots=4, seeds=3, workers=0)
    assert row["protocol"] == "lowshot" and row["n_train"] == 16 and len(row["each"]) == 3 and row["seeds"] == 3
    assert row["top1"] == pytest.approx(np.mean(row["each"]), abs=1e-3) and row["interval"][0] <= row["top1"] <= row["interval"][1]
    assert json.loads((encoder / "evaluations.jsonl").read_text().splitlines()[-1]) == row
    random = api.evaluate("lowshot", encoder, str(data), share="10%", seeds=2, workers=0, random=True)
    assert random["random"] is True and random["share"] == 0.1 and random["n_train"] == 8


def test_a_run_for_each_subset(encoder, data, tmp_path):
    words = {"shots": 4, "seeds": 2, "finetune": True, "pooling": "cls", "out": str(tmp_path / "runs"), "epochs": 1, "workers": 0, "accelerator": "cpu", "batch_size": 8}
    row = api.evaluate("lowshot", encoder, str(data), **words)
    assert row["classifier"] == "fine-tuned" and row["pooling"] == "cls" and row["n_train"] == 16 and len(row["each"]) == 2
    assert [p.name for p in sorted((tmp_path / "runs").iterdir())] == ["subset-0", "subset-1"]
    again = api.evaluate("lowshot", encoder, str(data), **words)  # reads what is there
    assert again["each"] == row["each"] and again["seconds"] == row["seconds"]
    with pytest.raises(Refused, match="another shots"):
        api.evaluate("lowshot", encoder, str(data), **words | {"shots": 3})


@pytest.mark.parametrize(("words", "said"), [({}, "shots or share"), ({"shots": 2, "share": 0.1}, "shots or share"), ({"shots": 2, "finetune": True}, "--out is missing")])
def test_what_is_missing_is_named(encoder, data, words, said):
    with pytest.raises(Refused, match=said):
        api.evaluate("lowshot", encoder, str(data), **words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"out": "x"}, "--out belongs to --finetune"),
        ({"epochs": 3}, "--epochs belongs to --finetune"),
        ({"config": "x.yaml"}, "--config belongs to --finetune"),
        ({"finetune": True, "out": "x", "l2": 0.1}, "--l2 is of the regression on frozen features"),
    ],
)
def test_what_belongs_to_the_other_way_is_refused(encoder, data, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=said):
        api.evaluate("lowshot", encoder, str(data), shots=2, **words)
    assert not list(tmp_path.iterdir())


def test_the_attentive_probe_leaves_the_encoder_as_it_is(encoder, data, tmp_path):
    from unmask.interchange.encoder import load_encoder

    row = api.evaluate("attentive", encoder, str(data), out=tmp_path / "run", steps=30, batch_size=8, accelerator="cpu", workers=0)
    assert row["protocol"] == "attentive" and row["pooling"] == "attentive" and row["interval"][0] > 40
    ours, theirs = load_encoder(tmp_path / "run").model.state_dict(), load_encoder(encoder).model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
