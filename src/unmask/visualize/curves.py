"""The curves of runs: few small charts, each with what is needed to judge it, drawn from metrics.jsonl as SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from unmask.run.records import PART, Run

POINTS = 150  # of the longest curve: more cannot be seen at this size
SERIES = ("#2563a8", "#b4500f", "#1a7f4b", "#8a3ffc", "#b0243f", "#5b6472")  # contrast on white above 4.5 each
DASHES = ("", "8 3", "2 3", "10 3 2 3", "5 2", "14 4")  # a run is told by its letter, its marker and its line, not by colour alone
SHAPES = (
    "M-3.6 0A3.6 3.6 0 1 0 3.6 0A3.6 3.6 0 1 0-3.6 0Z",  # disc
    "M-3.3-3.3H3.3V3.3H-3.3Z",  # square
    "M0-4.4L4.2 3.2H-4.2Z",  # triangle
    "M0-4.8L4.4 0L0 4.8L-4.4 0Z",  # diamond
    "M-4.2-3.2H4.2L0 4.4Z",  # triangle that stands on its tip
    "M-1.3-4.2H1.3V-1.3H4.2V1.3H1.3V4.2H-1.3V1.3H-4.2V-1.3H-1.3Z",  # cross
)
WIDTH, HEIGHT, TOP, BOTTOM, LETTER = 380, 232, 12, 34, 7.2  # of a chart and of one digit, in its own units
MARKERS = 5  # on a curve of many points


@dataclass(frozen=True)
class Chart:
    """One small chart: the column of metrics.jsonl, and the reference lines beside it (column, what it says)."""

    key: str
    title: str
    says: str
    beside: tuple[tuple[str, str], ...] = ()
    percent: bool = False  # the column is a share of 1
    from_zero: bool = False
    steep: bool = False  # the first steps are far above the rest: they may leave the chart
    rest: bool = False  # looked at seldom


ANSWERS = (("patch_mean", "patch mean"), ("copy_nearest", "copy the nearest"), ("best_constant", "best constant"), ("copy_noisy", "noisy picture"))
LOSS = Chart("loss", "Loss", "Lower is better; the dashed lines need no network.", ANSWERS, steep=True)
PREDICTED = Chart("predicted", "Loss of what is hidden", "One part of the loss, the one that the dashed lines belong to.", ANSWERS)
LARGEST = (("majority", "always the largest class"),)
CHARTS = (
    LOSS,
    PREDICTED,
    Chart("top1", "Validation accuracy, %", "Of pictures that do not teach; higher is better.", LARGEST),
    Chart("auroc", "Validation AUROC", "Of pictures that do not teach; higher is better."),
    Chart("r2", "Validation R²", "Of pictures that do not teach: 1 is perfect, 0 is to answer the mean."),
    Chart("val_loss", "Validation loss", "Of pictures that do not teach; a rise while the loss falls: learnt by heart.", steep=True),
    Chart("knn", "kNN accuracy, %", "Labels judge the frozen features; higher is better.", (("knn_random", "random encoder"),)),
    Chart("rank", "Effective rank of the features", "Directions in use; a fall towards 1 is a collapse.", from_zero=True),
    Chart("codes_used", "Codes in use", "On pictures that stay the same; a fall towards 1 is a collapse.", from_zero=True),
    Chart("codes_as_many_as", "Codes, as if used evenly", "So many, used equally often, would have the same entropy.", from_zero=True),
    Chart("lr", "Learning rate", "Warm-up, then cosine.", from_zero=True),
    Chart("images_per_second", "Images a second", "How fast the run trains.", from_zero=True),
    Chart("data_wait", "Time waiting for data, %", "0 is best; high: more workers or a faster disk.", percent=True, from_zero=True),
    Chart("grad_norm", "Gradient norm", "Peaks are steps at which the weights jumped.", steep=True, from_zero=True, rest=True),
    Chart("feature_std", "Spread of the features", "About 1: spread out; towards 0: a collapse.", from_zero=True, rest=True),
)
KNOWN = {"step", "loss", "skipped", "knn_n", "val_n"} | {chart.key for chart in CHARTS} | {key for chart in CHARTS for key, _ in chart.beside}


def present(runs: dict[str, Run]) -> list[tuple[Chart, dict[str, Run]]]:
    """The charts for which there are numbers, each with the runs that have them; losses that mean different things apart."""
    found = []
    for chart in [LOSS, PREDICTED, *parts(runs), *CHARTS[2:], *others(runs)]:
        having = {name: run for name, run in runs.items() if run.column(chart.key)[0]}
        if chart is LOSS or chart.key.startswith(PART):
            kinds = list(dict.fromkeys(loss_of(run) for run in having.values()))
            for kind in kinds:
                says = chart.says if not kind[1] else "Lower is better; of pictures as they teach, distorted and mixed."
                one = replace(chart, title=chart.title if len(kinds) == 1 else f"{chart.title} of {kind[0]}", says=says)
                found.append((one, {name: run for name, run in having.items() if loss_of(run) == kind}))
        elif having:
            found.append((chart, having))
    return found


def loss_of(run: Run) -> tuple[str, bool]:
    """What the loss of a run is of: losses of different kinds share no axis."""
    raw = run.config.get("method.norm_pix") is False
    return (run.method or "the run") + (", raw pixels" if raw else ""), run.supervised


def parts(runs: dict[str, Run]) -> list[Chart]:
    """A chart for each part of a loss, in the order in which the runs name them."""
    names = dict.fromkeys(key for run in runs.values() for key in run.columns if key.startswith(PART))
    return [Chart(name, f"Loss, its {name.removeprefix(PART).replace('_', ' ')}", "One part of the loss, as it counts: all parts add up to it.", steep=True) for name in names]


def others(runs: dict[str, Run]) -> list[Chart]:
    """A chart for each further column of numbers; the average of the weights has its own."""
    names = sorted({key for run in runs.values() for key in run.columns if not key.startswith(PART)} - KNOWN)
    titles = {chart.key: chart.title for chart in CHARTS}
    charts = []
    for name in names:
        base = name.removesuffix("_average")
        title = f"{titles[base]}, averaged weights" if base != name and base in titles else name
        says = "The moving average of the weights, on the same pictures." if base != name else "As it stands in metrics.jsonl."
        charts.append(Chart(name, title, says, LARGEST if base == "top1" else (), rest=base == name))
    return charts


def thin(steps: Sequence[float], values: Sequence[float], size: int) -> tuple[list[float], list[float], list[float], list[float]]:
    """A curve in stretches of `size` points: mean step, mean, lowest and highest value of each, so that no spike is lost."""
    parts = [slice(i, i + size) for i in range(0, len(values), size)]
    mean = [sum(values[p]) / len(values[p]) for p in parts]
    return [sum(steps[p]) / len(steps[p]) for p in parts], mean, [min(values[p]) for p in parts], [max(values[p]) for p in parts]


@dataclass(frozen=True)
class Line:
    """One run's curve, ready to be drawn."""

    name: str
    place: int  # of the run on the page: its letter, colour, dash and marker
    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    marked: list[int]  # the points that carry a marker


