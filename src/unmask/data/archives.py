"""Tar shards, read in place: an index of offsets is made once, members are never extracted.

Pictures may lie in folders (class folders give labels) or follow WebDataset: `key.jpg` with `key.cls` (a number or word) or
`key.json` (an object with `label` or `cls`: a number, a word or a list of tags) beside it. What a member's name says can therefore never write a file;
a name that climbs out of the archive is refused all the same, for nobody makes one by accident.
"""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from hashlib import blake2b
from typing import Any

import numpy as np

from unmask.data.forms import PICTURES, Form, extension, hidden
from unmask.data.labels import GROUP_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS, choose, joined, read
from unmask.data.quarantine import BadSample
from unmask.data.source import SPLITS, Names, Source
from unmask.errors import Refused
from unmask.settings import Labelled

OPEN = 64  # shards that one process keeps open


class Tars(Source):
    """The pictures of one or several tar files; `form.part` keeps only those under that folder."""

    def __init__(self, form: Form, asked: Labelled):
        self.shards = form.paths
        members: list[str] = []
        places: list[tuple[int, int, int]] = []  # shard, offset, bytes
        beside: dict[tuple[int, str], dict[str, Any]] = {}
        for shard, path in enumerate(self.shards):
            for name, offset, size, told in _index(path, form.part, asked):
                if told is None:
                    members.append(name)
                    places.append((shard, offset, size))
                else:
                    beside[shard, _key(name)] = told | beside.get((shard, _key(name)), {})
        if not members:
            inside = f"/{form.part}" if form.part else ""
            raise Refused(f"no pictures in {self.shards[0]}{inside}" + (f" and {len(self.shards) - 1} more" if len(self.shards) > 1 else ""))
        self.members = Names(members)
        self.places = np.array(places, np.int64)
        self.part = form.part
        self.fingerprint = blake2b(self.members.digest.encode() + self.places.tobytes(), digest_size=16).hexdigest()
        self._label_by_folder(members)
        if any(beside.values()):
            rows = [beside.get((place[0], _key(name)), {}) for name, place in zip(members, places)]
            columns = list(dict.fromkeys(key for row in rows for key in row))
            told, said = read({key: [row.get(key) for row in rows] for key in columns}, choose(columns, asked, self.shards[0]), asked.task, self.shards[0])
            self.labels = joined(self.labels, told)
            self.said += said
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self):
        return self.__dict__ | {"_files": {}}  # each process opens its own

    def name(self, index: int) -> str:
        return "/".join(word for word in (self.shards[int(self.places[index, 0])], self.part, self.members[index]) if word)

    def inside(self, index: int) -> str:
        return self.members[index]

    def raw(self, index: int) -> bytes:
        shard, offset, size = (int(number) for number in self.places[index])
        try:
            data = self._read(shard, size, offset)
        except OSError as error:
            raise BadSample(f"{self.shards[shard]}: {error.strerror}") from None
        if len(data) < size:
            raise BadSample("the archive ends within this member")
        return data

    def _read(self, shard: int, size: int, offset: int) -> bytes:
        """Bytes at a place; the first shards stay open, and none is closed under a thread that reads it."""
        if shard not in self._files and len(self._files) < OPEN:
            self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        if shard in self._files:
            return os.pread(self._files[shard], size, offset)
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            return file.read(size)

    def _split(self, index: int) -> str | None:
        first = self.members[index].split("/", 1)[0]
        return first if first in SPLITS else None


def _key(name: str) -> str:
    """WebDataset's key: all up to the first dot of the base name."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.split(".", 1)[0])


def _index(path: str, part: str, asked: Labelled):
    """(name below `part`, offset, bytes, what a side file tells or None for a picture) of every member that matters, in the archive's order."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # the index is ours; tarfile would keep an object for each member
                if not member.isreg():
                    continue
                name = posixpath.normpath(member.name.lstrip("/"))
                if name.startswith("..") and name.split("/", 1)[0] == "..":
                    raise Refused(f"{path} is refused: its member '{member.name}' points outside the archive")
                if part:
                    if not name.startswith(part + "/"):
                        continue
                    name = name[len(part) + 1 :]
                if any(hidden(word) for word in name.split("/")):
                    continue
                kind = extension(name)
                if kind in PICTURES:
                    yield name, member.offset_data, member.size, None
                elif kind in (".cls", ".json") and member.size < 1 << 20:
                    yield name, member.offset_data, member.size, _told(tar, member, kind, asked)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Refused(f"{path} cannot be read as an uncompressed tar: {error}") from None


def _told(tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str, asked: Labelled) -> dict[str, Any]:
    """The number or word in a `.cls`, as `cls`; of the object in a `.json` what may be a label, a group or a split."""
    file = tar.extractfile(member)
    text = file.read().decode("utf-8", "replace").strip() if file else ""
    if kind == ".cls":
        return {"cls": text} if text else {}
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    wanted = {*LABEL_COLUMNS, *GROUP_COLUMNS, *SPLIT_COLUMNS, *(word.strip() for word in (asked.label or "").split(",")), asked.group}
    wanted.add((asked.split or "").partition("=")[0])
    return {key: value for key, value in found.items() if key in wanted and not isinstance(value, dict)} if isinstance(found, dict) else {}
