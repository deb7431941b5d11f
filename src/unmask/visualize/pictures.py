"""Numbers become pictures, and pictures become labelled sheets: what every other file of this room draws with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from unmask.errors import Refused
from unmask.visualize.panels import LAYOUT

PAPER, INK, QUIET, RULE = (255, 255, 255), (24, 28, 34), (82, 90, 101), (224, 228, 233)  # text contrast on paper: 17 and 7
HIDDEN = (138, 144, 154)  # what was masked: a grey that is no part of the picture
SMALLEST, LARGEST = 144, 512  # pixels a panel side
GAP, MARGIN = 10, 20


@dataclass(frozen=True)
class Colours:
    """Which channels are looked at, and how the network's numbers become 0..1 again.

    `x * std + mean` undoes the normalisation; the loader scaled the data's own range to 0..1 before it. One channel is
    grey, three are red, green, blue; of any other number three `bands` are shown, stretched between their 2nd and 98th
    percentile in the originals, and `note` says so.
    """

    mean: torch.Tensor  # (C, 1, 1)
    std: torch.Tensor  # (C, 1, 1)
    bands: tuple[int, ...]
    low: torch.Tensor  # (bands, 1, 1)
    high: torch.Tensor  # (bands, 1, 1)
    note: str = ""

    @classmethod
    def of(cls, x: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, bands: Sequence[int] | None = None) -> Colours:
        """The colours for normalised originals `x (B, C, H, W)`; `bands` are channel numbers from 0, one or three.

        Where mean and std are not known, the range of `x` itself is taken for 0..1.
        """
        channels = x.shape[1]
        bands = tuple(bands) if bands is not None else (0, 1, 2) if channels >= 3 else (0,)
        if len(bands) not in (1, 3) or not all(0 <= band < channels for band in bands):
            numbers = " ".join(str(band + 1) for band in bands)
            raise Refused(f"--bands {numbers}: the network takes {channels} channel{'s' if channels > 1 else ''}; give one or three of the numbers 1 to {channels}")
        if mean is None or std is None:
            least, most = (float(torch.quantile(_some(x.flatten()), q)) for q in (0.01, 0.99))
            mean, std = (-least / max(most - least, 1e-6),), (1 / max(most - least, 1e-6),)
        middle, width = (torch.tensor(list(value), dtype=torch.float32).expand(channels).reshape(-1, 1, 1) for value in (mean, std))
        if (channels, bands) in ((1, (0,)), (3, (0, 1, 2))):
            return cls(middle, width, bands, torch.zeros(len(bands), 1, 1), torch.ones(len(bands), 1, 1))
        shown = (x.float().cpu() * width + middle)[:, list(bands)].transpose(0, 1).flatten(1)  # (bands, B·H·W)
        low, high = (torch.quantile(_some(shown), q, dim=1).reshape(-1, 1, 1) for q in (0.02, 0.98))
        numbers = ", ".join(str(band + 1) for band in bands)
        what = f"Bands {numbers} of {channels} are shown as red, green, blue" if len(bands) == 3 else f"Band {numbers} of {channels} is shown as grey"
        note = what + ", contrast stretched (2nd to 98th percentile of the originals); errors count all bands."
        return cls(middle, width, bands, low, torch.maximum(high, low + 1e-6), note)

    @property
    def label(self) -> str:
        """What stands beside a heading where not everything that the network sees is shown; else nothing."""
        return f", band{'s' if len(self.bands) > 1 else ''} {' '.join(str(band + 1) for band in self.bands)}" if self.note else ""

    def unit(self, x: torch.Tensor) -> torch.Tensor:
        """The picture behind the network's numbers: `(B, C, H, W)`, all channels, 0..1 where the data's range is."""
        return (x.float().cpu() * self.std + self.mean).clamp(0, 1)

    def images(self, x: torch.Tensor) -> list[Image.Image]:
        """One RGB picture for each of `x (B, C, H, W)`."""
        shown = (self.unit(x)[:, list(self.bands)] - self.low) / (self.high - self.low)  # (B, bands, H, W)
        pixels = (shown.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in pixels]


def _some(x: torch.Tensor) -> torch.Tensor:
    """At most about 100,000 numbers of the last axis: torch.quantile sorts them all, and takes no more than 2^24."""
    return x.float().cpu()[..., :: max(1, x.shape[-1] // 100_000)]


def heat(values: torch.Tensor, highest: float | None = None) -> Image.Image:
    """A map `(H, W)` in colours from black (0) over purple and orange to pale yellow (`highest`, or its own maximum)."""
    from matplotlib import colormaps

    highest = float(values.max()) if highest is None else highest
    share = (values.float().cpu() / max(highest, 1e-12)).clamp(0, 1)
    return Image.fromarray((colormaps["inferno"](share.numpy())[..., :3] * 255).round().astype("uint8"))


def cover(image: Image.Image, known: torch.Tensor) -> Image.Image:
    """`image` with the grey of hidden places where `known (H, W)` is False."""
    stencil = Image.fromarray(known.cpu().to(torch.uint8).mul(255).numpy())
    return Image.composite(image, Image.new("RGB", image.size, HIDDEN), stencil)


def enlarge(image: Image.Image, smallest: int = SMALLEST) -> Image.Image:
    """Small pictures grow by a whole number, pixel by pixel, so that nothing is invented; huge ones shrink."""
    width, height = image.size
    factor = -(-smallest // min(width, height))
    if factor > 1:
        return image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    if max(width, height) > LARGEST and min(width, height) > smallest:
        scale = max(LARGEST / max(width, height), smallest / min(width, height))
        return image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    return image


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font, so that every machine draws the same letters."""
    return ImageFont.load_default(size=size)


