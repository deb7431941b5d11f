"""report.html: what a run (or several, side by side) did, to be read by a person; one file that loads nothing from a network."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from unmask.errors import Refused
from unmask.run.folder import write_whole
from unmask.visualize import page
from unmask.visualize.curves import column, present, svg
from unmask.visualize.verdict import Run, final_loss, interval, step_of, verdict

KEY = (
    *("method", "data", "model", "init", "patch_size", "img_size", "in_chans"),
    *("method.mask_ratio", "method.masking", "method.norm_pix", "method.decoder_width", "method.decoder_depth", "method.decoder_heads"),
    *("epochs", "steps", "time", "batch_size", "accumulate", "lr", "base_lr", "weight_decay", "warmup_epochs"),
    *("seed", "precision", "accelerator", "devices"),
)
PICTURES = 4  # reconstructions shown of a run: the last one large, earlier ones folded
COLOURS = {"finished": "good", "failed": "bad", "interrupted": "open", "running": "note"}


def write(runs: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Write the page about `runs` (run folders, finished or not) to `out`; not given: into the run's folder, or here if there are several."""
    if not runs:
        raise Refused("report needs at least one run folder")
    read = [Run.read(folder) for folder in runs]
    target = Path(out) if out is not None else (read[0].folder if len(read) == 1 else Path()) / "report.html"
    if target.is_dir():
        target = target / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = _one(read[0]) if len(read) == 1 else _several(_named(read))
    write_whole(target, text)
    return target


def _one(run: Run) -> str:
    body = [
        page.section("In words", page.findings((finding.mark, finding.text) for finding in verdict(run))),
        page.tiles(_tiles(run)),
        page.section("What it imagines", _pictures(run)),
        page.section("Curves", _curves({run.name: run})),
        page.section("Evaluations", _evaluations({run.name: run})),
        page.section("Settings", page.pairs(_settings(run.config)), _rest(run.config)),
        page.section("Speed and data", page.pairs(_speed(run))),
        page.section("Warnings", _warnings(run)),
        page.section("What to try next", page.commands(_next(run))),
    ]
    state = f'{escape(run.name)} <span class="state {COLOURS.get(run.state, "open")}">{escape(run.state)}</span>'
    return page.page(f"{run.name}: unmask report", state, _under(run), body, _foot(run))


def _several(runs: dict[str, Run]) -> str:
    words = []
    for i, (name, run) in enumerate(runs.items()):
        said = page.findings((finding.mark, finding.text) for finding in verdict(run))
        words.append(f'<h3>{page.chip(i)}{escape(name)} <span class="state {COLOURS.get(run.state, "open")}">{escape(run.state)}</span></h3>{said}')
    names = "".join(f'<span style="margin-right:22px">{page.chip(i)}{escape(name)}</span>' for i, name in enumerate(runs))
    body = [
        page.section("What differs", _differences(runs)),
        page.section("Curves", f"<p>{names}</p>", _curves(runs)),
        page.section("Evaluations", _evaluations(runs)),
        page.section("In words", *words),
        page.section("What they imagine", *(_last_picture(name, run) for name, run in runs.items())),
        page.section("What to try next", page.commands(_compare(runs))),
    ]
    first = next(iter(runs.values()))
    return page.page(f"{len(runs)} runs: unmask report", f"{len(runs)} runs side by side", ", ".join(runs), body, _foot(first))


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by a name that tells them apart: the folder's, with its parent where two are called alike."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    return dict(zip(names, runs))


def _under(run: Run) -> str:
    config = run.config
    size = _text(config["img_size"]) if config.get("img_size") else ""
    parts = [str(config.get("method") or ""), str(config.get("model") or ""), f"{size} px" if size else "", str(config.get("data") or "")]
    return " · ".join(part for part in parts if part)


def _foot(run: Run) -> str:
    packages = run.environment.get("packages")
    versions = (packages if isinstance(packages, dict) else {}) | {"python": run.environment.get("python")}
    said = [f"{name} {versions[name]}" for name in ("unmask", "torch", "timm", "python") if isinstance(versions.get(name), str)]
    return "Written by unmask" + (f" · {', '.join(said)}" if said else "") + ". This page is one file and loads nothing from a network."


