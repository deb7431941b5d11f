"""What the network is shown while it trains: the very crops that a run with this seed takes of some pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from unmask.data.loader import Pictures
from unmask.data.quarantine import BadSample
from unmask.data.recolour import views_of
from unmask.errors import Refused
from unmask.settings import Crops, Views
from unmask.visualize.pictures import Colours, Row, save, sheet, short_name


def crops(pictures: Pictures, index: int, epochs: int) -> list[torch.Tensor]:
    """The views (C, H, W), normalised, that a run takes of sample `index`: one in each of its first epochs, or several in its first. BadSample."""
    taking, views = pictures.taking(), list[torch.Tensor]()
    for epoch in range(1 if isinstance(pictures.views, Crops) else epochs):
        batch = taking.empty_batch(1)
        taking.take(batch, 0, index, (epoch, index))
        x = pictures.finish(batch, "cpu")
        views += [view for name in ("global", "local") if name in x for view in x[name]] if isinstance(x, dict) else list(x)
    return views


def show(
    pictures: Pictures,
    indices: Sequence[int] | None = None,
    epochs: int = 5,
    *,
    bands: Sequence[int] | None = None,
    out: Path | str | None = None,
) -> Image.Image:
    """A sheet, one row a picture: the centre crop that evaluation sees, then the training crop of each of the first epochs, or several of the first.

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
        seen.append([pictures.still([index])[0], *views])
        names.append(short_name(pictures.source.name(index)))
    if not seen:
        raise Refused(f"none of these pictures can be read: {', '.join(bad)[:300]}")
    colours = Colours.of(torch.stack([views[0] for views in seen]), pictures.format.mean, pictures.format.std, bands)
    rows = [Row([colours.images(view[None])[0] for view in views], name) for views, name in zip(seen, names)]
    header, said = law_of(pictures.views, pictures.img_size, epochs)
    legend = [
        *said,
        f"Seed {pictures.seed}: these are the crops that a run with this seed takes in its first {'epoch' if len(said) > 2 else f'{epochs} epochs'}.",
        *([colours.note] if colours.note else []),
        *([f"Left out, unreadable: {', '.join(bad)}"] if bad else []),
    ]
    return save(sheet(rows, header, "What the network is shown", legend), out)


def law_of(views: Views | Crops, img_size: tuple[int, int], epochs: int) -> tuple[list[str], list[str]]:
    """What stands above the views of a sheet, and the law that they are drawn by, in sentences."""
    shape = f"width over height {views.ratio[0]:.2f} to {views.ratio[1]:.2f} times that of the input, flipped with a chance of {views.flip:.0%}, {views.interpolation}."
    size = f"Input {img_size[0]} x {img_size[1]}."
    if not isinstance(views, Crops):
        said = [f"Training crops cover {views.scale[0]:.0%} to {views.scale[1]:.0%} of the picture, {shape}", size]
        return ["evaluation", *(f"epoch {epoch + 1}" for epoch in range(epochs))], said
    kinds, numbers = views_of(views, img_size), {"global": 0, "local": 0}
    header = ["evaluation"]
    for kind in kinds:
        numbers[kind.name] += 1
        header.append(f"{kind.name} {numbers[kind.name]}")
    said = [f"Global crops cover {views.global_scale[0]:.0%} to {views.global_scale[1]:.0%} of the picture, {shape}", size]
    if views.local_crops:
        height, width = kinds[-1].size
        said.append(f"Local crops cover {views.local_scale[0]:.0%} to {views.local_scale[1]:.0%} of it, in {height} x {width} pixels.")
    shares = "; ".join(f"{what} {' / '.join(f'{chance:.0%}' for chance in chances)}" for what, chances in (("blur", views.blur), ("inverted brighter half", views.solarise)))
    said.append(f"Chances: colour jitter {views.jitter:.0%}, grey {views.grey:.0%}; at the first global crop, the second and local ones: {shares}.")
    return header, said
