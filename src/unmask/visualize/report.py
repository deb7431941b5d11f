"""report.html: what a run (or several, side by side) did, to be read by a person; one file that loads nothing from a network."""

from __future__ import annotations

import dataclasses
import shlex
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from unmask.errors import Refused
from unmask.methods import METHODS
from unmask.methods.statement import known
from unmask.run.folder import command, write_whole
from unmask.run.records import METRICS, Figure, Run, number, said
from unmask.visualize import beside, page
from unmask.visualize.beside import KEY, text_of
from unmask.visualize.curves import present, svg
from unmask.visualize.imagined import alone, side_by_side
from unmask.visualize.verdict import BASELINES, final_loss, newest, verdict

COLOURS = {"finished": "good", "failed": "bad", "stopped": "bad", "interrupted": "open", "running": "note"}
PAPER = ("batch_size", "base_lr", "min_lr", "warmup_epochs", "weight_decay", "weight_decay_end", "betas", "eps", "clip")  # of `Train`, what a paper says
BAD = 20  # bad samples named on the page


def write(runs: Sequence[Path | str], out: Path | str | None = None, pictures: Any = None) -> Path:
    """Write the page about `runs` (run folders, finished or not) to `out`; not given: into the run's folder, or here if there are several.

    `pictures`: DATA of which all runs imagine the same pictures; not given, and their own sheets show different ones: the first run's DATA.
    """
    if not runs:
        raise Refused("report needs at least one run folder")
    named = _named([Run.read(folder) for folder in runs])
    first = next(iter(named.values()))
    target = Path(out) if out is not None else (first.folder if len(named) == 1 else Path()) / "report.html"
    if target.is_dir():
        target = target / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, _one(first, pictures) if len(named) == 1 else _several(named, pictures))
    return target


def _one(run: Run, pictures: Any) -> str:
    runs = {run.name: run}
    body = [
        page.section("In words", page.findings(((finding.mark, finding.text) for finding in verdict(run)), first=True)),
        page.tiles(_tiles(run)),
        page.section("What it imagines", alone(run) if pictures is None else side_by_side(runs, pictures)),
        page.section("Curves", _curves(runs)),
        page.section("Evaluations", beside.evaluations(runs)),
        page.section("Warnings", _warnings(run)),
        page.section("Speed and data", page.pairs(_speed(run))),
        page.section("Settings", _settings(run)),
        page.section("Machine and versions", page.pairs((name, value, "") for name, value in beside.machine(run))),
        page.section("What to try next", page.commands(_next(run))),
    ]
    return page.page(f"{run.name}: unmask report", f"{escape(run.name)} {_state(run)}", _under(run), body, _foot())


def _several(runs: dict[str, Run], pictures: Any) -> str:
    words = []
    for place, (name, run) in enumerate(runs.items()):
        words.append(f"<h3>{page.key(place, name)} {_state(run)}</h3>{page.findings((finding.mark, finding.text) for finding in verdict(run))}")
    warnings = [f"<h3>{page.key(place, name)}</h3>{told}" for place, (name, run) in enumerate(runs.items()) if (told := _warnings(run))]
    body = [
        page.section("In words", page.findings(((finding.mark, finding.text) for finding in beside.findings(runs)), first=True)),
        page.section("What differs", beside.settings(runs)),
        page.section("Where it led", beside.results(runs)),
        page.section("Evaluations", beside.evaluations(runs)),
        page.section("Curves", f"<p>{''.join(beside.keys(runs))}</p>", _curves(runs)),
        page.section("What they imagine", side_by_side(runs, pictures)),
        page.section("Run by run", *words),
        page.section("Warnings", *warnings),
        page.section("Machine and versions", beside.machines(runs)),
        page.section("What to try next", page.commands(_compare(runs))),
    ]
    return page.page(f"{len(runs)} runs: unmask report", f"{len(runs)} runs side by side", ", ".join(runs), body, _foot())


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by a name that tells them apart: the folder's, with its parent where two are called alike; the same run twice is one."""
    apart = list({run.folder.resolve(): run for run in runs}.values())
    names = [run.name for run in apart]
    if len(set(names)) < len(names):
        names = ["/".join(run.folder.resolve().parts[-2:]) for run in apart]
    if len(set(names)) < len(names):
        names = [str(run.folder.resolve()) for run in apart]
    return dict(zip(names, apart))