def _tiles(run: Run) -> list[tuple[str, str]]:
    tiles, loss, steps = [], final_loss(run), run.config.get("steps")
    if loss is None:
        return []
    whole = f" of {steps}" if isinstance(steps, int) and steps >= run.step else ""
    tiles.append((f"{run.step:,}", f"steps{whole}"))
    tiles.append((f"{loss:.3f}", "loss at the end"))
    for key, said, form in (("knn", "kNN accuracy", "{:.1f} %"), ("rank", "effective rank", "{:.1f}")):
        if values := column(run.rows, key)[1]:
            tiles.append((form.format(values[-1]), said))
    if values := column(run.rows, "images_per_second")[1]:
        tiles.append((f"{statistics.median(values):,.0f}", "pictures a second"))
    return tiles


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " x ".join(_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return "not set" if value is None else str(value)


def _settings(config: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, _text(config[name])) for name in KEY if config.get(name) is not None]


def _rest(config: dict[str, Any]) -> str:
    rest = [(name, _text(value)) for name, value in config.items() if name not in KEY and value is not None]
    return f"<details><summary>{len(rest)} more settings</summary>{page.pairs(rest)}</details>" if rest else ""


def _curves(runs: dict[str, Run]) -> str:
    rows = {name: run.rows for name, run in runs.items()}
    charts = present(rows)
    return f'<div class="charts">{"".join(svg(chart, rows) for chart in charts)}</div>' if charts else "<p>No numbers have been written down yet.</p>"


def _when(path: Path) -> str:
    return f"step {step_of(path):,}"


