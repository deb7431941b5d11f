"""Runs side by side: what differs in their settings, where it led, their evaluations on one scale, and what may be said of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from unmask.run.records import METRICS, Figure, Run, number, own, said
from unmask.visualize import page
from unmask.visualize.curves import letter
from unmask.visualize.verdict import Finding, comparable, final_loss, newest

KEY = (
    *("method", "encoder", "scratch", "data", "val", "model", "init", "width", "depth", "heads", "patch_size", "img_size", "in_chans"),
    *("method.mask_ratio", "method.masking", "method.norm_pix", "method.decoder_width", "method.decoder_depth", "method.decoder_heads"),
    *("last_blocks", "pooling", "layer_decay", "drop_path", "mixup", "cutmix", "randaugment", "erasing", "smoothing", "ema", "shots", "share"),
    *("epochs", "steps", "time", "batch_size", "accumulate", "lr", "base_lr", "weight_decay", "warmup_epochs"),
    *("seed", "precision", "accelerator", "devices"),
)
LOSS = ("method", "data", "patch_size", "img_size", "in_chans", "normalize", "method.mask_ratio", "method.masking", "method.norm_pix")  # what a loss depends on
MANY = 14  # settings shown at once


def text_of(value: Any) -> str:
    """A setting as a person reads it."""
    if isinstance(value, list | tuple):
        return " x ".join(text_of(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return {None: "not set", True: "yes", False: "no"}.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)


def keys(runs: dict[str, Run]) -> list[str]:
    """How each run is told on this page, for the heads of tables."""
    return [page.key(place, name) for place, name in enumerate(runs)]


def differing(lines: Mapping[str, Sequence[str | None]], known: Sequence[object] = ()) -> list[list[str]]:
    """Rows of a table of what is not alike; cells that differ from the first run's are marked. None: this run has no such line.

    `known`: of each run whether its lines could be read; those that could not make no difference.
    """
    rows = []
    for name, values in lines.items():
        if len({value for value, counts in zip(values, known or [True] * len(values)) if counts}) > 1:
            shown = ["–" if value is None else escape(value) for value in values]
            rows.append([f"<code>{escape(name)}</code>", *(cell if value == values[0] else f"<b>≠ {cell}</b>" for cell, value in zip(shown, values))])
    return rows


def settings(runs: dict[str, Run]) -> str:
    """The settings that differ: the telling ones first, many of them folded."""
    names = dict.fromkeys([*KEY, *(key for run in runs.values() for key in run.config)])
    lines: dict[str, list[str | None]] = {name: [text_of(run.config[name]) if name in run.config else None for run in runs.values()] for name in names if name not in ("out", "format")}
    pictures = [str(run.data.get("fingerprint")) if run.data.get("fingerprint") else None for run in runs.values()]
    if len(set(pictures)) > 1 and len(set(lines.get("data", ()))) == 1:
        lines["pictures"] = [f"{run.data['count']:,}, others" if place and run.data.get("count") else str(run.data.get("count")) for place, run in enumerate(runs.values())]
    known = [run.config for run in runs.values()]
    absent = {name: any(value is None for value, config in zip(values, known) if config) for name, values in lines.items()}
    rows, other = (differing({name: values for name, values in lines.items() if absent[name] is wanted}, known) for wanted in (False, True))
    head = ["setting", *keys(runs)]
    parts = [page.table(head, rows[:MANY], "Only settings that differ; ≠ marks what is not as in run A.")] if rows else ["<p>The settings that all of them have are the same.</p>"]
    if rows[MANY:]:
        parts.append(page.folded(f"{len(rows) - MANY} more settings that differ", page.table(head, rows[MANY:], "Further settings that differ", caption=False)))
    if other:
        parts.append(page.folded(f"{len(other)} settings that only some of these runs have", page.table(head, other, "Settings that only some have", caption=False)))
    return "".join(parts)


def machines(runs: dict[str, Run]) -> str:
    """Versions and machine, where they differ."""
    seen = [dict(machine(run)) for run in runs.values()]
    names = dict.fromkeys(name for one in seen for name in one)
    rows = differing({name: [one.get(name) for one in seen] for name in names})
    if rows:
        return page.table(["", *keys(runs)], rows, "Only what differs; ≠ marks what is not as in run A.")
    return f"<p>The same for all of them.</p>{page.pairs([(name, value, '') for name, value in seen[0].items()])}" if seen[0] else ""


def machine(run: Run) -> list[tuple[str, str]]:
    """Machine and versions of one run."""
    environment = run.environment
    about = environment.get("machine")
    items = [(name, environment.get(name)) for name in ("device", "precision", "processes", "threads")]
    items += list(about.items()) if isinstance(about, dict) else []
    packages = environment.get("packages")
    items += [("python", environment.get("python")), *(packages.items() if isinstance(packages, dict) else ())]
    return [(str(name), str(value)) for name, value in items if isinstance(value, str | int | float) and value != ""]


def spent(run: Run) -> float:
    """Seconds that the steps took, from the pace that each was written down with; what lies between them (measuring, saving) is not in it."""
    batch = run.config.get("batch_size")
    paces = run.column("images_per_second")[1]
    return sum(float(batch) / pace for pace in paces if pace > 0) if batch and number(batch) else 0.0


def duration(seconds: float) -> str:
    """`3 h 05 min`, `12 min`, `40 s`."""
    if seconds >= 5400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{round(seconds / 60)} min" if seconds >= 90 else f"{round(seconds)} s"


def results(runs: dict[str, Run]) -> str:
    """Where it led: a row a result, a column a run."""
    lines: dict[str, list[str]] = {"state": [run.state for run in runs.values()]}
    lines["steps"] = [f"{run.step:,} of {text_of(run.config['steps'])}" if run.config.get("steps") else f"{run.step:,}" for run in runs.values()]
    losses = [final_loss(run) for run in runs.values()]
    known = [loss for loss in losses if loss is not None]
    best = min(known) if len(known) > 1 and not unlike(runs) else None
    lines["loss at the end"] = [_marked(f"{loss:.3f}", loss == best) if loss is not None else "–" for loss in losses]
    for key, name in (*METRICS.items(), ("knn", "kNN while training"), ("knn_random", "kNN of the random encoder"), ("rank", "effective rank")):
        measured = [run.column(key)[1] for run in runs.values()]
        if any(measured):
            title = f"{name}, validation" if key in METRICS else name
            lines[title] = [_last(key, values) for values in measured]
    lines["images a second"] = [f"{statistics.median(values):,.0f}" if (values := run.column("images_per_second")[1]) else "–" for run in runs.values()]
    lines["waiting for data"] = [f"{statistics.fmean(values):.0%}" if (values := run.column("data_wait")[1]) else "–" for run in runs.values()]
    lines["time in steps"] = [duration(spent(run)) if spent(run) else "–" for run in runs.values()]
    lines["bad samples"] = [f"{len(run.quarantine):,}" for run in runs.values()]
    return page.table(["result", *keys(runs)], [[name, *values] for name, values in lines.items()], "Where it led", caption=False)


def _last(key: str, values: list[float]) -> str:
    """The newest value of a column in words."""
    if not values:
        return "–"
    return f"{values[-1]:.1f}" if key == "rank" else said("top1" if key.startswith("knn") else key, values[-1], unit=True)


def _marked(text: str, best: bool) -> str:
    return f"<b>{text}</b> lowest" if best else text


def unlike(runs: dict[str, Run]) -> list[str]:
    """The settings that make the losses of these runs tell different things."""
    named = [name for name in LOSS if len({text_of(run.config.get(name)) for run in runs.values()}) > 1]
    return [name for name in named if name != "data" or len({str(run.data.get("fingerprint")) for run in runs.values()}) > 1]


def findings(runs: dict[str, Run]) -> list[Finding]:
    """What may be said of the runs together, and what may not."""
    names, found = list(runs), list[Finding]()
    groups: dict[tuple[str, ...], list[tuple[int, Figure]]] = {}
    for place, run in enumerate(runs.values()):
        for row in newest(run.evaluations):
            figure = Figure.of(row)
            if not row.get("random") and figure is not None and here(row, run):
                groups.setdefault((str(row.get("protocol")), *comparable(row)), []).append((place, figure))
    for (protocol, *_), figures in groups.items():
        ranked = sorted(figures, key=lambda pair: -pair[1].value)
        if len({place for place, _ in ranked}) < 2:
            continue
        (first, top), (second, next_one) = ranked[0], next(pair for pair in ranked[1:] if pair[0] != ranked[0][0])
        text = f"{protocol}: {letter(first)} ({names[first]}) has {top.name} {top.text}, {letter(second)} ({names[second]}) {next_one.text}"
        if top.above(next_one):
            found.append(Finding("good", f"{text}; the intervals do not touch."))
        else:
            found.append(Finding("open", f"{text}; the intervals overlap, so a difference is not shown."))
    if len(groups) and not found:
        found.append(Finding("note", "No protocol was measured on the same pictures for two of these runs, so their figures are not compared."))
    if not groups:
        found.append(Finding("open", "None of these runs has been evaluated: which encoder is better cannot be told from losses. The commands are at the end."))
    if different := unlike(runs):
        found.append(Finding("note", f"The losses of these runs tell different things and are not compared: {', '.join(different)} differ{'s' if len(different) == 1 else ''}."))
    return found


def here(row: dict[str, Any], run: Run) -> bool:
    """Whether a row is about this run's own weights: a fine-tuning also writes its figure to the run that it began with."""
    return bool(own([row], run.supervised))


