"""What training makes of a picture: its random crops, epoch after epoch."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from unmask import seeds
from unmask.data.loader import Pictures
from unmask.data.quarantine import BadSample
from unmask.data.views import centre_view, random_view, tiled
from unmask.errors import Refused
from unmask.visualize.pictures import Colours, Row, save, sheet


def show(pictures: Pictures, count: int = 6, epochs: int = 6, out: Path | str | None = None) -> Image.Image:
    """A sheet: the first `count` readable pictures, each as evaluation sees it and as the first `epochs` epochs of a run would crop it."""
    names, rows, form, views = [], [], pictures.format, pictures.views
    for index in range(len(pictures)):
        try:
            rows.append(_views(pictures, index, epochs))
            names.append(Path(pictures.source.name(index)).name)
        except BadSample:
            continue
        if len(rows) == count:
            break
    if not rows:
        raise Refused(f"none of the {len(pictures)} pictures can be read")
    x = pictures.finish({"images": torch.cat(rows), "flip": torch.zeros(len(rows) * (epochs + 1), dtype=torch.bool)}, "cpu")
    colours = Colours.of(x, form.mean, form.std)
    images = colours.images(x)
    drawn = [Row(images[i * (epochs + 1) : (i + 1) * (epochs + 1)], name) for i, name in enumerate(names)]
    height, width = pictures.img_size
    low, high = views.scale
    legend = [
        f"Each crop takes {low:.0%} to {high:.0%} of the picture's area and is resized to {height} x {width}; {views.flip:.0%} of the crops are mirrored.",
        *([colours.note] if colours.note else []),
    ]
    return save(sheet(drawn, ["evaluation", *(f"epoch {epoch}" for epoch in range(epochs))], "Training views", legend), out)


def _views(pictures: Pictures, index: int, epochs: int) -> torch.Tensor:
    """The centre crop and one random crop an epoch, with the numbers that a run of this seed draws: (1 + epochs, C, H, W)."""
    form, found = pictures.format, []
    whole = tiled(pictures.source.picture(index), pictures.tile, None)
    found.append(centre_view(whole, pictures.img_size, form.in_chans, form.eight_bit))
    for epoch in range(epochs):
        dice = seeds.dice(pictures.seed, "view", epoch, index)
        picture = tiled(pictures.source.picture(index), pictures.tile, dice)
        crop = random_view(picture, pictures.img_size, pictures.views, dice, form.in_chans, form.eight_bit)
        found.append(crop.flip(-1) if dice.random() < pictures.views.flip else crop)
    return torch.stack(found)