def _pictures(run: Run) -> str:
    if not run.pictures:
        return ""
    alt = "Rows of original, masked, predicted and error pictures at {}"
    *earlier, last = run.pictures
    parts = [page.picture(last, alt.format(_when(last)), f"{_when(last)}: original, masked, prediction pasted into the visible, error")]
    few = min(PICTURES - 1, len(earlier))
    keep = [earlier[i * (len(earlier) - 1) // max(few - 1, 1)] for i in range(few)]  # evenly, the first and the one before the last among them
    before = "".join(page.picture(path, alt.format(_when(path)), _when(path)) for path in keep)
    if before:
        parts.append(f"<details><summary>Earlier in the run</summary>{before}</details>")
    return "".join(parts)


def _last_picture(name: str, run: Run) -> str:
    if not run.pictures:
        return ""
    last = run.pictures[-1]
    return page.picture(last, f"Reconstructions of {name} at {_when(last)}", f"{name}, {_when(last)}")


def _evaluations(runs: dict[str, Run]) -> str:
    """One line a measurement, with its 95 % interval drawn on one common scale."""
    rows = [(name, row) for name, run in runs.items() for row in run.evaluations if isinstance(row.get("top1"), int | float)]
    if not rows:
        return ""
    bounds = [interval(row) for _, row in rows]
    left, right = 10 * math.floor(min(low for low, _ in bounds) / 10), 10 * math.ceil(max(high for _, high in bounds) / 10)
    cells = []
    for (name, row), (low, high) in zip(rows, bounds):
        who = "random encoder" if row.get("random") else name if len(runs) > 1 else str(row.get("name") or "this run")
        line = [row.get("protocol", ""), who, f"{row['top1']:.1f} %", f"{low:.1f} to {high:.1f}"]
        rest = [
            row.get("pooling", ""),
            _text(row.get("img_size") or ""),
            f"{row.get('n_train', '?')} / {row.get('n_val', '?')}",
            _text(row.get("seed", "")),
        ]
        cells.append(
            [*(escape(str(cell)) for cell in line), page.whisker(float(row["top1"]), low, high, left, right), *(escape(str(cell)) for cell in rest)]
        )
    head = ["protocol", "encoder", "top-1", "95 % interval", f"{left} to {right} %", "pooling", "pixels", "train / test", "seed"]
    note = "<p class='under'>The interval says how sure the figure is for this many test pictures; another seed of the training moves it too.</p>"
    return page.table(head, cells) + note


def _speed(run: Run) -> list[tuple[str, str]]:
    items = []
    if values := column(run.rows, "images_per_second")[1]:
        items.append(("pictures a second", f"median {statistics.median(values):,.1f}, lowest {min(values):,.1f}, highest {max(values):,.1f}"))
    if values := column(run.rows, "data_wait")[1]:
        items.append(("time waiting for data", f"mean {statistics.fmean(values):.1%}, highest {max(values):.1%}"))
    machine = run.environment.get("machine")
    for name, value in (machine if isinstance(machine, dict) else {}).items():
        if isinstance(value, str | int | float) and value != "":
            items.append((name, str(value)))
    items.append(("bad samples replaced", str(len(run.quarantine))))
    return items


def _warnings(run: Run) -> str:
    said = list(dict.fromkeys(line.strip() for line in run.log if "warning" in line.lower()))[:10]
    lines = "".join(f"<p>{escape(line)}</p>" for line in said)
    rows = [[f"<code>{escape(str(row.get('path', '')))}</code>", escape(str(row.get("reason", "")))] for row in run.quarantine[:20]]
    more = f"<p class='under'>and {len(run.quarantine) - 20} more in quarantine.jsonl</p>" if len(run.quarantine) > 20 else ""
    return lines + page.table(["bad sample, replaced by another", "reason"], rows) + more


def _next(run: Run) -> list[tuple[str, str]]:
    here, data = shlex.quote(str(run.folder)), shlex.quote(str(run.config.get("data") or "DATA"))
    if run.state != "finished":
        items = [("Go on exactly where it stopped:", str(run.status.get("resume") or f"unmask resume {here}"))]
        return [*items, ("Write this page again:", f"unmask report {here}")]
    export = shlex.quote(str(run.folder.with_name(run.name + "-timm")))
    return [
        (
            "How useful are the features? The nearest neighbours of each picture, which need labels but no training:",
            f"unmask evaluate knn {here} {data}",
        ),
        ("The same with untrained weights: the figure to beat.", f"unmask evaluate knn {here} {data} --random"),
        ("Look at other pictures through it:", f"unmask reconstruct {here} PICTURES --out grid.png"),
        ("Take the encoder to timm:", f"unmask export {here} --to timm --out {export}"),
    ]


def _compare(runs: dict[str, Run]) -> list[tuple[str, str]]:
    data = shlex.quote(str(next(iter(runs.values())).config.get("data") or "DATA"))
    lines = [f"unmask evaluate knn {shlex.quote(str(run.folder))} {data}" for run in runs.values()]
    return [("One protocol for all of them (needs labels):", line) if i == 0 else ("", line) for i, line in enumerate(lines)]


def _differences(runs: dict[str, Run]) -> str:
    names = list(dict.fromkeys(key for run in runs.values() for key in run.config))
    rows = []
    for name in names:
        values = [_text(run.config.get(name)) for run in runs.values()]
        if len(set(values)) > 1 and name != "out":
            rows.append([f"<code>{escape(name)}</code>", *(escape(value) for value in values)])
    results = [["steps done", *(f"{run.step:,}" for run in runs.values())]]
    results.append(
        ["<b>loss at the end</b>", *(f"<b>{loss:.3f}</b>" if (loss := final_loss(run)) is not None else "none yet" for run in runs.values())]
    )
    for key, said in (("knn", "kNN, %"), ("rank", "effective rank"), ("images_per_second", "pictures a second")):
        measured = [column(run.rows, key)[1] for run in runs.values()]
        if any(measured):
            results.append([said, *(f"{values[-1]:,.1f}" if values else "" for values in measured)])
    targets = {str(run.config.get("method")) + str(run.config.get("method.norm_pix")) for run in runs.values()}
    note = "<p class='under'>Losses of different methods or targets cannot be compared with each other.</p>" if len(targets) > 1 else ""
    settings = page.table(["setting", *runs], rows) if rows else "<p>The settings are the same.</p>"
    return f"{settings}<h3>Where it led</h3>{page.table(['result', *runs], results)}{note}"