def shorten(text: str, width: float, letters) -> str:
    """`text` with its middle left out where it is wider than `width` pixels."""
    if letters.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 4 and letters.getlength(text[: keep // 2] + "..." + text[-(keep // 2) :]) > width:
        keep -= 1
    return text[: keep // 2] + "..." + text[-(keep // 2) :]


def short_name(path: str) -> str:
    """The last folder and the file: enough to find a picture, and no machine's whole tree on a sheet that is passed on."""
    return "/".join(str(path).replace("\\", "/").split("/")[-2:])


def wrap(text: str, width: float, letters) -> list[str]:
    """`text` in lines of at most `width` pixels, broken between words."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and letters.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line] if line else lines


@dataclass(frozen=True)
class Row:
    """Pictures that stand side by side, the line above them, and what is written under each (may be empty).

    `name` says which picture it is, so that the same one is found on another sheet.
    """

    images: Sequence[Image.Image]
    label: str = ""
    captions: Sequence[str] = ()
    name: str = ""


def sheet(rows: Sequence[Row], header: Sequence[str] = (), title: str = "", legend: Sequence[str] = ()) -> Image.Image:
    """A labelled sheet: title, one heading a column, then rows of pictures, then what must be known to read them.

    Its `info[LAYOUT]` says the same as text, with the place of each panel: written into a PNG, it lets a page show the panels
    with words beside them that can be read aloud, on a phone and in the dark.
    """
    big, middle, small = font(21), font(15), font(14)
    panels = [[enlarge(image) for image in row.images] for row in rows]
    columns = max((len(row) for row in panels), default=1)
    widths = [max((row[i].width for row in panels if i < len(row)), default=SMALLEST) for i in range(columns)]
    inner = max(sum(widths) + GAP * (columns - 1), 420)  # legends stay readable beside one narrow column
    heads = [wrap(text, width, middle) for text, width in zip(header, widths)]
    titles, legends = wrap(title, inner, big), [line for text in legend for line in wrap(text, inner, small)]
    head = max((len(lines) for lines in heads), default=0)
    bodies = [
        22 * bool(row.label) + max((panel.height for panel in line), default=0) + 22 * any(row.captions) + GAP for row, line in zip(rows, panels)
    ]
    height = 2 * MARGIN + 30 * len(titles) + 20 * head + 8 + sum(bodies) + (8 + 20 * len(legends) if legends else 0)
    canvas = Image.new("RGB", (inner + 2 * MARGIN, height), PAPER)
    draw, y = ImageDraw.Draw(canvas), MARGIN
    for line in titles:
        draw.text((MARGIN, y), line, INK, big)
        y += 30
    lefts = [MARGIN + sum(widths[:i]) + GAP * i for i in range(columns)]
    for left, lines in zip(lefts, heads):
        for i, line in enumerate(lines):
            draw.text((left, y + 20 * (head - len(lines) + i)), line, INK, middle)
    y += 20 * head + 8
    laid = []
    for row, images in zip(rows, panels):
        top = y + 22 * bool(row.label)
        boxes = [[left, top, *panel.size, max(1, panel.width // image.width)] for left, panel, image in zip(lefts, images, row.images)]
        laid.append({"name": row.name, "label": row.label, "captions": list(row.captions), "boxes": boxes})
        y = _row(canvas, draw, row, images, lefts, y, inner)
    canvas.info[LAYOUT] = json.dumps({"title": title, "header": list(header), "rows": laid, "legend": list(legend)}, ensure_ascii=False)
    if legends:
        draw.line((MARGIN, y, MARGIN + inner, y), RULE)
        for i, line in enumerate(legends):
            draw.text((MARGIN, y + 8 + 20 * i), line, QUIET, small)
    return canvas


def _row(canvas, draw, row: Row, panels: Sequence[Image.Image], lefts: Sequence[int], y: int, inner: int) -> int:
    """Draw one row from `y` down; the answer is where the next begins."""
    small = font(14)
    if row.label:
        draw.text((MARGIN, y), shorten(row.label, inner, small), QUIET, small)
        y += 22
    tallest = max((panel.height for panel in panels), default=0)
    for left, panel in zip(lefts, panels):
        canvas.paste(panel, (left, y))
    for left, panel, caption in zip(lefts, panels, row.captions):
        draw.text((left, y + tallest + 3), shorten(caption, panel.width + GAP, small), QUIET, small)
    return y + tallest + 22 * any(row.captions) + GAP


def save(image: Image.Image, out: Path | str | None) -> Image.Image:
    """Write `image` where a place was given (parent folders are made), and hand it back."""
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        words = PngInfo()
        words.add_itxt(LAYOUT, image.info.get(LAYOUT, ""))
        more: dict[str, Any] = {"pnginfo": words} if Path(out).suffix.lower() == ".png" else {}
        image.save(out, **more)
    return image
