"""A masking strategy to look at: some of its masks, how often each patch is masked, and how many are."""

from __future__ import annotations

import dataclasses
import difflib
import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torchvision.transforms.v2.functional import pil_to_tensor

from unmask import seeds
from unmask.errors import Refused
from unmask.interchange.encoder import load_encoder
from unmask.load import load
from unmask.masking import STRATEGIES, Attended, Masking
from unmask.methods import METHODS, find
from unmask.model import MaskedModel
from unmask.targets.features import frozen
from unmask.visualize.pictures import INK, PAPER, QUIET, RULE, Row, cover, font, heat, save, sheet

CELL = 16  # pixels a patch in the drawing
ROW = 4  # masks side by side


def strategy(name: str, ratio: float | str | None = None, grid: tuple[int, int] = (14, 14)) -> Masking:
    """The strategy of that name, or that of a method, at `ratio` or at its paper's own; an unknown name is refused with the nearest one."""
    try:
        if name in STRATEGIES:
            return STRATEGIES[name]() if ratio is None else STRATEGIES[name](ratio)
        if name in METHODS or ":" in name:
            return _of_method(name, ratio, grid)
    except ValueError as error:
        raise Refused(str(error)) from None
    names = [*STRATEGIES, *METHODS]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else "there are " + ", ".join(STRATEGIES) + ", and those of the methods: " + ", ".join(METHODS)
    raise Refused(f"no masking strategy '{name}': {hint}")


def _of_method(name: str, ratio: float | str | None, grid: tuple[int, int]) -> Masking:
    """What a method hides on a grid of patches of 16 pixels."""
    method = find(name)
    if "strategy" not in vars(method):
        raise Refused(f"{name} hides no patches, or does not say which: there is no mask to show")
    if ratio is not None and "mask_ratio" not in {field.name for field in dataclasses.fields(method)}:
        raise Refused(f"--mask_ratio: the masks of {name} have no ratio")
    return method(**({} if ratio is None else {"mask_ratio": ratio})).strategy(grid, (CELL, CELL))


def middle(grid: tuple[int, ...]) -> torch.Tensor:
    """A bell over a grid (N,), a stand-in for a teacher's attention."""
    places = torch.cartesian_prod(*(torch.linspace(-1, 1, side) for side in grid))  # (N, axes)
    return torch.exp(-3 * places.square().sum(-1))


def attention(teacher: str, picture: Image.Image, grid: tuple[int, int]) -> torch.Tensor:
    """How much a teacher (an ENCODER) looks at each patch of a picture (N,)."""
    target = frozen(teacher, (grid[0] * CELL, grid[1] * CELL), (CELL, CELL), 3, "show mask", "--teacher")
    if not isinstance(target.outside[0], VisionTransformer | Eva | Beit):
        raise Refused(f"--teacher: a {type(target.outside[0]).__name__} has no attention to show: choose a vision transformer")
    return target.attention(pil_to_tensor(_base(picture, grid)).unsqueeze(0) / 255)[0].cpu()  # (3, H, W) in 0..1, as it expects where nothing is said


def of_run(run: str | Path, picture: Image.Image | None) -> tuple[Masking, torch.Tensor | None, tuple[int, int]]:
    """A run's masking, what guides it on a picture (N,) where anything does, and its grid."""
    learner = load(run).eval()
    if not isinstance(learner, MaskedModel) or learner.masking is None:
        raise Refused(f"{run} hides no patches: there is no mask to show")
    learner.masking.prepare(1.0, 0.5)  # of a schedule the ratio at the end, of a range the middle
    encoder, opened = learner.encoder, load_encoder(run, say=lambda line: None)
    if learner.scores is None:
        return learner.masking, None, encoder.own_grid
    if picture is None:
        raise Refused(f"the masks of {run} depend on the picture: give --picture FILE, too")
    height, width = encoder.img_size
    if encoder.in_chans != 3:
        raise Refused(f"--picture is read in three channels, and {run} looks at {encoder.in_chans}")
    x = pil_to_tensor(ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.BICUBIC)) / 255  # (3, H, W)
    mean, std = (torch.tensor(given or (usual,)).reshape(-1, 1, 1) for given, usual in ((opened.mean, 0.0), (opened.std, 1.0)))
    with torch.no_grad():
        return learner.masking, learner.scores(((x - mean) / std).unsqueeze(0))[0].cpu(), encoder.own_grid


