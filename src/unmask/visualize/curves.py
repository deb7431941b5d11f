"""The curves of a run: few small charts, each with what is needed to judge it, drawn from metrics.jsonl."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
POINTS = 150  # of the longest curve: more cannot be seen at this size
SERIES = ("#2563a8", "#b4500f", "#1a7f4b", "#8a3ffc", "#b0243f", "#5b6472")  # contrast on white above 4.5 each
INK, QUIET, RULE, PAPER = "#181c22", "#525a65", "#d5dae0", "#ffffff"


@dataclass(frozen=True)
class Chart:
    """One small chart: the column of metrics.jsonl, and the reference lines beside it (column, what it says)."""

    key: str
    title: str
    says: str
    beside: tuple[tuple[str, str], ...] = ()
    percent: bool = False  # the column is a share of 1
    from_zero: bool = False


CHARTS = (
    Chart(
        "loss",
        "Loss",
        "lower is better; the dashed lines need no network",
        (("patch_mean", "each hidden patch its own mean"), ("copy_nearest", "copy the nearest visible patch")),
    ),
    Chart("knn", "kNN accuracy, %", "labels judge the frozen features; higher is better", (("knn_random", "random encoder"),)),
    Chart("rank", "Effective rank of the features", "directions in use; a fall towards 1 is a collapse", from_zero=True),
    Chart("lr", "Learning rate", "warm-up, then cosine", from_zero=True),
    Chart("images_per_second", "Pictures a second", "how fast the run trains", from_zero=True),
    Chart("data_wait", "Time waiting for data, %", "0 is best; high: more workers or a faster disk", percent=True, from_zero=True),
)


def read(path: Path | str) -> Rows:
    """The rows of a metrics.jsonl; a file that is absent has none, a line cut by a crash is left out."""
    path = Path(path)
    rows: Rows = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def column(rows: Iterable[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one column, where both are finite numbers, in the order of the steps."""
    pairs = [(row.get("step"), row.get(key)) for row in rows]
    good = sorted((float(s), float(v)) for s, v in pairs if isinstance(s, int | float) and isinstance(v, int | float) and math.isfinite(v))
    return [step for step, _ in good], [value for _, value in good]


def thin(steps: Sequence[float], values: Sequence[float], size: int) -> tuple[list[float], list[float], list[float], list[float]]:
    """A curve in stretches of `size` points: mean step, mean, lowest and highest value of each, so that no spike is lost."""
    parts = [slice(i, i + size) for i in range(0, len(values), size)]
    mean = [sum(values[p]) / len(values[p]) for p in parts]
    return [sum(steps[p]) / len(steps[p]) for p in parts], mean, [min(values[p]) for p in parts], [max(values[p]) for p in parts]


def present(runs: dict[str, Rows]) -> list[Chart]:
    """The charts for which at least one run has numbers."""
    return [chart for chart in CHARTS if any(column(rows, chart.key)[0] for rows in runs.values())]


