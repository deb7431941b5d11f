"""A sheet says what is where on it: its panels come out of the file as they went in."""

from __future__ import annotations

import pytest
from PIL import Image

from unmask.visualize.panels import Sheet, common, together
from unmask.visualize.pictures import Row, save, sheet

HEADER = ["original", "masked (75% hidden)", "prediction", "error"]


def noise(side=32, count=4):
    return [Image.effect_noise((side, side), 90).convert("RGB") for _ in range(count)]


def drawn(path, names, side=32, panels=None):
    rows = [Row(panels or noise(side), f"{name}   error 0.125, smooth fill 0.130", name=name) for name in names]
    save(sheet(rows, HEADER, "step 3", ["Visible patches are pasted."]), path)
    return path, rows


@pytest.mark.parametrize("side", [32, 145, 224, 700])
def test_panels_come_back_as_they_were(tmp_path, side):
    path, rows = drawn(tmp_path / "s.png", ["a/1.png", "b/2.png"], side)
    read = Sheet.read(path)
    assert read.header == HEADER and read.legend == ["Visible patches are pasted."] and [row.name for row in read.rows] == ["a/1.png", "b/2.png"]
    assert read.rows[0].label.endswith("smooth fill 0.130")
    for row, wanted in zip(read.rows, rows):
        if side <= 512:  # larger ones are made smaller on the sheet
            assert [panel.tobytes() for panel in row.images] == [panel.tobytes() for panel in wanted.images]
        else:
            assert {panel.size for panel in row.images} == {(512, 512)}
    assert (read.column("masked"), read.column("prediction"), read.column("truth")) == (1, 2, None)


def test_what_is_no_sheet_is_none(tmp_path):
    path, _ = drawn(tmp_path / "s.png", ["a"])
    whole = path.read_bytes()
    for cut in (0, 7, 40, len(whole) // 2, len(whole) - 2000):
        path.write_bytes(whole[:cut])
        assert Sheet.read(path) is None
    Image.new("RGB", (9, 9)).save(path)
    assert Sheet.read(path) is None and Sheet.read(tmp_path / "nowhere.png") is None
    save(Image.new("RGB", (9, 9)), tmp_path / "plain.png")
    assert Sheet.read(tmp_path / "plain.png") is None


def test_the_same_pictures_on_the_sheets_of_several_runs(tmp_path):
    panels = noise()
    first, _ = drawn(tmp_path / "1.png", ["a", "b"], panels=panels)
    second, _ = drawn(tmp_path / "2.png", ["b", "c"], panels=[*panels[:2], *noise(count=2)])
    sheets = {"one": Sheet.read(first), "two": Sheet.read(second)}
    assert common(sheets) == ["b"] and common({}) == []
    ((name, original, shown),) = together(sheets, ["b"])
    assert name == "b" and original.tobytes() == panels[0].tobytes()
    assert shown["one"][0] is not None and shown["two"][0] is None  # the same mask is shown once
    assert shown["two"][1].tobytes() != shown["one"][1].tobytes()
    other, _ = drawn(tmp_path / "3.png", ["b"])
    ((_, _, shown),) = together({"one": sheets["one"], "three": Sheet.read(other)}, ["b"])
    assert shown["three"][0] is not None