def learned(name: str) -> bool:
    """Whether a method's masks are drawn by chances that it learns."""
    return (name in METHODS or ":" in name) and vars(find(name)).get("learns_mask", False)


def show(
    masking: Masking | str,
    *,
    ratio: float | str | None = None,
    grid: tuple[int, int] = (14, 14),
    picture: Image.Image | None = None,
    scores: torch.Tensor | None = None,
    said: str = "Attention that guides the mask",
    count: int = 8,
    draws: int = 2000,
    seed: int = 0,
    out: Path | str | None = None,
) -> Image.Image:
    """A sheet of `count` masks over `picture` (or a plain tile), and the law behind them from `draws` masks.

    `masking` is a strategy, its name or a method's; `ratio` counts only with a name. Ranges and schedules are shown at the ratio
    that the strategy holds now. `scores` (N,): what guides a strategy that wants it, `said` in words; not given: a stand-in, or for chances
    that are learned the same everywhere.
    """
    name = masking if isinstance(masking, str) else type(masking).__name__.lower()
    fresh = scores is None and learned(name)
    if fresh:
        scores, said = torch.full((math.prod(grid),), 1 / math.prod(grid)), "Chances to be shown, before anything is learned"
    chosen = strategy(name, ratio, grid) if isinstance(masking, str) else masking
    guided = isinstance(chosen, Attended)
    guide = None if not guided else middle(grid) if scores is None else scores
    draws, patches = max(draws, count), math.prod(grid)
    try:
        noise = seeds.uniform((draws, chosen.draws(grid)), seed, "show mask")
        told = None if guide is None else guide.expand(draws, -1)
        mask, few = chosen(grid, noise, told), chosen(grid, noise[:count], None if told is None else told[:count])  # apart: some lists are cut to the shortest of a batch
    except ValueError as error:
        raise Refused(str(error)) from None
    maps = mask.map  # (draws, N) True = masked
    masked = maps.sum(1)  # (draws,)
    shown = few.map  # (count, N)
    neither = ~shown if few.weight is None else torch.zeros_like(shown)  # padded lists: what is not masked is seen
    neither = neither.scatter(1, few.visible_ids, False)
    base = _base(picture, grid)
    dark = Image.blend(base, Image.new("RGB", base.size, INK), 0.75)
    seen = [Image.composite(dark, base, _stencil(_pixels(row.reshape(grid)))) for row in neither]
    covered = [cover(picture, ~_pixels(row.reshape(grid))) for picture, row in zip(seen, shown)]
    captions = [f"{n} of {patches} masked ({n / patches:.0%})" for n in masked[:count].tolist()]
    rows = [Row(covered[i : i + ROW], captions=captions[i : i + ROW]) for i in range(0, count, ROW)]
    law = [_law(maps, grid, base.size)]
    if guide is not None:
        seen_by = [heat(guide.reshape(grid), float(guide.max())).resize(base.size, Image.Resampling.NEAREST)]
        law.insert(0, Row(seen_by, label=said if scores is not None else "A stand-in for a teacher's attention"))
    share = "several blocks" if bool(neither.any()) else f"{chosen.now:g}" if chosen.rated else "shares of their own"
    title = f"Masking strategy: {name}, {share} of a {grid[0]} x {grid[1]} grid"
    legend = [
        f"Grey is masked. On average {masked.float().mean() / patches:.1%} of the patches are."
        + (" Dark is neither looked at nor asked about." if bool(neither.any()) else ""),
        "Last row: how often each patch is masked, the colours of that map, and how often each number of masked patches comes up.",
        *(["What to show is learned, and until then every patch has the same chance: unmask show mask RUN --picture FILE draws what a run has learned."] if fresh else []),
        *(["No teacher was given: the attention is a bell in the middle. --teacher ENCODER --picture FILE shows what a teacher really looks at."] if guided and scores is None else []),
    ]
    return save(sheet([*rows, *law], title=title, legend=legend), out)


