"""The run folder: what a run leaves, readable while it is written. No torch at the top: a taken folder is refused at once."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from unmask.errors import Refused
from unmask.settings import FORMAT

CONFIG = "config.yaml"
BEFORE = {"environment.json", "status.json", "metrics.jsonl", "quarantine.jsonl", "log.txt", "data.json", ".lock"}  # files of ours that hold no work
LOCK = ".lock"  # held by the process that trains, as long as it lives
HELD: set[str] = set()  # the lock files that this process holds: to open and close one of them again would free it (POSIX)
PACKAGES = ("unmask", "torch", "torchvision", "timm", "lightning-fabric", "safetensors", "numpy", "pillow")

Status = Literal["running", "interrupted", "finished", "failed"]


def leads() -> bool:
    """Whether this is the only process, or the first of those that a launcher (torchrun, SLURM) has started."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def refuse_taken(path: str | Path) -> None:
    """Refuse an `--out` that holds anything; a folder without config.yaml that holds only our own files, and no work, counts as empty.

    Processes of a launcher that are not the first one refuse nothing: the first may have made the folder already.
    """
    path = Path(path)
    if not leads():
        return
    if path.exists() and not path.is_dir():
        raise Refused(f"--out {path} is a file: give the name of a folder to make")
    if (path / CONFIG).exists():
        raise Refused(f"--out {path} already holds a run: go on with it by `{command(path)}`, or choose another folder")
    if path.is_dir():
        others = sorted(entry.name for entry in path.iterdir() if not ours(entry))
        if others:
            raise Refused(f"--out {path} is not empty (it holds {others[0]}): choose another folder")


def ours(entry: Path) -> bool:
    """Whether this may be left by a start that failed: a file of a run without work in it, or an empty folder of a run."""
    if entry.is_dir():
        return entry.name in ("checkpoints", "pictures") and not any(entry.iterdir())
    return entry.name in BEFORE or entry.name.startswith((f".{CONFIG}.", "events.out.tfevents.")) or any(entry.name.startswith(f".{name}.") for name in BEFORE)


def command(path: Path) -> str:
    """The command that goes on with a run."""
    return f"unmask resume {shlex.quote(str(path))}"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part, also after a power cut."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(hidden, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def held(path: Path) -> bool | None:
    """Whether a process trains in this folder; None where that cannot be told: no lock file, or a disk that knows no locks."""
    lock = path / LOCK
    if os.path.realpath(lock) in HELD:
        return True
    try:
        import fcntl

        with open(lock) as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True if lock.is_file() and os.access(lock, os.R_OK) else None
    except (ImportError, OSError):
        return None
    return False


