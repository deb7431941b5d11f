"""Every run below a folder in one line: how far it is, how good, how large, how old, and the command that goes on with it. No torch here."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unmask.errors import Refused
from unmask.run.folder import CONFIG, command
from unmask.run.records import METRICS, Figure, Rows, changed, column, number, object_of, own, read, rows_of, said, settings_of, state_of, whole

BLOCK, MOST = 1 << 16, 1 << 23  # bytes of metrics.jsonl read at once from its end, and at most
INSIDE = {"checkpoints", "pictures"}  # folders of a run in which no other run is
GOES_ON = ("interrupted", "stopped", "failed")  # states from which `unmask resume` goes on


def listing(folder: Path | str) -> list[dict[str, Any]]:
    """One object a run below `folder` (or in it), the last one that gave a sign first; a damaged run has status "broken" and says why."""
    folder = Path(folder)
    if not folder.is_dir():
        raise Refused(f"no folder {folder}" if not folder.exists() else f"{folder} is a file: give a folder that holds runs")
    rows = []
    for path in places(folder):
        try:
            rows.append(row_of(path))
        except (OSError, ValueError, UnicodeDecodeError) as error:
            rows.append(broken(path, f"{type(error).__name__}: {error}"))
    return sorted(rows, key=lambda row: row["age"])


def places(folder: Path) -> Iterator[Path]:
    """The folders below `folder` that hold a run: settings, and a file that only a run writes; or such files without their settings."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        ours = {"status.json", "metrics.jsonl", "environment.json"} & set(files)
        if ours and (CONFIG in files or len(ours) > 1):
            yield Path(here)
            folders[:] = [name for name in folders if name not in INSIDE]


def row_of(path: Path) -> dict[str, Any]:
    """What one run's line says."""
    config, status = settings_of(path / CONFIG), object_of(path / "status.json")
    if not (path / CONFIG).is_file():
        return broken(path, f"there is no {CONFIG} in it")
    if "method" not in config:
        return broken(path, f"its {CONFIG} cannot be read")
    state = state_of(path, status)
    rows = tail(path / "metrics.jsonl")
    losses, steps = column(rows, "loss")[1], column(rows, "loss")[0]
    row = {
        "run": str(path),
        "status": state,
        "kind": str(config["method"]),
        "step": max(int(steps[-1]) if steps else 0, whole(status.get("step"))),
        "steps": whole(config.get("steps")) or None,
        "loss": losses[-1] if losses else None,
        "knn": last(rows, "knn"),
        "validation": next(({"metric": name, "value": value} for name in METRICS if (value := last(rows, name)) is not None), None),
        "best": best(own(read(path / "evaluations.jsonl"), "encoder" in config)),
        **weight(path),
        "why": str(status.get("why") or "") if state in ("failed", "interrupted") else "",
        "resume": command(path) if state in GOES_ON else None,
    }
    return row


def broken(path: Path, why: str) -> dict[str, Any]:
    """The line of a run that cannot be read."""
    return {"run": str(path), "status": "broken", "why": why, "resume": None, **weight(path)}


def weight(path: Path) -> dict[str, Any]:
    """Bytes on the disk, and when it last gave a sign: as a moment and as seconds from now."""
    size = 0
    for here, _, files in os.walk(path):
        for name in files:
            try:
                size += os.lstat(os.path.join(here, name)).st_size
            except OSError:
                continue  # renamed or deleted while we look
    moment = changed(path)
    stamp = datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="seconds")
    return {"bytes": size, "changed": stamp, "age": round(max(time.time() - moment, 0.0), 1)}


def tail(path: Path) -> Rows:
    """The last rows of metrics.jsonl: back to where the monitor measured once, or as far as `MOST` bytes reach."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            text, start = b"", end
            while start > 0 and end - start < MOST and b'"rank"' not in text and b'"val_loss"' not in text:
                start = max(start - BLOCK, 0)
                file.seek(start)
                text = file.read(min(BLOCK, end - start - len(text))) + text
    except OSError:
        return []
    lines = text.decode("utf-8", errors="replace").splitlines()
    return rows_of(lines if start == 0 else lines[1:])


def last(rows: Rows, key: str) -> float | None:
    """The newest value of a column."""
    values = column(rows, key)[1]
    return values[-1] if values else None


def best(evaluations: Rows) -> dict[str, Any] | None:
    """The best figure among these: of the protocols that train something where there are such, else of kNN; random weights do not count."""
    measured = [(row, figure) for row in evaluations if not row.get("random") and (figure := Figure.of(row)) is not None]
    trained = [pair for pair in measured if row_protocol(pair[0]) != "knn"] or measured
    if not trained:
        return None
    metric = trained[-1][1].metric  # figures of different metrics have no order: the newest one's counts
    row, figure = max((pair for pair in trained if pair[1].metric == metric), key=lambda pair: pair[1].value)
    interval = [figure.low, figure.high] if figure.low is not None else None
    return {"protocol": row_protocol(row), "metric": metric, "value": figure.value, "interval": interval}


def row_protocol(row: dict[str, Any]) -> str:
    return str(row.get("protocol") or "?")


def lines(rows: Sequence[dict[str, Any]], folder: Path | str) -> list[str]:
    """The table as text, the commands that go on below it."""
    if not rows:
        return [f"no runs below {folder}"]
    head = ["run", "status", "kind", "step", "loss", "kNN", "best probe", "size", "age"]
    table = [head, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    text = ["  ".join(cell.rjust(width) if i in (3, 4, 5, 7, 8) else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in table]
    for row in rows:
        if row["status"] in ("broken", "failed"):
            text.append(f"{row['run']} is broken: {row['why']}" if row["status"] == "broken" else f"{row['run']} failed: {row['why'] or 'see log.txt in it'}")
    on = [f"  {row['resume']}" for row in rows if row["resume"]]
    return [*text, *(["", "go on exactly where they stopped:", *on] if on else [])]


def cells(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    ages = [f"{size(row['bytes'])}", f"{age(row['age'])}"]
    if row["status"] == "broken":
        return [row["run"], "broken", "", "", "", "", "", *ages]
    steps = f"{row['step']:,}/{row['steps']:,}" if row["steps"] else f"{row['step']:,}"
    knn = f"{row['knn']:.1f} %" if row["knn"] is not None else ""
    if row["validation"] is not None and row["knn"] is None:
        metric, value = row["validation"]["metric"], row["validation"]["value"]
        knn = f"{METRICS[metric]} {said(metric, value, unit=True)}"
    probe = ""
    if row["best"] is not None:
        figure = Figure.of({row["best"]["metric"]: row["best"]["value"], **row["best"]})
        assert figure is not None
        between = f" ({figure.between})" if figure.between else ""
        probe = f"{row['best']['protocol']} {figure.text}{between}"
    loss = f"{row['loss']:.3f}" if number(row["loss"]) else ""
    return [row["run"], row["status"], row["kind"], steps, loss, knn, probe, *ages]


def size(count: int) -> str:
    """Bytes as a person reads them."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def age(seconds: float) -> str:
    """How long ago, in one unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
