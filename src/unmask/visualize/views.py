"""What the network is shown while it trains: the very crops that a run with this seed takes of some pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from unmask import seeds
from unmask.data.loader import Pictures
from unmask.data.quarantine import BadSample
from unmask.data.views import part, random_view
from unmask.errors import Refused
from unmask.visualize.pictures import Colours, Row, save, sheet, short_name


def crops(pictures: Pictures, index: int, epochs: int) -> torch.Tensor:
    """The views `(epochs, C, H, W)`, normalised, that a run takes of sample `index` in its first epochs. BadSample."""
    known = pictures.format
    views, flips = [], []
    for epoch in range(epochs):
        dice = seeds.dice(pictures.seed, "view", epoch, index)  # the order of the draws is the loader's
        picture = part(pictures.source.picture(index).under(known.window), pictures.tile, dice)
        views.append(random_view(picture, pictures.img_size, pictures.views, dice, known.in_chans, known.eight_bit))
        flips.append(dice.random() < pictures.views.flip)
    return pictures.finish({"images": torch.stack(views), "flip": torch.tensor(flips)}, "cpu")


def show(
    pictures: Pictures,
    indices: Sequence[int] | None = None,
    epochs: int = 5,
    *,
    bands: Sequence[int] | None = None,
    out: Path | str | None = None,
) -> Image.Image:
    """A sheet, one row a picture: the centre crop that evaluation sees, then the training crop of each of the first epochs.

    `indices` are sample numbers (not given: six, evenly spread); an unreadable picture is left out, and said.
    """
    if indices is None:
        indices = [i * len(pictures) // min(6, len(pictures)) for i in range(min(6, len(pictures)))]
    seen, names, bad = [], [], []
    for index in indices:
        try:
            views = crops(pictures, index, epochs)
        except BadSample as error:
            bad.append(f"{short_name(pictures.source.name(index))} ({error})")
            continue
        seen.append(torch.cat([pictures.still([index]), views]))  # (1 + epochs, C, H, W)
        names.append(short_name(pictures.source.name(index)))
    if not seen:
        raise Refused(f"none of these pictures can be read: {', '.join(bad)[:300]}")
    colours = Colours.of(torch.cat(seen), pictures.format.mean, pictures.format.std, bands)
    rows = [Row(colours.images(views), name) for views, name in zip(seen, names)]
    header = ["evaluation", *(f"epoch {epoch + 1}" for epoch in range(epochs))]
    settings = pictures.views
    height, width = pictures.img_size
    legend = [
        f"Training crops cover {settings.scale[0]:.0%} to {settings.scale[1]:.0%} of the picture, width over height {settings.ratio[0]:.2f} to "
        f"{settings.ratio[1]:.2f} times that of the input, flipped with a chance of {settings.flip:.0%}, {settings.interpolation}.",
        f"Input {height} x {width}, seed {pictures.seed}: these are the crops that a run with this seed takes in its first {epochs} epochs.",
        *([colours.note] if colours.note else []),
        *([f"Left out, unreadable: {', '.join(bad)}"] if bad else []),
    ]
    return save(sheet(rows, header, "What the network is shown", legend), out)