def draw(axes, chart: Chart, runs: dict[str, Rows]) -> None:
    """One chart into matplotlib `axes`: a colour a run, and the reference lines named at the right."""
    scale = 100.0 if chart.percent else 1.0
    curves = [column(rows, chart.key) for rows in runs.values()]
    size = max(1, -(-max(len(values) for _, values in curves) // POINTS))  # one for all, so that curves look equally smooth
    for colour, (steps, values) in zip(_colours(len(runs)), curves):
        steps, mean, low, high = thin(steps, [scale * value for value in values], size)
        few = size == 1 and len(steps) <= 40
        axes.plot(steps, mean, color=colour, linewidth=1.8, marker="o" if few else None, markersize=3.5, zorder=3)
        if len(runs) == 1 and size > 1:
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    lines = _references(chart, runs)
    for level, _, colour in lines:
        axes.axhline(scale * level, color=colour, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
    if chart.from_zero:
        axes.set_ylim(0, (axes.get_ylim()[1] * 1.03) or 1)
    _name_lines(axes, [(scale * level, said) for level, said, _ in lines if said])
    _dress(axes, chart)


def _references(chart: Chart, runs: dict[str, Rows]) -> list[tuple[float, str, str]]:
    """Level, name and colour of the reference lines: one for all runs where they agree within 1 %, else one a run, unnamed."""
    lines = []
    for key, said in chart.beside:
        levels = [sum(values) / len(values) if (values := column(rows, key)[1]) else None for rows in runs.values()]
        known = [level for level in levels if level is not None]
        if known and max(known) - min(known) <= 0.01 * abs(max(known)):
            lines.append((sum(known) / len(known), said, INK))
        else:
            lines += [(level, "", colour) for level, colour in zip(levels, _colours(len(runs))) if level is not None]
    return lines


def _name_lines(axes, ends: list[tuple[float, str]]) -> None:
    """Write what each reference line is, above it, at the right, with a little air so that no name is cut."""
    low, high = axes.get_ylim()
    if ends:
        high = max(high, max(level for level, _ in ends) + 0.1 * (high - low))
        axes.set_ylim(low, high)
    taken: list[float] = []
    for level, said in sorted(ends):
        close = any(abs(level - other) < 0.075 * (high - low) for other in taken)  # then below its line, not above
        side: dict[str, Any] = {"xytext": (-2, -3 if close else 2), "va": "top" if close else "bottom", "ha": "right"}
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(f"{said} {level:.3g}", (1, level), color=QUIET, fontsize=9, **side, **where)
        taken.append(level)


def _dress(axes, chart: Chart) -> None:
    axes.set_title(chart.title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=22)
    axes.text(0, 1.03, chart.says, transform=axes.transAxes, fontsize=9.5, color=QUIET, va="bottom")
    axes.set_xlabel("step", color=QUIET, fontsize=9.5)
    axes.tick_params(colors=QUIET, labelsize=9.5, length=0)
    axes.grid(axis="y", color=RULE, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda value, place: f"{value:.6g}")  # no factor set apart from the axis
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(RULE)


def _colours(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def _figure(columns: int, lines: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * columns, 3.1 * lines), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def svg(chart: Chart, runs: dict[str, Rows]) -> str:
    """One chart as inline SVG whose colours are the page's CSS variables, so that it follows light and dark."""
    import matplotlib

    figure, text = _figure(1, 1), StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.key}):
        axes = figure.subplots()
        axes.set_facecolor("none")
        draw(axes, chart, runs)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*", r"font: \1\2 var(--sans)", body)
    names = {INK: "ink", QUIET: "quiet", RULE: "rule"} | {colour: f"series-{i + 1}" for i, colour in enumerate(SERIES)}
    for colour, name in names.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r'(id="|url\(#|href="#)', rf"\1{chart.key}-", body)  # several charts share one page
    box = re.search(r'viewBox="[^"]*"', body)
    said = escape(f"{chart.title} over the steps: {_summary(chart, runs)}", quote=True)
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg role="img" aria-label="{said}" {box.group() if box else ""} {space}>' + body[body.index(">") + 1 :]


def _summary(chart: Chart, runs: dict[str, Rows]) -> str:
    """The chart in words, for those who cannot see it."""
    parts = []
    for name, rows in runs.items():
        _, values = column(rows, chart.key)
        if values:
            scale = 100.0 if chart.percent else 1.0
            parts.append(f"{name} from {scale * values[0]:.4g} to {scale * values[-1]:.4g}")
        for key, said in chart.beside:
            _, reference = column(rows, key)
            if reference:
                parts.append(f"{said} {sum(reference) / len(reference):.4g}")
    return "; ".join(parts)


def save(runs: dict[str, Rows], out: Path | str) -> Path:
    """All charts in one picture (`.png`, `.svg`, `.pdf`), two side by side; several runs are named by colour on top."""
    charts, out = present(runs), Path(out)
    figure = _figure(min(2, max(1, len(charts))), max(1, -(-len(charts) // 2)))
    figure.set_facecolor(PAPER)
    for i, chart in enumerate(charts):
        draw(figure.add_subplot(-(-len(charts) // 2), min(2, len(charts)), i + 1, facecolor=PAPER), chart, runs)
    if not charts:
        figure.text(0.5, 0.5, "no numbers yet", ha="center", color=QUIET)
    if len(runs) > 1:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=colour, linewidth=2) for colour in _colours(len(runs))]
        figure.legend(lines, list(runs), loc="outside upper left", frameon=False, ncols=min(len(runs), 4))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return out