def evaluations(runs: dict[str, Run]) -> str:
    """A table a metric, a line a measurement, with its 95 % interval drawn on one common scale."""
    shown = {str(run.folder.resolve()) for run in runs.values()}
    rows = [
        (place, run, row, figure)
        for place, run in enumerate(runs.values())
        for row in newest(run.evaluations)
        if (figure := Figure.of(row)) is not None and (here(row, run) or str(row.get("run")) not in shown)  # it has its own line there
    ]
    tables = []
    for metric in dict.fromkeys(figure.metric for *_, figure in rows):
        mine = [item for item in rows if item[3].metric == metric]
        order = list(dict.fromkeys((str(row.get("protocol")), *comparable(row)) for _, _, row, _ in mine))
        mine.sort(key=lambda item: (order.index((str(item[2].get("protocol")), *comparable(item[2]))), -item[3].value))
        left, right = scale([figure for *_, figure in mine])
        unit = " %" if mine[0][3].text.endswith("%") else ""
        name = METRICS.get(metric, metric)
        head = ["protocol", "weights", name, "95 % interval", f"{left:g} to {right:g}{unit}", "train / test", "pixels", "pooling", "seed"]
        cells = [_cells(item[0], item[1], item[2], item[3], (left, right), len(runs) > 1) for item in mine]
        tables.append(page.table(head, cells, f"{name}: one line a measurement, its interval drawn from {left:g} to {right:g}{unit}", "line"))
    note = "<p class='under'>The interval says how sure the figure is for this many test pictures; another seed of the training moves it too.</p>"
    return "".join(tables) + note if tables else ""


