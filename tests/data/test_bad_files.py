"""A folder of thirty kinds of bad file: each is named with a reason, no good odd one is, and a run goes on."""

import json
from pathlib import Path

import pytest
from folder_of_odd_files import bad_files, odd_files, photograph

from unmask.data.inspect import inspect, lines
from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.statistics import survey
from unmask.errors import Failed
from unmask.settings import Views


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    bad, good = bad_files(folder), odd_files(folder)
    for number in range(40):
        photograph(100 + number).save(folder / f"plain{number}.jpg")
    return folder, bad, good


def test_the_quarantine_names_each_bad_file_and_no_other(odd, tmp_path):
    folder, bad, good = odd
    assert len(bad) >= 30
    source = open_source(str(folder))
    form = survey(source)
    assert form.in_chans == 3 and form.eight_bit
    pictures = Pictures(source, form, Views(), (32, 32), seed=1, max_bad_share=0.5, quarantine=tmp_path / "quarantine.jsonl")
    assert len(pictures) == len(bad) + len(good) + 40
    steps = len(pictures) // 8 + 1
    for batch in pictures.batches(8, 0, steps):
        assert pictures.finish(batch, "cpu").isfinite().all()
    text = (tmp_path / "quarantine.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    named = {Path(row["path"]).name for row in rows}
    assert named == {Path(name).name for name in bad}
    assert len(rows) == len(named) and all(len(row["reason"]) > 5 and "\n" not in row["reason"] for row in rows)
    reasons = {Path(row["path"]).name: row["reason"] for row in rows}
    assert "empty" in reasons["bad_empty.jpg"] and "--tile" in reasons["bad_bomb.png"] and "nowhere" in reasons["bad_dangling.jpg"]
    assert "NaN" in reasons["bad_nan.tif"] and "13 bands" in reasons["bad_13_bands.tif"] and "4 bands" in reasons["bad_4_bands.tif"]
    assert "nodata" in reasons["bad_nodata.tif"] and "without pixel data" in reasons["bad_no_pixels"] and "ends early" in reasons["bad_truncated.dcm"]


def test_a_resumed_run_names_nothing_twice(odd, tmp_path):
    folder, *_ = odd
    source = open_source(str(folder))
    form = survey(source)
    counts = []
    for start in (0, 20):
        pictures = Pictures(source, form, Views(), (16, 16), max_bad_share=0.9, quarantine=tmp_path / "quarantine.jsonl")
        list(pictures.batches(8, start, 20))
        counts.append(len((tmp_path / "quarantine.jsonl").read_text().splitlines()))
    assert counts[1] == len(bad_names(tmp_path))


def bad_names(folder):
    return {json.loads(line)["path"] for line in (folder / "quarantine.jsonl").read_text().splitlines()}


def test_too_many_bad_samples_stop_the_run(odd, tmp_path):
    folder, *_ = odd
    source = open_source(str(folder))
    pictures = Pictures(source, survey(source), Views(), (16, 16), max_bad_share=0.01, quarantine=tmp_path / "quarantine.jsonl")
    with pytest.raises(Failed, match="max_bad_share") as told:
        list(pictures.batches(8, 0, 400))
    assert "\n" not in str(told.value)


def test_inspect_names_them_all(odd):
    folder, bad, good = odd
    report = inspect(str(folder))
    bands = {"bad_13_bands.tif", "bad_4_bands.tif", "bad_12_bits.dcm"}  # sound files: only a run on three channels of 8 bits cannot use them
    assert {Path(one["path"]).name for one in report["bad"]} == {Path(name).name for name in bad} - bands
    text = "\n".join(lines(report))
    assert all(name in text for name in bad if name not in bands)
    assert "13 channels" in text and report["readable"] == len(good) + 40 + len(bands)
    json.dumps(report)
