"""A sample that cannot be read is set aside, named with its reason once, and never stops a run by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path


class BadSample(Exception):
    """One sample that cannot be used; the text is the reason, for a person."""


class NeedsExtra(BadSample):
    """The sample is sound, but reading it needs an extra that is not installed; the text names it."""


class Quarantine:
    """The file `quarantine.jsonl`: one object {path, reason} a line, each path once, readable text in UTF-8.

    Without a path it only counts. An existing file is continued, so that a resumed run names nothing twice.
    Processes that share the file see each other's lines: it is read on whenever it has grown.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.path = Path(path) if path is not None else None
        self._known: set[str] = set()
        self._seen = 0  # bytes of the file that are read
        self._catch_up()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, bad: Iterable[tuple[str, str]]) -> int:
        """Write the (path, reason) pairs that are new; how many were."""
        fresh = {path: reason for path, reason in bad if path not in self._known}
        if fresh:
            self._catch_up()
            fresh = {path: reason for path, reason in fresh.items() if path not in self._known}
        if fresh and self.path is not None:
            lines = "".join(json.dumps({"path": path, "reason": reason}, ensure_ascii=False) + "\n" for path, reason in fresh.items())
            data = lines.encode("utf-8", "backslashreplace")  # a file name may hold bytes that are no text
            with self.path.open("ab") as file:
                file.write(data)
        self._known.update(fresh)
        return len(fresh)

    def _catch_up(self) -> None:
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._seen)
            for line in file:
                if not line.endswith(b"\n"):  # cut by a kill
                    break
                self._seen += len(line)
                try:
                    self._known.add(json.loads(line)["path"])
                except (ValueError, KeyError, TypeError):
                    continue