class RunFolder:
    """One run's folder. `create` makes it, `open` finds it again; the process of rank 0 writes, the others only read."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._metrics: Any = None
        self._flushed = 0.0
        self._lock: Any = None
        self._held = ""  # the lock file's place, while it is held
        self.reached = 0  # the last step of which this process wrote down the loss

    @classmethod
    def create(cls, path: str | Path, config: str) -> RunFolder:
        """Make the folder; `config` is the text of config.yaml, the first file written."""
        refuse_taken(path)
        folder = cls(path)
        folder.path.mkdir(parents=True, exist_ok=True)
        for entry in folder.path.iterdir():  # left by a start that failed before it had a config
            if entry.is_file():
                entry.unlink()
        write_whole(folder.path / CONFIG, config)
        folder.pictures.mkdir(exist_ok=True)
        folder.checkpoints.mkdir(exist_ok=True)
        folder.environment()
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of a run that exists."""
        if not (Path(path) / CONFIG).is_file():
            raise Refused(f"{path} is no run folder: there is no {CONFIG} in it")
        return cls(path)

    def discard(self) -> None:
        """Take away what a start that failed before its first step has left, so that the next try finds no obstacle.

        Where there is work (a checkpoint, a step in metrics.jsonl) nothing is touched. The list of bad samples stays: it says why.
        """
        self.close()
        if any(self.checkpoints.glob("step-*")) or ((self.path / "metrics.jsonl").is_file() and '"loss"' in (self.path / "metrics.jsonl").read_text()):
            return
        for entry in [*self.pictures.glob("*"), *self.checkpoints.glob("*"), *self.path.glob("*"), *self.path.glob(".*")]:
            if entry.is_file() and entry.name not in (CONFIG, self.quarantine.name):
                entry.unlink()
        (self.path / CONFIG).unlink(missing_ok=True)
        for empty in (self.pictures, self.checkpoints, self.path):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()

    def take(self, patience: float = 10.0) -> None:
        """Hold the folder for this process as long as it lives; Refused where another one trains in it.

        The system frees it at the process's end, however it ends. Where the disk knows no locks nothing is held.
        """
        try:
            import fcntl
        except ImportError:
            return
        self._lock = self._lock or open(self.path / LOCK, "w")  # noqa: SIM115
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._held = os.path.realpath(self.path / LOCK)
                HELD.add(self._held)
                return
            except (BlockingIOError, PermissionError):
                if time.monotonic() > end:
                    raise Refused(f"{self.path} is being trained by another process: stop that one first") from None
                time.sleep(0.1)
            except OSError:
                return

    def leave(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            HELD.discard(self._held)
            self._lock.close()
            self._lock = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def resume(self) -> str:
        """The command that goes on with this run."""
        return command(self.path.absolute())

    def status(self, status: Status, step: int = 0, why: str = "", **more: Any) -> None:
        """Write status.json: what a launcher hides is here."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = {"format": FORMAT, "status": status, "step": step, "why": why, "resume": self.resume, "time": now} | more
        write_whole(self.path / "status.json", json.dumps(row, indent=1, ensure_ascii=False))

    def read_status(self) -> dict[str, Any]:
        """What status.json says; empty when there is none, or none that can be read."""
        try:
            row = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return row if isinstance(row, dict) else {}

    def environment(self, **more: Any) -> None:
        """Write environment.json: versions and machine; `more`: device, precision …"""
        from importlib.metadata import PackageNotFoundError, version

        packages = {}
        for package in PACKAGES:
            try:
                packages[package] = version(package)
            except PackageNotFoundError:
                continue
        python = sys.version.split()[0]
        machine = {"platform": platform.platform(), "processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        row = {"format": FORMAT, "python": python, "packages": packages, "machine": machine, "command": sys.argv} | more
        write_whole(self.path / "environment.json", json.dumps(row, indent=1, ensure_ascii=False))

    def metric(self, row: Mapping[str, Any]) -> None:
        """Append one object to metrics.jsonl; flushed at least every second. Rows of a step carry `step` and `loss`, others not both."""
        if self._metrics is None:
            self._metrics = open(self.path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._metrics.write(json.dumps(row) + "\n")
        self.reached = max(self.reached, row["step"]) if "loss" in row else self.reached
        if time.monotonic() - self._flushed > 1:
            self.flush()

    def flush(self) -> None:
        """Hand every metric to the operating system, so that it outlives this process."""
        if self._metrics is not None:
            self._metrics.flush()
        self._flushed = time.monotonic()

    def cut_metrics(self, step: int) -> None:
        """Drop what was written after `step`, and a line that a kill cut short: the resumed run writes it again."""
        self.close()
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and row.get("step", 0) <= step:
                kept.append(line + "\n")
        write_whole(path, "".join(kept))

    def close(self) -> None:
        """Flush and close metrics.jsonl; the next metric opens it again."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Append one evaluation to evaluations.jsonl."""
        with open(self.path / "evaluations.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def log(self, text: str) -> None:
        """Append a line to log.txt."""
        with open(self.path / "log.txt", "a", encoding="utf-8") as file:
            file.write(text.rstrip("\n") + "\n")