def _state(run: Run) -> str:
    return f'<span class="state {COLOURS.get(run.state, "open")}">{escape(run.state)}</span>'


def _under(run: Run) -> str:
    config = run.config
    size = text_of(config["img_size"]) if config.get("img_size") else ""
    whom = config.get("model") or config.get("encoder")
    parts = [run.method, str(whom or ""), f"{size} px" if size else "", str(config.get("data") or "")]
    return " · ".join(part for part in parts if part)


def _foot() -> str:
    from unmask import __version__

    return f"Written by unmask {__version__}. This page is one file and loads nothing from a network. What each part means: docs/reading-a-report.md."


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """The few figures that one looks for first: (what it is, figure, what stands beside it)."""
    loss, steps = final_loss(run), run.config.get("steps")
    if loss is None:
        return []
    tiles = [("steps", f"{run.step:,}", f"of {steps:,}" if isinstance(steps, int) and steps >= run.step else "")]
    levels = {key: statistics.fmean(values) for key, _ in BASELINES if (values := run.column(key)[1])}
    tiles.append(("loss at the end", f"{loss:.3f}", f"patch mean {levels['patch_mean']:.3f}" if "patch_mean" in levels and not run.column("predicted")[1] else ""))
    for metric, name in METRICS.items():
        if values := run.column(metric)[1]:
            most = run.column("majority")[1]
            tiles.append((f"{name}, validation", said(metric, values[-1], unit=True), f"largest class {most[-1]:.1f} %" if most else ""))
    if values := run.column("knn")[1]:
        random = run.column("knn_random")[1]
        tiles.append(("kNN while training", f"{values[-1]:.1f} %", f"random encoder {random[-1]:.1f} %" if random else ""))
    own = [(str(row.get("protocol")), figure) for row in newest(run.evaluations) if not row.get("random") and (figure := Figure.of(row)) and beside.here(row, run)]
    if own:
        protocol, figure = max((pair for pair in own if pair[1].metric == own[-1][1].metric), key=lambda pair: pair[1].value)
        tiles.append((f"evaluate {protocol}, {figure.name}", figure.text, figure.between))
    if values := run.column("rank")[1]:
        tiles.append(("effective rank", f"{values[-1]:.1f}", f"highest {max(values):.1f}"))
    if values := run.column("images_per_second")[1]:
        wait = run.column("data_wait")[1]
        tiles.append(("images a second", f"{statistics.median(values):,.0f}", f"{statistics.fmean(wait):.0%} waiting for data" if wait else ""))
    return tiles


def _settings(run: Run) -> str:
    """The telling settings, each beside the paper's where that is another; the rest folded."""
    papers = _papers(run)

    def line(name: str) -> tuple[str, str, str]:
        value, paper = text_of(run.config[name]), papers.get(name)
        return name, value, f"the paper's: {paper}" if paper is not None and paper != value else ""

    shown = [name for name in KEY if run.config.get(name) is not None]
    rest = [name for name, value in run.config.items() if name not in KEY and value is not None and name != "format"]
    return page.pairs(line(name) for name in shown) + page.folded(f"{len(rest)} more settings", page.pairs(line(name) for name in rest)) if run.config else ""


def _papers(run: Run) -> dict[str, str]:
    """The paper's numbers by the names of the settings; of methods that come with unmask alone: a run from elsewhere runs no code here."""
    if ":" in run.method:
        return {}
    try:
        method: Any = known(run.method)
    except Refused:
        return {}
    fields = {name: field.default for field in dataclasses.fields(method) for name in ((f"method.{field.name}",) if run.method in METHODS else (field.name,))}
    values = {name: getattr(method.paper, name) for name in PAPER} | {f"views.{name}": value for name, value in vars(method.views).items()} | fields
    return {name: text_of(getattr(value, "first", value)) for name, value in values.items() if value is not None}


