"""What a network was given and what it says of it, where nothing is hidden behind a mask: original, spoilt, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from unmask.errors import Refused
from unmask.model import Learner
from unmask.visualize.pictures import Colours, Row, save, sheet, short_name


@torch.no_grad()
def grid(
    learner: Learner,
    x: Tensor,
    names: Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    statistics: str = "visible",
    seed: int = 0,
    bands: Sequence[int] | None = None,
    title: str = "",
    out: Path | str | None = None,
) -> Image.Image:
    """Pictures, what was made of them before the network saw them, and what it says they were."""
    training = learner.training
    answer = learner.eval().redrawn(x.to(next(learner.parameters()).device, torch.float32), seed)
    learner.train(training)
    if answer is None:
        raise Refused(f"a {type(learner).__name__} masks no pictures, so there is nothing to reconstruct")
    colours = Colours.of(x, mean, std, bands)
    seen, said = (part.cpu() for part in answer)
    far = [(colours.unit(part) - colours.unit(x)).abs().mean((1, 2, 3)) for part in (seen, said)]
    names = [short_name(word) for word in names]
    panels = zip(*(colours.images(part) for part in (x, seen, said)))
    rows = [Row(list(three), f"{word}   error {far[1][i]:.3f}, given {far[0][i]:.3f}", name=word) for i, (three, word) in enumerate(zip(panels, names))]
    legend = ["Error: mean absolute difference to the original, where 1 is from black to white; given: that of the noisy picture.", *([colours.note] if colours.note else [])]
    return save(sheet(rows, ["original" + colours.label, "what the network saw", "prediction"], title or "Denoising", legend), out)