def _cells(place: int, run: Run, row: dict[str, Any], figure: Figure, ends: tuple[float, float], several: bool) -> list[str]:
    """One line of the table of evaluations."""
    random = bool(row.get("random"))
    who = page.key(place, "from random weights" if random else "") if several else "from random weights" if random else "this run"
    if not here(row, run):
        who += " fine-tuned" if row.get("protocol") == "finetune" else " trained further"
    more = "".join(f", {row[name]} {name}" for name in ("shots", "share") if row.get(name))
    counts = [f"{row[name]:,}" if number(row.get(name)) else "?" for name in ("n_train", "n_val")]
    drawn = page.whisker(figure.value, figure.low, figure.high, *ends, place, random)
    rest = (" / ".join(counts), text_of(row.get("img_size") or ""), str(row.get("pooling", "")), text_of(row.get("seed", "")))
    over = str(row.get("interval_over") or "")
    between = figure.between + (f", over {escape(over)}" if over.endswith("groups") else "")
    return [escape(str(row.get("protocol", "")) + more), who, f"<b>{figure.text}</b>", between, drawn, *(escape(cell) for cell in rest)]


def scale(figures: Sequence[Figure]) -> tuple[float, float]:
    """Round ends of a scale on which all intervals lie."""
    lows = [figure.value if figure.low is None else figure.low for figure in figures]
    highs = [figure.value if figure.high is None else figure.high for figure in figures]
    step = 10.0 if max(highs) > 1.5 else 0.1
    return step * math.floor(min(lows) / step), step * math.ceil(max(highs) / step)
