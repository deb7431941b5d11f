"""Charts: nothing lost, nothing told by colour alone, whatever is in metrics.jsonl."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from run_folders import falling, run_folder

from unmask.run.records import Run
from unmask.visualize import curves
from unmask.visualize.curves import CHARTS, DASHES, LOSS, SHAPES, present, svg, thin, ticks


@pytest.fixture
def runs(tmp_path):
    first = run_folder(tmp_path / "a", falling(), patch_mean=0.98, lr=0.001, every={0: {"knn": 20.0, "knn_random": 20.0}, 200: {"knn": 30.0}})
    second = run_folder(tmp_path / "b", falling(50, 0.8), patch_mean=0.981, lr=0.001)
    return {'<a "b">': Run.read(first), "b": Run.read(second)}


def test_a_spike_is_not_lost():
    steps, mean, low, high = thin(range(1000), [float(i == 500) for i in range(1000)], 7)
    assert len(steps) == 143 and max(high) == 1 and max(mean) < 1 and max(low) == 0


def test_charts_take_what_is_there(tmp_path):
    path = run_folder(tmp_path / "run", [1 / (i + 1) for i in range(300)], rank=float("nan"), knn=None, skipped=None)
    assert [chart.key for chart, _ in present({"a": Run.read(path)})] == ["loss"]
    empty = run_folder(tmp_path / "empty")
    assert present({"a": Run.read(empty)}) == []
    one = run_folder(tmp_path / "one", [1.0])
    assert "aria-label" in svg(LOSS, {"one": Run.read(one)})
    flat = run_folder(tmp_path / "flat", [0.0] * 9)
    assert "NaN" not in svg(LOSS, {"flat": Run.read(flat)})


def test_every_chart_is_whole_xml_and_takes_its_colours_from_the_page(runs):
    for chart, having in present(runs):
        drawn = svg(chart, having, list(runs))
        root = ET.fromstring(drawn)
        assert root.attrib["role"] == "img" and "over the steps" in root.attrib["aria-label"] and "#" not in drawn
        assert not re.search(r"\bid=", drawn)


def test_runs_are_told_apart_without_colour(runs):
    """By a letter at the end of each curve, a dash and the shape of the markers; single runs need none of it."""
    drawn = svg(LOSS, runs, list(runs))
    assert ">A</text>" in drawn and ">B</text>" in drawn and f"stroke-dasharray:{DASHES[1]}" in drawn
    assert SHAPES[0] in drawn and SHAPES[1] in drawn and "step" in drawn and "<title>b, step" in drawn
    alone = svg(LOSS, {"b": runs["b"]})
    assert ">A</text>" not in alone and "<title>" not in alone
    assert len(set(SHAPES)) == len(set(DASHES)) == len(curves.SERIES)


def test_a_steep_beginning_leaves_the_chart_and_is_said(tmp_path):
    path = run_folder(tmp_path / "run", [9.0, 6.0, 3.0, *falling(150)])
    assert "begins at 9" in svg(LOSS, {"a": Run.read(path)})
    calm = run_folder(tmp_path / "calm", [0.9 - i / 1000 for i in range(100)])
    assert "begins at" not in svg(LOSS, {"a": Run.read(calm)})


def test_references_are_named_once_where_they_agree(runs, tmp_path):
    assert svg(LOSS, runs, list(runs)).count("patch mean") == 2  # the line, and the words for those who cannot see
    other = Run.read(run_folder(tmp_path / "c", falling(50), patch_mean=0.5))
    drawn = svg(LOSS, runs | {"c": other}, [*runs, "c"])
    assert "A B: patch mean" in drawn and "C: patch mean" in drawn


def test_losses_of_different_kinds_share_no_axis(runs, tmp_path):
    tuned = run_folder(tmp_path / "tuned", falling(80, 2.0), config={"method": "finetune", "encoder": "runs/a"}, every={80: {"top1": 60.0, "top1_average": 61.0, "majority": 12.0}})
    charts = present(runs | {"tuned": Run.read(tuned)})
    titles = {chart.title: list(having) for chart, having in charts}
    assert titles["Loss of mae"] == list(runs) and titles["Loss of finetune"] == ["tuned"]
    assert titles["Validation accuracy, %"] == ["tuned"] and titles["Validation accuracy, %, averaged weights"] == ["tuned"]


def test_each_part_of_a_loss_has_a_chart(tmp_path):
    path = run_folder(tmp_path / "run", falling(30), config={"method": "cae"}, **{"loss.codes": 0.7, "loss.alignment": 0.1})
    other = run_folder(tmp_path / "other", falling(30), config={"method": "beit2"}, **{"loss.codes": 0.6})
    assert [chart.title for chart, _ in present({"a": Run.read(path)})][:3] == ["Loss", "Loss, its codes", "Loss, its alignment"]
    titles = {chart.title: list(having) for chart, having in present({"a": Run.read(path), "b": Run.read(other)})}
    assert titles["Loss, its codes of cae"] == ["a"] and titles["Loss, its codes of beit2"] == ["b"] and titles["Loss, its alignment"] == ["a"]


def test_a_skipped_step_is_marked(tmp_path):
    path = run_folder(tmp_path / "run", falling(30), every={7: {"skipped": True}})
    assert "step 7 was skipped" in svg(LOSS, {"a": Run.read(path)})


def test_columns_that_nobody_knows_are_drawn_too(tmp_path):
    path = run_folder(tmp_path / "run", falling(30), contrast=0.5)
    assert "contrast" in [chart.key for chart, _ in present({"a": Run.read(path)})]
    assert len({chart.key for chart in CHARTS}) == len(CHARTS)


@pytest.mark.parametrize(("low", "high", "wanted"), [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0.93, 1.41, [1.0, 1.2, 1.4]), (0, 500, [0, 200, 400]), (-3, 1, [-3, -2, -1, 0, 1]), (5e-7, 1e-3, [0.00025, 0.0005, 0.00075, 0.001])])  # fmt: skip
def test_ticks_are_round(low, high, wanted):
    assert ticks(low, high) == pytest.approx(wanted)
