"""What a run folder says, in plain sentences: did it learn, can it be told, what is wrong."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.errors import Refused
from unmask.visualize.curves import Rows, column, read

Mark = Literal["good", "bad", "open", "note"]


@dataclass(frozen=True)
class Finding:
    """One sentence and what it means for the run: good, bad, open (cannot be told yet) or a note."""

    mark: Mark
    text: str


@dataclass(frozen=True)
class Run:
    """A run folder, read; whatever is missing is empty."""

    folder: Path
    name: str
    config: dict[str, Any]
    status: dict[str, Any]
    environment: dict[str, Any]
    rows: Rows
    evaluations: Rows
    quarantine: Rows
    pictures: list[Path]
    log: list[str]

    @classmethod
    def read(cls, folder: Path | str) -> Run:
        """The run in `folder`, finished or not; a folder that is no run is refused."""
        import yaml

        folder = Path(folder)
        if not folder.is_dir():
            raise Refused(f"no run folder {folder}")
        config = folder / "config.yaml"
        if not config.is_file() and not (folder / "metrics.jsonl").is_file():
            raise Refused(f"{folder} is no run: it holds neither config.yaml nor metrics.jsonl")
        try:
            settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
        except (yaml.YAMLError, UnicodeDecodeError):
            settings = {}
        log = folder / "log.txt"
        return cls(
            folder,
            folder.resolve().name,
            settings if isinstance(settings, dict) else {},
            _object(folder / "status.json"),
            _object(folder / "environment.json"),
            read(folder / "metrics.jsonl"),
            read(folder / "evaluations.jsonl"),
            read(folder / "quarantine.jsonl"),
            sorted((folder / "pictures").glob("step-*.png"), key=lambda path: (step_of(path), path.name)),
            log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else [],
        )

    @property
    def step(self) -> int:
        """The last step that was written down."""
        steps, _ = column(self.rows, "loss")
        return int(steps[-1]) if steps else int(self.status.get("step") or 0)

    @property
    def state(self) -> str:
        return str(self.status.get("status", "unknown"))


def step_of(path: Path) -> int:
    """The step at which a picture was drawn, from its name."""
    digits = "".join(letter for letter in path.stem if letter.isdigit())
    return int(digits) if digits else 0


def _object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where the file is absent or cut."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def final_loss(run: Run) -> float | None:
    """The mean loss of the last twentieth of the steps (at least ten, so that one batch does not decide)."""
    _, losses = column(run.rows, "loss")
    return statistics.fmean(losses[-max(10, len(losses) // 20) :]) if losses else None


def verdict(run: Run) -> list[Finding]:
    """The findings about one run, the most telling first."""
    return [*_state(run), *_loss(run), *_knn(run), *_evaluated(run), *_rank(run), *_speed(run), *_bad(run)]


def _state(run: Run) -> list[Finding]:
    why = str(run.status.get("why") or "").strip().rstrip(".")
    if run.state == "finished":
        return []
    if run.state == "failed":
        return [Finding("bad", f"The run failed at step {run.step}" + (f": {why}." if why else "."))]
    if run.state == "interrupted":
        return [Finding("open", f"The run was interrupted at step {run.step}" + (f" ({why})" if why else "") + "; it can be resumed exactly there.")]
    return [Finding("open", f"The run is not finished: this page shows it up to step {run.step}.")]


def _loss(run: Run) -> list[Finding]:
    loss = final_loss(run)
    if loss is None:
        return [Finding("open", "No step has been written down yet, so nothing can be said about learning.")]
    levels = [(said, statistics.fmean(values)) for key, said in BASELINES if (values := column(run.rows, key)[1])]
    if not levels:
        return [Finding("open", f"The loss is {loss:.3f}. There are no baselines beside it, so it cannot be told whether that is good.")]
    beaten = [f"{said} ({level:.3f})" for said, level in levels if loss < level]
    ahead = [f"{said} ({level:.3f})" for said, level in levels if loss >= level]
    if not ahead:
        both = "both baselines" if len(levels) == 2 else "the baseline"
        findings = [
            Finding("good", f"The loss is {loss:.3f}, lower than {both}: {' and '.join(beaten)}. It has learned something about what is hidden.")
        ]
    elif beaten:
        findings = [Finding("bad", f"The loss is {loss:.3f}: lower than {beaten[0]}, but not lower than {ahead[0]}, which needs no network.")]
    else:
        findings = [
            Finding("bad", f"The loss is {loss:.3f}, not lower than {' or '.join(ahead)}. The network has not learned to predict what is hidden yet.")
        ]
    _, losses = column(run.rows, "loss")
    fifth = len(losses) // 5
    if fifth >= 20:
        before, after = statistics.fmean(losses[-2 * fifth : -fifth]), statistics.fmean(losses[-fifth:])
        noise = (statistics.variance(losses[-2 * fifth : -fifth]) / fifth + statistics.variance(losses[-fifth:]) / fifth) ** 0.5
        if before - after > max(3 * noise, 0.005 * abs(before)):
            findings.append(
                Finding(
                    "note", f"The loss still fell by {1 - after / before:.1%} over the last fifth of the steps: a longer run would probably go lower."
                )
            )
    return findings


def _knn(run: Run) -> list[Finding]:
    steps, values = column(run.rows, "knn")
    if not values:
        return []
    random = column(run.rows, "knn_random")[1]
    start, said = (random[-1], "the random encoder") if random else (values[0], f"the first measurement (step {steps[0]:.0f})")
    if not random and len(values) == 1:
        return [Finding("open", f"kNN while training: {values[0]:.1f} %, measured once; there is nothing to compare it with.")]
    tested = column(run.rows, "knn_n")[1]
    half = 1.96 * 100 * (max(start * (100 - start), 1.0) / 1e4 / tested[-1] * 2) ** 0.5 if tested else None  # of a difference of two shares
    change = f"kNN while training: {values[-1]:.1f} %, {said}: {start:.1f} %"
    if half is not None and abs(values[-1] - start) <= half:
        return [Finding("open", f"{change}. With {tested[-1]:.0f} test pictures the difference is within chance (about ±{half:.1f}).")]
    if values[-1] > start:
        return [Finding("good", f"{change}. The features have become more useful.")]
    return [Finding("bad", f"{change}. The features are not more useful than before; early in a run this is common.")]


def _evaluated(run: Run) -> list[Finding]:
    """Each protocol's trained figure beside its random one, where both were measured."""
    findings = []
    for protocol in dict.fromkeys(str(row.get("protocol")) for row in run.evaluations):
        rows = [row for row in run.evaluations if str(row.get("protocol")) == protocol and isinstance(row.get("top1"), int | float)]
        trained, random = ([row for row in rows if bool(row.get("random")) is wanted] for wanted in (False, True))
        if not trained:
            continue
        random = [row for row in random if all(row.get(key) == trained[-1].get(key) for key in SAME)]  # other pictures say nothing about these
        most = trained[-1].get("majority")
        if isinstance(most, int | float) and interval(trained[-1])[0] <= most:
            findings.append(
                Finding(
                    "bad", f"evaluate {protocol}: {trained[-1]['top1']:.1f} %, not shown to beat always answering the largest class ({most:.1f} %)."
                )
            )
        if not random:
            findings.append(
                Finding("note", f"evaluate {protocol}: {trained[-1]['top1']:.1f} %. Measure the random encoder beside it (--random) before judging.")
            )
            continue
        ours, theirs = trained[-1], random[-1]
        said = f"evaluate {protocol}: {ours['top1']:.1f} % against {theirs['top1']:.1f} % of the random encoder"
        (low, high), (lowest, highest) = interval(ours), interval(theirs)
        if low > highest:
            findings.append(Finding("good", f"{said}; the intervals do not touch."))
        elif high < lowest:
            findings.append(Finding("bad", f"{said}: worse than random."))
        else:
            findings.append(Finding("open", f"{said}; the intervals overlap, so a difference is not shown."))
    return findings