def lines_of(chart: Chart, runs: dict[str, Run], order: Sequence[str]) -> list[Line]:
    """The curves of a chart; all are thinned alike, so that they look equally smooth."""
    scale = 100.0 if chart.percent else 1.0
    curves = {name: run.column(chart.key) for name, run in runs.items()}
    size = max(1, -(-max(len(values) for _, values in curves.values()) // POINTS))
    lines = []
    for name, (steps, values) in curves.items():
        few = size == 1 and len(values) <= 24
        thinned = thin(steps, [scale * value for value in values], size)
        count, place = len(thinned[0]), order.index(name)
        shift = (place + 1) / (len(order) + 1)  # markers of runs that lie on each other stand beside each other
        marked = list(range(count)) if few else sorted({int(count * (i + shift) / MARKERS) for i in range(MARKERS)} - {count}) if len(order) > 1 else []
        lines.append(Line(name, place, *thinned, marked))
    return lines


def references(chart: Chart, runs: dict[str, Run], order: Sequence[str]) -> list[tuple[float, str, int | None]]:
    """(level, name, whose) of the reference lines: one for all runs that agree within 1 %.

    Where they do not agree, the first reference alone is drawn, each line named by the letters of its runs.
    """
    found: list[tuple[float, str, int | None]] = []
    for key, said in chart.beside:
        levels = {order.index(name): sum(values) / len(values) for name, run in runs.items() if (values := run.column(key)[1]) and (chart is not LOSS or not run.column("predicted")[1])}
        groups: list[list[int]] = []
        for place in sorted(levels, key=lambda place: levels[place]):
            alike = bool(groups) and levels[place] - levels[groups[-1][0]] <= 0.01 * abs(levels[place])
            groups[-1].append(place) if alike else groups.append([place])
        middles = [sum(levels[place] for place in group) / len(group) for group in groups]
        if len(groups) == 1:
            found.append((middles[0], said, None))
        elif key == chart.beside[0][0]:
            found += [(level, f"{' '.join(letter(place) for place in sorted(group))}: {said}", min(group)) for level, group in zip(middles, groups)]
    return found


def letter(place: int) -> str:
    """A, B, C … of the runs on a page."""
    return chr(65 + place) if place < 26 else str(place + 1)


def limits(chart: Chart, lines: Sequence[Line], levels: Sequence[float]) -> tuple[float, float, bool]:
    """Lowest and highest number of the chart, and whether a steep beginning leaves it at the top."""
    lows, highs = [min(line.low) for line in lines], [max(line.high) for line in lines]
    low, high = min([*lows, *levels]), max([*highs, *levels])
    cut = False
    if chart.steep:
        later = [value for line in lines for value in line.high[max(1, len(line.high) // 12) :]]
        settled = max([*later, *levels], default=high)
        if later and high - settled > 0.35 * (settled - low):
            high, cut = settled + 0.12 * (settled - low), True
    if chart.from_zero:
        low = min(low, 0.0)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (low if chart.from_zero and low == 0 else low - room), high + room, cut


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between `low` and `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def written(value: float) -> str:
    """A number at an axis."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    return f"{value:.4g}".replace("e-0", "e-")


def svg(chart: Chart, runs: dict[str, Run], order: Sequence[str] = ()) -> str:
    """One chart as inline SVG; `order`: the names of all runs on the page, which gives each its letter, colour and marker."""
    order = list(order or runs)
    lines = lines_of(chart, runs, order)
    scale = 100.0 if chart.percent else 1.0
    beside = [(scale * level, said, whose) for level, said, whose in references(chart, runs, order)]
    low, high, cut = limits(chart, lines, [level for level, _, _ in beside])
    first, last = min(line.steps[0] for line in lines), max(line.steps[-1] for line in lines)
    last = last if last > first else first + 1
    heights = ticks(low, high)
    left, right = 12 + LETTER * max(len(written(value)) for value in heights), 12 if len(order) == 1 else 24
    wide, tall = WIDTH - left - right, HEIGHT - TOP - BOTTOM

    def x(step: float) -> float:
        return round(wide * (step - first) / (last - first), 1)

    def y(value: float) -> float:
        return round(tall * (high - value) / (high - low), 1)

    parts = [f'<g transform="translate({left:.1f} {TOP})">']
    for value in heights:
        parts.append(f'<path class="grid" d="M0 {y(value)}H{wide:.1f}"/><text x="-6" y="{y(value) + 4}" text-anchor="end">{written(value)}</text>')
    for value in ticks(first, last, 5):
        parts.append(f'<text x="{x(value)}" y="{tall + 17}" text-anchor="middle">{written(value)}</text>')
    parts.append(f'<text x="{wide:.1f}" y="{tall + 31}" text-anchor="end">step</text>')
    parts.append(f'<svg width="{wide:.1f}" height="{tall}" overflow="hidden">{"".join(curve(line, x, y, len(order) == 1) for line in lines)}</svg>')
    parts.append(skipped(runs, x, tall) if chart.key == "loss" else "")
    parts.append(levels(beside, y, wide, tall))
    parts += markers(lines, x, y, tall, len(order) == 1)
    if cut:
        parts.append(f'<text class="halo" x="{wide * 0.16:.1f}" y="9">begins at {written(max(line.high[0] for line in lines))}</text>')
    said = escape(f"{chart.title} over the steps: {in_words(lines, beside)}", quote=True)
    return f'<svg class="chart" role="img" aria-label="{said}" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</g></svg>'


def curve(line: Line, x, y, alone: bool) -> str:
    """The line of one run, over the band between lowest and highest where it stands alone."""
    colour = f"var(--series-{line.place % len(SERIES) + 1})"
    points = [f"{x(step)} {y(value)}" for step, value in zip(line.steps, line.mean)]
    band = ""
    if alone and line.low != line.high:
        edge = [f"{x(s)} {y(v)}" for s, v in zip(line.steps, line.high)] + [f"{x(s)} {y(v)}" for s, v in zip(line.steps[::-1], line.low[::-1])]
        band = f'<path d="M{"L".join(edge)}Z" style="fill:{colour};opacity:.18"/>'
    dash = f";stroke-dasharray:{DASHES[line.place % len(DASHES)]}" if DASHES[line.place % len(DASHES)] else ""
    return band + f'<path class="line" d="M{"L".join(points)}" style="stroke:{colour}{dash}"/>'


def markers(lines: Sequence[Line], x, y, tall: float, alone: bool) -> list[str]:
    """The markers, with the numbers behind them for who points at one; and each run's letter at its end, none over another."""
    parts = []
    for line in lines:
        colour = f"var(--series-{line.place % len(SERIES) + 1})"
        for i in line.marked:
            if 0 <= y(line.mean[i]) <= tall:
                said = escape(f"{line.name}, step {line.steps[i]:,.0f}: {line.mean[i]:.4g}")
                shape = SHAPES[line.place % len(SHAPES)]
                parts.append(f'<path d="{shape}" transform="translate({x(line.steps[i])} {y(line.mean[i])})" style="fill:{colour}"><title>{said}</title></path>')
    if alone:
        return parts
    ends = sorted(lines, key=lambda line: y(line.mean[-1]))
    at = [min(max(y(line.mean[-1]), 0.0), tall) for line in ends]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + 13)
    if at and at[-1] > tall:
        at = [value - (at[-1] - tall) for value in at]
    for line, height in zip(ends, at):
        colour = f"var(--series-{line.place % len(SERIES) + 1})"
        parts.append(f'<text class="name" x="{x(line.steps[-1]) + 7}" y="{height + 4.5:.1f}" style="fill:{colour}">{letter(line.place)}</text>')
    return parts


def levels(beside: Sequence[tuple[float, str, int | None]], y, wide: float, tall: float) -> str:
    """The reference lines, each with its name and level at its right end, above it or, where another is near, below."""
    parts, taken = [], list[float]()
    for level, said, whose in sorted(beside, key=lambda item: -item[0]):
        colour = "var(--ink)" if whose is None else f"var(--series-{whose % len(SERIES) + 1})"
        parts.append(f'<path class="level" d="M0 {y(level)}H{wide:.1f}" style="stroke:{colour}"/>')
        above, below = y(level) - 5, y(level) + 14
        place = next((height for height in (above, below) if 9 < height < tall and all(abs(height - other) > 12 for other in taken)), None)
        if place is not None:
            taken.append(place)
            parts.append(f'<text class="halo" x="{wide - 4:.1f}" y="{place:.1f}" text-anchor="end">{escape(said)} {level:.3g}</text>')
    return "".join(parts)


def skipped(runs: dict[str, Run], x, tall: float) -> str:
    """A cross at the foot of the chart for every step that was left out because its numbers were not finite."""
    steps = [row["step"] for run in runs.values() for row in run.rows if row.get("skipped") and isinstance(row.get("step"), int | float)][:100]
    return "".join(f'<text x="{x(step)}" y="{tall - 3}" text-anchor="middle" class="bad">×<title>step {step:,} was skipped</title></text>' for step in steps)


def in_words(lines: Sequence[Line], beside: Sequence[tuple[float, str, int | None]]) -> str:
    """The chart in words, for those who cannot see it."""
    parts = [f"{line.name} from {line.mean[0]:.4g} to {line.mean[-1]:.4g}" for line in lines]
    return "; ".join([*parts, *(f"{said} {level:.4g}" for level, said, _ in beside)])