def _law(maps: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Row:
    """How often each place of maps (draws, N) is masked, and how many are at once."""
    masked, patches = maps.sum(1), maps.shape[1]  # (draws,)
    often = maps.float().mean(0).reshape(grid)
    fewest, most = int(masked.min()), int(masked.max())
    return Row(
        [heat(often, 1.0).resize(size, Image.Resampling.NEAREST), _scale(size), _histogram(masked, patches, size)],
        label=f"The law: {len(maps):,} masks drawn",
        captions=[
            f"each patch: {often.min():.0%} to {often.max():.0%}",
            "",
            f"always {fewest} masked" if fewest == most else f"{fewest} to {most} patches masked",
        ],
    )


def _pixels(map: torch.Tensor) -> torch.Tensor:
    return map.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)  # (H, W) to (H·CELL, W·CELL)


def _stencil(map: torch.Tensor) -> Image.Image:
    return Image.fromarray(map.to(torch.uint8).mul(255).numpy())


def _base(picture: Image.Image | None, grid: tuple[int, int]) -> Image.Image:
    """What the mask lies on: the picture, cut to the grid, or a plain tile with the patches ruled."""
    size = (grid[1] * CELL, grid[0] * CELL)
    if picture is not None:
        return ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.BICUBIC)
    tile = Image.new("RGB", size, (247, 214, 138))
    draw = ImageDraw.Draw(tile)
    for x in range(0, size[0], CELL):
        draw.line((x, 0, x, size[1]), (232, 190, 100))
    for y in range(0, size[1], CELL):
        draw.line((0, y, size[0], y), (232, 190, 100))
    return tile


def _histogram(masked: torch.Tensor, patches: int, size: tuple[int, int]) -> Image.Image:
    """Bars: how often each number of masked patches came up; a single bar where the number is fixed."""
    image, small = Image.new("RGB", size, PAPER), font(13)
    draw = ImageDraw.Draw(image)
    low, high = max(int(masked.min()) - 1, 0), min(int(masked.max()) + 1, patches)
    bins = torch.bincount(masked - low, minlength=high - low + 1).tolist()
    bottom, wide = size[1] - 20, size[0] / len(bins)
    half = max(min(wide * 0.42, 16), 0.5)
    for i, many in enumerate(bins):
        if many:
            top, middle = bottom - max(1, round((bottom - 24) * many / max(bins))), (i + 0.5) * wide
            draw.rectangle((middle - half, top, middle + half, bottom), (46, 107, 190))
    draw.line((0, bottom, size[0], bottom), INK)
    draw.text((0, bottom + 3), str(low), INK, small)
    draw.text((size[0] - small.getlength(str(high)), bottom + 3), str(high), INK, small)
    draw.text((0, 2), f"tallest bar: {max(bins) / len(masked):.0%} of all masks", QUIET, small)
    return image


def _scale(size: tuple[int, int]) -> Image.Image:
    """The colours of the frequency map, named."""
    image, small = Image.new("RGB", size, PAPER), font(13)
    draw = ImageDraw.Draw(image)
    bar = heat(torch.linspace(1, 0, size[1]).unsqueeze(1).expand(-1, 14).contiguous(), 1.0)
    image.paste(bar, (0, 0))
    draw.rectangle((0, 0, 13, size[1] - 1), outline=RULE)
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        y = round((size[1] - 15) * (1 - share))
        draw.text((22, y), f"{share:.0%}" + (" always masked" if share == 1 else " never" if share == 0 else ""), INK, small)
    return image
