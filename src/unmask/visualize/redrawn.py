"""Several runs imagine the same pictures, where the sheets that they left show different ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.statistics import Format
from unmask.errors import Refused
from unmask.load import load
from unmask.model import MaskedModel
from unmask.run.records import Run
from unmask.settings import Views
from unmask.visualize.answers import grid
from unmask.visualize.panels import Sheet


def redrawn(runs: Mapping[str, Run], data: Any, count: int = 6) -> tuple[dict[str, Sheet], list[str]]:
    """Sheets on which every run imagines the same pictures of `data`, and a line for each run that cannot.

    Each run sees them in its own size and numbers; the masks come from one seed, so that runs with the same patches and
    ratio have the same mask, and one that hides more hides those patches too.
    """
    source = open_source(data)
    numbers = [i * len(source) // min(count, len(source)) for i in range(min(count, len(source)))]
    sheets, said = {}, []
    for name, run in runs.items():
        try:
            size, kept = run.config["img_size"], run.data["statistics"]
            form = Format.of(kept)
            learner = load(run.folder)
            if isinstance(learner, MaskedModel) and learner.masking is not None:
                learner.masking.prepare(1.0, 0.5)  # of a schedule the ratio at the end, of a range the middle
            pictures = Pictures(source, form, Views(), tuple(size), 0, tile=run.config.get("tile"))
            ((x, _, names),) = pictures.still_batches(len(numbers), indices=numbers)
            sheet = Sheet.of(grid(learner, x, names, mean=form.mean, std=form.std))
        except (Refused, KeyError, TypeError) as error:
            said.append(f"{name}: {error}" if isinstance(error, Refused) else f"{name}: what was measured on its pictures is not written down")
            continue
        if sheet is not None:
            sheets[name] = sheet
    return sheets, said
