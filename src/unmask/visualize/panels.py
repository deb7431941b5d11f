"""Sheets of pictures taken apart again: their panels, and the same picture on the sheets of several runs. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unmask.run.records import Run

LAYOUT = "unmask-sheet"  # the text of a PNG in which a sheet says what is where on it (written by `visualize/pictures.py`)


@dataclass(frozen=True)
class Panels:
    """One picture's panels on a sheet, from left to right, and what is said of it."""

    name: str
    label: str
    images: list[Image.Image]


@dataclass(frozen=True)
class Sheet:
    """A sheet, read: what stands over its columns, its rows, and the sentences under them."""

    header: list[str]
    rows: list[Panels]
    legend: list[str]

    @classmethod
    def of(cls, image: Image.Image) -> Sheet | None:
        """The sheet on a picture that says what is where on it; None for any other picture."""
        try:
            said = json.loads(image.info.get(LAYOUT) or "{}")
            rows = [Panels(str(row["name"]), str(row["label"]), [_cut(image, *box) for box in row["boxes"]]) for row in said["rows"]]
            return cls([str(word) for word in said["header"]], rows, [str(line) for line in said["legend"]])
        except (ValueError, KeyError, TypeError, OSError, SyntaxError):  # SyntaxError: Pillow's, of a PNG that is cut
            return None

    @classmethod
    def read(cls, path: Path) -> Sheet | None:
        """The sheet in a PNG file; None where it is cut, or no sheet."""
        try:
            with Image.open(path) as image:
                image.load()
                return cls.of(image)
        except (OSError, SyntaxError, ValueError):
            return None

    def column(self, word: str) -> int | None:
        """The first column whose heading begins with `word`."""
        return next((i for i, said in enumerate(self.header) if said.startswith(word)), None)


def _cut(image: Image.Image, left: int, top: int, width: int, height: int, factor: int) -> Image.Image:
    """One panel at the size that it had before it was enlarged."""
    panel = image.crop((left, top, left + width, top + height)).convert("RGB")
    return panel if factor == 1 else panel.resize((width // factor, height // factor), Image.Resampling.NEAREST)


def last_sheets(runs: Mapping[str, Run]) -> dict[str, Sheet]:
    """The last sheet of each run that has one."""
    found = {name: next((sheet for path in reversed(run.pictures) if (sheet := Sheet.read(path)) is not None), None) for name, run in runs.items()}
    return {name: sheet for name, sheet in found.items() if sheet is not None and sheet.column("prediction") is not None}


def common(sheets: Mapping[str, Sheet]) -> list[str]:
    """The pictures that are on all sheets."""
    names = [[row.name for row in sheet.rows if row.name] for sheet in sheets.values()]
    return [name for name in names[0] if all(name in other for other in names)] if names else []


def together(sheets: Mapping[str, Sheet], names: Sequence[str]) -> list[tuple[str, Image.Image, dict[str, tuple[Image.Image | None, Image.Image, str]]]]:
    """Of each picture its name, the original, and by run (its mask, None where all have the first run's; its prediction; its label)."""
    rows = []
    for name in names:
        found = {run: next(row for row in sheet.rows if row.name == name) for run, sheet in sheets.items()}
        first = next(iter(found))
        parts = {run: (_at(sheets[run], row, "masked"), _at(sheets[run], row, "prediction"), row.label) for run, row in found.items()}
        masks = [mask.tobytes() if mask is not None else b"" for mask, _, _ in parts.values()]
        same = len(set(masks)) == 1
        original = _at(sheets[first], found[first], "original")
        if original is None:
            continue
        shown = {
            run: (None if same and run != first else mask, prediction, label) for run, (mask, prediction, label) in parts.items() if prediction is not None
        }
        rows.append((name, original, shown))
    return rows


def _at(sheet: Sheet, row: Panels, word: str) -> Image.Image | None:
    place = sheet.column(word)
    return row.images[place] if place is not None and place < len(row.images) else None
