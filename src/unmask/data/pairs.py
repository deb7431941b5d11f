"""Captions: what is said of each picture, in a file beside them or inside DATA, and the batches that hold one of them a picture.

FILE is JSON lines, CSV, TSV or parquet: a column of paths, a column `caption` (several rows a picture are several captions) or `captions`
(a list), and perhaps `split`. Without one `captions.jsonl` in DATA is read, or a `.txt` beside each picture (WebDataset; a caption a line).
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from unmask import seeds
from unmask.data.archives import Tars
from unmask.data.forms import extension
from unmask.data.label_files import PATH_COLUMNS, Table, matched, open_table
from unmask.data.labels import PARTS, SPLIT_COLUMNS
from unmask.data.loader import Pictures
from unmask.data.reading import OneView
from unmask.data.source import Captions, Source
from unmask.data.sources import Files
from unmask.data.subset import Subset
from unmask.errors import Refused
from unmask.text import Reader

CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentence", "sentences", "raw", "description")
INSIDE = "captions.jsonl"  # where DATA holds its captions itself
KINDS = "a .jsonl, .csv, .tsv or .parquet file with the columns path and caption"


def captions_of(source: Source, path: str | None) -> tuple[Captions, list[str]]:
    """(the captions of every picture of a source, lines that say what was found); a picture may have none. Refused."""
    if path is None:
        found = _inside(source)
        if found is None:
            raise Refused(f"these pictures have no captions: --captions FILE ({KINDS}), {INSIDE} in DATA, or a .txt beside each picture")
        (names, texts, splits, doubled), where = found, f"{INSIDE} in DATA"
        if isinstance(names, Captions):
            return names, [f"captions: {len(names.words):,}, from the .txt beside each picture"]
    else:
        (names, texts, splits, doubled), where = _read(path), path
    rows, strangers = matched(names, source, os.path.dirname(path) if path else "")
    there = rows >= 0
    if not there.any():
        raise Refused(f"no row of {where} matches a picture (its first path is '{names[0]}', the first picture is '{source.name(0)}')")
    captions = Captions.of([texts[row] if row >= 0 else [] for row in rows], None if splits is None else [splits[row] if row >= 0 else "" for row in rows])
    said = [f"captions: {len(captions.words):,} of {int((captions.counts > 0).sum()):,} pictures, from {where}"]
    if strangers:
        one = strangers[0]
        said.append(f"{len(strangers):,} pictures are found by their file name: '{names[rows[one]]}' of {where} is taken for {source.name(one)}")
    unused = len(names) - len(set(rows[there].tolist()))
    said += [f"{int((~there).sum()):,} of {len(rows):,} pictures have no row in {where}: they have no caption"] if not there.all() else []
    said += [f"{unused:,} of {len(names):,} paths in {where} are none of these pictures"] if unused else []
    said += [f"{doubled:,} captions say the same of the same picture again: left out"] if doubled else []
    return captions, said


def learnt(source: Source, path: str | None) -> Source:
    """The pictures that teach, with their captions: those of the split train (or of none), where there is a split; those without a caption are left out. Refused."""
    captions, said = captions_of(source, path)
    ids = parts_of(captions, ("train", ""), said)
    if not ids:
        raise Refused("no picture that teaches has a caption: the split column holds no 'train'")
    taken = Subset(source, ids)
    taken.captions, taken.said = captions.rows(ids), (*source.said, *said)
    taken.fingerprint = blake2b(f"{taken.fingerprint} {taken.captions.digest}".encode(), digest_size=16).hexdigest()
    return taken


def parts_of(captions: Captions, wanted: tuple[str, ...], said: list[str]) -> list[int]:
    """The numbers of the pictures of these parts that have captions; what is left alone is said."""
    some = captions.counts > 0
    if captions.splits is None:
        return np.flatnonzero(some).tolist()
    chosen = np.isin(captions.splits, wanted)
    left = {str(part): int((captions.splits[some & ~chosen] == part).sum()) for part in np.unique(captions.splits[some & ~chosen])}
    said += [f"the split column: {int((some & chosen).sum()):,} of {' and '.join(part for part in wanted if part)}, " + ", ".join(f"{n:,} of {part or 'no part'}" for part, n in left.items()) + " left alone"] if left else []
    return np.flatnonzero(some & chosen).tolist()


Rows = tuple[list[str], list[list[str]], list[str] | None, int]  # paths, captions of each, parts, how many were said twice


def _read(path: str) -> Rows:
    """The rows of a caption file by path. Refused."""
    if not os.path.isfile(path):
        raise Refused(f"--captions: there is no file {path}")
    kind = extension(path)
    if kind in (".jsonl", ".ndjson"):
        with open(path, "rb") as file:
            return _grouped(*_lines(file, path), path)
    if kind not in (".csv", ".tsv", ".txt", ".parquet"):
        raise Refused(f"{path}: captions are {KINDS}")
    table, named, first = open_table(path)
    return _grouped(table, named, first, path)


def _lines(lines: Iterable[bytes], where: str) -> tuple[Table, str, int]:
    """JSON lines as columns, the name of the column of paths, and the number of the first row. Refused."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Refused(f"{where}, line {number}, is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise Refused(f"{where}, line {number}, is no object with a path and a caption")
        rows.append(row)
    table: Table = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    named = next((name for name in PATH_COLUMNS if name in table), None)
    if named is None:
        raise Refused(f"{where} is empty" if not rows else f"{where} has no 'file' or 'path' (it has {', '.join(list(table)[:20])})")
    return table, named, 1