def interval(row: dict[str, Any]) -> tuple[float, float]:
    """The 95 % interval of an evaluation row, in percent: the one it carries, else Wilson's from its count of test pictures."""
    from unmask.evaluation.metrics import wilson

    kept = row.get("interval")
    if isinstance(kept, list | tuple) and len(kept) == 2:
        return float(kept[0]), float(kept[1])
    trials = int(row.get("n_val") or 0)
    return wilson(round(float(row.get("top1") or 0) / 100 * trials), trials)


def _rank(run: Run) -> list[Finding]:
    steps, ranks = column(run.rows, "rank")
    if not ranks:
        return []
    if ranks[-1] < 2 or (len(ranks) > 2 and ranks[-1] < 0.1 * max(ranks)):
        return [Finding("bad", f"The effective rank of the features fell to {ranks[-1]:.1f} (highest {max(ranks):.1f}): they are collapsing.")]
    return [Finding("note", f"Effective rank of the features: {ranks[-1]:.1f} at step {steps[-1]:.0f}; no collapse.")]


def _speed(run: Run) -> list[Finding]:
    wait = column(run.rows, "data_wait")[1]
    if wait and (share := statistics.fmean(wait)) > 0.2:
        return [Finding("bad", f"The run waited for data {share:.0%} of the time: more --workers, smaller files or a faster disk would speed it up.")]
    return []


def _bad(run: Run) -> list[Finding]:
    findings = []
    if run.quarantine:
        many = len(run.quarantine)
        findings.append(Finding("note", f"{many} bad sample{'s were' if many > 1 else ' was'} replaced and listed in quarantine.jsonl."))
    skipped = sum(1 for row in run.rows if row.get("skipped"))
    if skipped:
        findings.append(
            Finding(
                "bad", f"{skipped} step{'s' if skipped > 1 else ''} had a loss that was not finite and {'were' if skipped > 1 else 'was'} skipped."
            )
        )
    return findings


SAME = ("n_train", "n_val", "val", "img_size", "classes")  # what must agree before two measurements are compared
BASELINES = (("patch_mean", "filling each hidden patch with its own mean"), ("copy_nearest", "copying the nearest visible patch"))
