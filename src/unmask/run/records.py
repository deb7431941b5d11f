"""A run folder, read: its settings, its numbers, its figures, and whether somebody trains in it. No torch here; nothing is written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unmask.errors import Refused
from unmask.run.folder import CONFIG, held

Rows = list[dict[str, Any]]
SILENT = 900.0  # seconds without a sign after which a run is taken for stopped, where the disk knows no locks
SIGNS = ("metrics.jsonl", "log.txt", "status.json", "pictures", "checkpoints")  # what a run that lives touches now and then
PART = "loss."  # before the name of a part of the loss, where it has several
METRICS = {"top1": "top-1", "auroc": "AUROC", "r2": "R²", "mean_recall": "mean recall"}  # of evaluations and validations, in the words of a page


@dataclass(frozen=True)
class Run:
    """A run folder, read; whatever is missing is empty."""

    folder: Path
    name: str
    config: dict[str, Any]
    status: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    rows: Rows
    evaluations: Rows
    quarantine: Rows
    pictures: list[Path]
    log: list[str]
    state: str  # finished, failed, interrupted, running, stopped (it says running, and nobody trains) or unknown

    @classmethod
    def read(cls, folder: Path | str) -> Run:
        """The run in `folder`, finished or not; a folder that is no run is refused."""
        folder = Path(folder)
        if not folder.is_dir():
            raise Refused(f"no run folder {folder}")
        if not (folder / CONFIG).is_file() and not (folder / "metrics.jsonl").is_file():
            raise Refused(f"{folder} is no run: it holds neither {CONFIG} nor metrics.jsonl")
        log, status = folder / "log.txt", object_of(folder / "status.json")
        return cls(
            folder,
            folder.resolve().name,
            settings_of(folder / CONFIG),
            status,
            object_of(folder / "environment.json"),
            object_of(folder / "data.json"),
            read(folder / "metrics.jsonl"),
            read(folder / "evaluations.jsonl"),
            read(folder / "quarantine.jsonl"),
            sorted((folder / "pictures").glob("step-*.png"), key=lambda path: (step_of(path), path.name)),
            log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else [],
            state_of(folder, status),
        )

    @cached_property
    def columns(self) -> dict[str, tuple[list[float], list[float]]]:
        """Steps and values of every column, as `column` gives them: read once, for a long run has hundreds of thousands of rows."""
        found: dict[str, tuple[list[float], list[float]]] = {}
        for row in sorted((row for row in self.rows if number(row.get("step"))), key=lambda row: row["step"]):
            step = float(row["step"])
            for key, value in row.items():
                if key != "step" and number(value):
                    steps, values = found.setdefault(key, ([], []))
                    steps.append(step)
                    values.append(float(value))
        return found

    def column(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one column; empty where there is none."""
        return self.columns.get(key, ([], []))

    @property
    def step(self) -> int:
        """The last step that was written down."""
        steps, _ = self.column("loss")
        return int(steps[-1]) if steps else whole(self.status.get("step"))

    @property
    def method(self) -> str:
        return str(self.config.get("method") or "")

    @property
    def supervised(self) -> bool:
        """Whether labels taught it: a fine-tuning names the encoder that it began with."""
        return "encoder" in self.config


def settings_of(path: Path) -> dict[str, Any]:
    """The lines of a config.yaml; empty where the file is absent or no YAML."""
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return settings if isinstance(settings, dict) else {}


def object_of(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where the file is absent or cut."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read(path: Path | str) -> Rows:
    """The rows of a file of JSON lines; a file that is absent has none, a line cut by a crash is left out."""
    path = Path(path)
    return rows_of(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.is_file() else []


def rows_of(lines: Iterable[str]) -> Rows:
    """The JSON objects among `lines`."""
    rows: Rows = []
    for line in lines:
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
    good = sorted((float(s), float(v)) for s, v in pairs if s is not None and v is not None and number(s) and number(v))
    return [step for step, _ in good], [value for _, value in good]


def number(value: Any) -> bool:
    """Whether this is a finite number, and neither True nor False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(value: Any) -> int:
    """A whole number from what a file says; 0 where it says none."""
    return int(value) if number(value) else 0


def step_of(path: Path) -> int:
    """The step at which a picture was drawn, from its name."""
    digits = "".join(letter for letter in path.stem if letter.isdigit())
    return int(digits) if digits else 0


def state_of(folder: Path, status: dict[str, Any]) -> str:
    """What status.json says; a run that says "running" while no process holds its folder was killed: "stopped"."""
    said = str(status.get("status") or ("running" if (folder / CONFIG).is_file() else "unknown"))
    if said != "running":
        return said
    alive = held(folder)
    if alive is None:
        alive = time.time() - changed(folder) < SILENT
    return "running" if alive else "stopped"


def changed(folder: Path) -> float:
    """When the run last gave a sign, in seconds since 1970."""
    times = []
    for name in (*SIGNS, CONFIG):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


@dataclass(frozen=True)
class Figure:
    """The main figure of an evaluation, with its 95 % interval where the row has one."""

    metric: str
    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Figure | None:
        """The figure of a row of evaluations.jsonl; None where it has none."""
        metric = str(row.get("metric") or next((name for name in METRICS if name in row), "top1"))
        value, bounds = row.get(metric), row.get("interval")
        if not number(value):
            return None
        if isinstance(bounds, list | tuple) and len(bounds) == 2 and all(number(bound) for bound in bounds):
            return cls(metric, float(value), float(bounds[0]), float(bounds[1]))  # type: ignore[arg-type]
        return cls(metric, float(value), None, None)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        return METRICS.get(self.metric, self.metric)

    @property
    def text(self) -> str:
        return said(self.metric, self.value, unit=True)

    @property
    def between(self) -> str:
        """The interval in words; empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{said(self.metric, self.low)} to {said(self.metric, self.high)}"

    def above(self, other: Figure) -> bool | None:
        """Whether this is shown to be more than `other`: True, False (shown to be less), None (the intervals overlap, or are not known)."""
        if self.low is None or self.high is None or other.low is None or other.high is None or self.metric != other.metric:
            return None
        return True if self.low > other.high else False if self.high < other.low else None


COLLAPSED, FALL = 1.5, 0.1  # effective rank, alone and beside its highest, under which pictures look alike to the encoder
FURTHER = ("finetune",)  # protocols that move the encoder's weights, and write their figure to the run that they began with too (lowshot: with --finetune)


def own(evaluations: Rows, supervised: bool) -> Rows:
    """The rows about a run's own weights, not about what was trained further from them."""
    return [row for row in evaluations if supervised or (row.get("protocol") not in FURTHER and row.get("classifier") != "fine-tuned")]


def said(metric: str, value: float, unit: bool = False) -> str:
    """A figure as a person reads it: percentages with one place, the others with three."""
    if metric != "r2" and (metric.startswith("top") or abs(value) > 1):
        return f"{value:.1f}" + (" %" if unit else "")
    return f"{value:.3f}"
