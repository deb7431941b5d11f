"""What runs imagine behind the mask, as HTML: panels with words that can be read aloud, over a run and side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from unmask.errors import Refused
from unmask.run.records import Run, step_of
from unmask.visualize import page
from unmask.visualize.panels import Sheet, common, last_sheets, together

STAGES, SHOWN = 7, 4  # moments of a run, and pictures, in the table of how it came about


def alone(run: Run) -> str:
    """The last sheet, panel by panel with words beside them, and how it came about; a sheet that does not say what is where: whole."""
    sheets = [(step_of(path), path) for path in run.pictures]
    sheet = next(((step, found) for step, path in reversed(sheets) if (found := Sheet.read(path)) is not None), None)
    if sheet is None:
        return next((whole for _, path in reversed(sheets) if (whole := _whole(path))), "")
    step, last = sheet
    order = f"<p class='under'>Step {step:,}. From left to right: {escape(', '.join(last.header))}.</p>"
    figures = []
    for row in last.rows:
        panels = "".join(page.image(panel, f"{row.name}: {head}") for head, panel in zip(last.header, row.images))
        figures.append(page.figure(f'<div class="panels" style="grid-template-columns:repeat({len(row.images)},1fr)">{panels}</div>', row.label))
    legend = "".join(f"<p class='under'>{escape(line)}</p>" for line in last.legend)
    return f'{order}<div class="rows">{"".join(figures)}</div>{page.folded("How to read these pictures", legend)}{_stages(sheets, last)}'


def _whole(path: Path) -> str:
    """A picture as it is; empty where it cannot be read."""
    try:
        with Image.open(path) as opened:
            opened.load()
            step = f"step {step_of(path):,}"
            return page.figure(page.image(opened, f"Rows of original, masked, predicted and error pictures at {step}", "whole"), step)
    except (OSError, SyntaxError, ValueError):
        return ""


def _stages(sheets: Sequence[tuple[int, Path]], last: Sheet) -> str:
    """The predictions of a few pictures over the run, evenly chosen moments from the first to the last."""
    few = min(STAGES, len(sheets))
    chosen = [sheets[i * (len(sheets) - 1) // max(few - 1, 1)] for i in range(few)]
    read = [(step, found) for step, path in chosen if (found := Sheet.read(path)) is not None and found.column("prediction") is not None]
    if len(read) < 2 or last.column("original") is None:
        return ""
    rows = []
    for row in [row for row in last.rows if row.name][:SHOWN]:
        cells = [page.image(row.images[last.column("original") or 0], f"{row.name}: original") + escape(row.name)]
        for step, stage in read:
            panels = next((other.images for other in stage.rows if other.name == row.name), [])
            place = stage.column("prediction")
            cells.append(page.image(panels[place], f"{row.name}: prediction at step {step:,}") if place is not None and place < len(panels) else "")
        rows.append(cells)
    head = ["original", *(f"step {step:,}" for step, _ in read)]
    return page.folded("How it came about: predictions over the run", page.table(head, rows, "Predictions of the same pictures over the run", "seen", caption=False))


def side_by_side(runs: dict[str, Run], data: Any) -> str:
    """The same pictures as each run imagines them: from the sheets of the runs, or drawn anew where those show different ones."""
    sheets, lines = last_sheets(runs), list[str]()
    shared = common(sheets)
    drawing = [name for name, run in runs.items() if run.pictures or data is not None]
    if data is not None or (len(drawing) > 1 and (not shared or len(sheets) < len(drawing))):
        from unmask.visualize.redrawn import redrawn

        try:
            again, lines = redrawn({name: runs[name] for name in drawing}, data or next(iter(runs.values())).config.get("data"))
        except Refused as error:
            if data is not None:
                raise
            again, lines = {}, [f"The runs drew different pictures, and the first run's cannot be read any more ({error}): unmask report … --pictures DATA draws the same ones."]
        sheets, shared = (again, common(again)) if again else (sheets, shared)
    told = "".join(f"<p class='under'>{escape(line)}</p>" for line in lines)
    if not shared:
        order = list(runs)
        each = "".join(f"<h3>{page.key(order.index(name), name)}</h3>{seen}" for name in drawing if (seen := alone(runs[name])))
        return told + each
    rows = []
    for name, original, shown in together(sheets, shared):
        cells = [page.image(original, f"{name}: original") + escape(name)]
        for run in sheets:
            mask, prediction, label = shown.get(run, (None, None, ""))
            hidden = page.image(mask, f"{name}: what {run} sees of it") if mask is not None else ""
            far = re.search(r"error ([\d.]+)", label)
            both = f'<div class="both">{hidden}{page.image(prediction, f"{name}: prediction of {run}")}</div>' if prediction is not None else ""
            cells.append(both + (f"error {far[1]}" if far else ""))
        rows.append(cells)
    order = list(runs)
    head = ["original", *(page.key(order.index(run), run) for run in sheets)]
    heads = {run: ", ".join(sheet.header[1:3]) for run, sheet in sheets.items()}
    if len(set(heads.values())) == 1:
        told += f"<p class='under'>Of each run: {escape(next(iter(heads.values())))}, and the error. What all of them see is shown once.</p>"
    else:
        told += f"<p class='under'>Of each run, and the error: {'; '.join(f'{escape(run)} {escape(words)}' for run, words in heads.items())}.</p>"
    return told + page.table(head, rows, "The same pictures as each run imagines them", "seen", caption=False)