def _curves(runs: dict[str, Run]) -> str:
    charts = present(runs)
    drawn: dict[bool, list[str]] = {False: [], True: []}
    for chart, having in charts:
        drawn[chart.rest].append(f"<figure><h3>{escape(chart.title)}</h3><p>{escape(chart.says)}</p>{svg(chart, having, list(runs))}</figure>")
    if not drawn[False]:
        return "<p>No numbers have been written down yet.</p>"
    first, more = (f'<div class="charts">{"".join(parts)}</div>' if parts else "" for parts in drawn.values())
    return first + page.folded(f"{len(drawn[True])} more curve{'s' if len(drawn[True]) > 1 else ''}", more)


def _speed(run: Run) -> list[tuple[str, str, str]]:
    items = []
    if values := run.column("images_per_second")[1]:
        items.append(("images a second", f"median {statistics.median(values):,.1f}, lowest {min(values):,.1f}, highest {max(values):,.1f}", ""))
    if values := run.column("data_wait")[1]:
        items.append(("time waiting for data", f"mean {statistics.fmean(values):.1%}, highest {max(values):.1%}", ""))
    if seconds := beside.spent(run):
        items.append(("time in steps", beside.duration(seconds), "measuring and saving not counted"))
    if number(run.data.get("count")):
        items.append(("pictures", f"{run.data['count']:,}", ""))
    return [*items, ("bad samples replaced", f"{len(run.quarantine):,}", "")]


def _warnings(run: Run) -> str:
    told = list(dict.fromkeys(line.strip() for line in run.log if "warning" in line.lower()))[:10]
    lines = "".join(f"<p>{escape(line)}</p>" for line in told)
    rows = "".join(f"<li><code>{escape(str(row.get('path', '')))}</code><br>{escape(str(row.get('reason', '')))}</li>" for row in run.quarantine[:BAD])
    more = f"<p class='under'>and {len(run.quarantine) - BAD:,} more in quarantine.jsonl</p>" if len(run.quarantine) > BAD else ""
    return lines + (f"<p>Bad samples, replaced by others:</p><ul class='bare'>{rows}</ul>{more}" if rows else "")


def _next(run: Run) -> list[tuple[str, str]]:
    here, data = shlex.quote(str(run.folder)), _data(run) if run.column("knn")[1] or run.evaluations else "LABELLED"
    if run.state != "finished":
        items = [("Go on exactly where it stopped:", str(run.status.get("resume") or command(run.folder)))] if run.state != "running" else []
        return [*items, ("Write this page again:", f"unmask report {here}")]
    if run.column("codes_used")[1]:  # a tokenizer: it has no encoder
        return [("Predict its codes behind the mask:", f"unmask pretrain beit DATA --method.tokenizer {here} --out RUN"), ("Write this page again:", f"unmask report {here}")]
    export = shlex.quote(str(run.folder.with_name(run.name + "-timm")))
    looks = [] if run.supervised else [("Look at other pictures through it:", f"unmask reconstruct {here} PICTURES --out grid.png")]
    return [
        ("How useful are the features? The nearest neighbours of each picture, which need labels but no training:", f"unmask evaluate knn {here} {data}"),
        ("The same with untrained weights: the figure to beat.", f"unmask evaluate knn {here} {data} --random"),
        *looks,
        ("Take the encoder to timm:", f"unmask export {here} --to timm --out {export}"),
    ]


def _compare(runs: dict[str, Run]) -> list[tuple[str, str]]:
    encoders = " ".join(shlex.quote(str(run.folder)) for run in runs.values() if run.state == "finished")
    both = sum(run.state == "finished" for run in runs.values()) > 1
    items = [("One protocol for all of them, with the interval of each difference (needs labels):", f"unmask compare {_data(next(iter(runs.values())))} {encoders}")] if both else []
    on = [("Go on where it stopped:", str(run.status.get("resume") or command(run.folder))) for run in runs.values() if run.state in ("interrupted", "stopped", "failed")]
    return [*items, *on]


def _data(run: Run) -> str:
    """The pictures of a run, as a command takes them."""
    labels = run.config.get("labels")
    return shlex.quote(str(run.config.get("data") or "DATA")) + (f" --labels {shlex.quote(str(labels))}" if labels else "")