def _grouped(table: Table, named: str, first: int, where: str) -> Rows:
    """The captions of each path. Refused."""
    column = next((name for name in CAPTION_COLUMNS if name in table), None)
    if column is None:
        raise Refused(f"{where} has no column 'caption' (it has {', '.join(list(table)[:20])}); one of {', '.join(CAPTION_COLUMNS)} holds what is said of a picture")
    part = next((name for name in SPLIT_COLUMNS[:1] if name in table), None)
    spoken = {word: said for said, words in PARTS.items() for word in words.split()} | {"": "", "none": ""}
    texts: dict[str, list[str]] = {}
    parts: dict[str, str] = {}
    doubled = 0
    for row, name in enumerate(map(str, table[named])):
        cell = table[column][row]
        captions = [str(one).strip() for one in (cell if isinstance(cell, list | tuple) else [cell]) if one is not None and str(one).strip()]
        known = texts.setdefault(name.strip(), [])
        fresh = [one for one in dict.fromkeys(captions) if one not in known]
        doubled += len(captions) - len(fresh)
        known += fresh
        word = str(table[part][row] or "").strip().lower() if part else ""
        if word not in spoken:
            raise Refused(f"{where}, row {row + first}: '{word}' in the column split is none of train, val and test")
        if parts.setdefault(name.strip(), spoken[word]) != spoken[word]:
            raise Refused(f"{where}: '{name}' stands in row {row + first} under '{word}' and before it under '{parts[name.strip()]}'")
    if not any(texts.values()):
        raise Refused(f"{where} holds no caption: its column '{column}' is empty")
    return list(texts), list(texts.values()), list(parts.values()) if part else None, doubled


def holds_captions(source: Source) -> bool:
    """Whether DATA holds a captions.jsonl: a `.txt` beside a picture may be anything."""
    if isinstance(source, Tars):
        return any(os.path.basename(name) == INSIDE for name in _beside(source, read=False))
    return isinstance(source, Files) and bool(source.root) and os.path.isfile(os.path.join(source.root, INSIDE))


def _beside(source: Tars, read: bool = True) -> dict[str, bytes]:
    """What the texts among the members of an archive hold, by shard and name."""
    found = dict[str, bytes]()
    for shard in source.shards:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                name = os.path.normpath(member.name.lstrip("/"))
                if member.isreg() and (os.path.basename(name) == INSIDE or extension(name) == ".txt"):
                    file = tar.extractfile(member) if read else None
                    found[f"{shard}/{name}"] = file.read() if file else b""
    return found


def _inside(source: Source) -> Any:
    """The rows of `captions.jsonl` in DATA, or the Captions that `.txt` files beside the pictures say; None where there are neither."""
    if isinstance(source, Tars):
        beside = _beside(source)
        files = [text for name, text in beside.items() if os.path.basename(name) == INSIDE]
        if files:
            return _grouped(*_lines(b"\n".join(files).splitlines(), INSIDE), INSIDE)
        return _texts([beside.get(os.path.splitext(source.name(index))[0] + ".txt") for index in range(len(source))])
    if isinstance(source, Files) and source.table is None:
        here = os.path.join(source.root, INSIDE)
        if source.root and os.path.isfile(here):
            return _read(here)
        names = [os.path.splitext(source.name(index))[0] + ".txt" for index in range(len(source))]
        return _texts([_bytes(name) if os.path.isfile(name) else None for name in names])
    return None


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _texts(found: list[bytes | None]) -> Any:
    """The captions of `.txt` files, a caption a line; None where there are no such files."""
    if not any(found):
        return None
    return Captions.of([[line.strip() for line in (text or b"").decode("utf-8", "replace").splitlines() if line.strip()] for text in found]), None, None, 0


@dataclass(frozen=True)
class WithCaption(OneView):
    """One random crop a sample, and the number of one of its captions, `caption` (b,): of several another one each time, by dice of (seed, epoch, sample)."""

    captions: Captions

    def empty_batch(self, count):
        return super().empty_batch(count) | {"caption": torch.zeros(count, dtype=torch.int64)}

    def take(self, batch, row, index, where):
        super().take(batch, row, index, where)
        batch["caption"][row] = self.captions.draw(index, seeds.dice(self.seed, "caption", *where))


class Captioned(Pictures):
    """Pictures whose source has captions: a batch on the device is `images` (b, C, H, W) and `text` (b, L), the ids of one caption each."""

    def __init__(self, reader: Reader, *words: Any):
        super().__init__(*words)
        self.reader = reader

    def taking(self):
        assert self.source.captions is not None
        return WithCaption(self.source, self.format, self.img_size, self.seed, self.tile, self.views, self.distort, self.source.captions)

    def finish(self, batch, device):
        assert self.source.captions is not None
        texts = [self.source.captions.words[number] for number in batch["caption"].tolist()]
        return {"images": super().finish(batch, device), "text": self.reader(texts).to(device)}
