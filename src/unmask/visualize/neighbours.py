"""Sheets of pictures that an encoder finds alike, or unlike all others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from unmask.data.loader import Pictures
from unmask.evaluation.neighbours import plain
from unmask.visualize.pictures import Colours, Row, save, sheet, short_name

SIDE = 192  # pixels of the shorter side of a picture on the sheet
ACROSS = 6  # pictures in a row at most


def thumbnails(pictures: Pictures, indices: Sequence[int]) -> dict[int, Image.Image]:
    """Small RGB pictures of these samples, as the encoder's crop shows them, by index; the unreadable are left out."""
    height, width = pictures.img_size
    scale = SIDE / min(height, width)
    size = round(height * scale), round(width * scale)
    found: dict[int, torch.Tensor] = {}
    for index in dict.fromkeys(indices):
        x = pictures.still([index], size)
        if len(x):
            found[index] = x
    if not found:
        return {}
    x = torch.cat(list(found.values()))  # (n, C, H, W)
    colours = Colours.of(x, pictures.format.mean, pictures.format.std)
    return dict(zip(found, colours.images(x)))


def nearest_sheet(
    asked: tuple[Pictures, Sequence[int]],
    bank: Pictures,
    found: Sequence[Sequence[tuple[int, float]]],
    encoder: str,
    out: Path | str | None = None,
) -> Image.Image:
    """One row a query: the picture that was asked for, then its nearest, with similarity and path under each.

    `asked`: the pictures and which of them are queries; `found`: for each query (index in `bank`, similarity), the nearest first.
    """
    queries, indices = asked
    theirs = thumbnails(queries, indices)
    ours = thumbnails(bank, [index for row in found for index, _ in row])
    rows = []
    for query, near in zip(indices, found):
        shown = [(ours[index], f"{plain(value)}  {_file(bank, index)}") for index, value in near if index in ours]
        if query in theirs:
            captions = ["asked for", *(caption for _, caption in shown)]
            rows.append(Row([theirs[query], *(image for image, _ in shown)], short_name(queries.source.name(query)), captions))
    most = max((len(row.images) for row in rows), default=1) - 1
    legend = ["Under each picture: its cosine similarity to the one on the left, and its file; whole paths are in the list beside this picture.", *_note(bank)]
    return save(sheet(rows, ["query", *(f"nearest {i + 1}" for i in range(most))], f"Nearest pictures, as {encoder} sees them", legend), out)


def families_sheet(
    pictures: Pictures, families: Sequence[tuple[Sequence[int], float]], title: str, legend: Sequence[str], out: Path | str | None = None
) -> Image.Image:
    """Families of near-duplicates, (indices, similarity of the closest pair): a large one has a row of its own, three pairs share one."""
    drawn = thumbnails(pictures, [index for family, _ in families for index in family[:ACROSS]])
    cells, rows = list[tuple[Image.Image, str]](), []
    for family, value in families:
        shown = [(drawn[index], _file(pictures, index)) for index in family[:ACROSS] if index in drawn]
        if len(shown) == 2:
            cells += [(shown[0][0], f"{plain(value)}  {shown[0][1]}"), (shown[1][0], f"~ {shown[1][1]}")]
        else:
            more = f", {len(family) - ACROSS} of them not drawn" if len(family) > ACROSS else ""
            rows.append(Row([image for image, _ in shown], f"{len(family)} pictures, the closest at {plain(value)}{more}", [name for _, name in shown]))
    rows += [Row([image for image, _ in part], "", [said for _, said in part]) for part in _parts(cells)]
    return save(sheet(rows, (), title, [*legend, *_note(pictures)]), out)


def crossing_sheet(
    pairs: Sequence[tuple[int, int, float]], judging: Pictures, teaching: Pictures, legend: Sequence[str], out: Path | str | None = None
) -> Image.Image:
    """Near-duplicates in two sets side by side: (index in `judging`, index in `teaching`, similarity)."""
    left, right = thumbnails(judging, [one for one, _, _ in pairs]), thumbnails(teaching, [two for _, two, _ in pairs])
    cells = list[tuple[Image.Image, str]]()
    for one, two, value in pairs:
        if one in left and two in right:
            cells += [(left[one], f"{plain(value)}  {_file(judging, one)}"), (right[two], f"~ {_file(teaching, two)}")]
    rows = [Row([image for image, _ in part], "", [said for _, said in part]) for part in _parts(cells)]
    header = ["--val", "DATA"] * (min(len(cells), ACROSS) // 2)
    return save(sheet(rows, header, "The same pictures on both sides of a split", [*legend, *_note(teaching)]), out)


def lonely_sheet(
    pictures: Pictures, alone: Sequence[tuple[int, float]], title: str, legend: Sequence[str], out: Path | str | None = None
) -> Image.Image:
    """The pictures farthest from all others, the farthest first: (index, mean distance to its nearest)."""
    drawn = thumbnails(pictures, [index for index, _ in alone])
    cells = [(drawn[index], f"{value:.3g}  {_file(pictures, index)}") for index, value in alone if index in drawn]
    rows = [Row([image for image, _ in part], "", [said for _, said in part]) for part in _parts(cells)]
    return save(sheet(rows, (), title, [*legend, *_note(pictures)]), out)


def _parts(cells: Sequence[tuple[Image.Image, str]]) -> list[Sequence[tuple[Image.Image, str]]]:
    return [cells[start : start + ACROSS] for start in range(0, len(cells), ACROSS)]


def _file(pictures: Pictures, index: int) -> str:
    return pictures.source.name(index).replace("\\", "/").rsplit("/", 1)[-1]


def _note(pictures: Pictures) -> list[str]:
    return [] if pictures.format.in_chans in (1, 3) else [f"The first three of {pictures.format.in_chans} channels are shown, contrast stretched."]
