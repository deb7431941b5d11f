"""DATA in words: what a path, pattern or name means, answered in milliseconds without torch, numpy or reading a picture.

| word | form |
|---|---|
| a folder with pictures, flat or nested; in it also DICOM without an ending, and `.npy` pictures where there are no others | folder |
| a folder with `.tar` or `.parquet` files and no pictures | tar, parquet |
| a folder that `datasets` saved to disk | saved |
| a picture | files |
| `.txt`, `.lst`, `.tsv`: a path a line, then maybe a tab and a label · `.csv` with columns path and label | list |
| `shard.tar`, and `shard.tar/train` for the members under train/ | tar |
| `.parquet`, `.npy`, `.npz` | parquet, array |
| a pattern with `*`, `?`, `[…]`, or shards written `{000..012}` | what the files are |
| `hf:owner/name`, `hf:owner/name:split` | hub |
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from unmask.errors import Refused

PICTURES = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".dcm", ".dicom", ".ima"])
DICOM = frozenset({".dcm", ".dicom", ".ima"})
MAGIC = (128, b"DICM")  # where a DICOM file says that it is one
LISTS = frozenset({".txt", ".lst", ".tsv", ".csv"})
KINDS = "pictures, a folder, a list (.txt, .csv), .tar, .parquet, .npy, .npz, a pattern, or hf:owner/name"


@dataclass(frozen=True)
class Form:
    """What DATA is: `kind` (folder, files, list, tar, parquet, array, hub, saved), the `paths` it stands for, and a part of them."""

    kind: str
    paths: tuple[str, ...]
    part: str = ""  # of a tar: the folder inside; of a Hugging Face dataset: the split


def extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def hidden(name: str) -> bool:
    """Files and folders that systems leave behind and nobody means; the index of a DICOM medium is one."""
    return name.startswith(".") or name in ("__MACOSX", "DICOMDIR")


def is_picture(path: str) -> bool:
    """Whether a file is read as a picture: by its ending; without one, or with a number for it, by DICOM's magic."""
    ending = extension(path)
    if ending in PICTURES or (ending and not ending[1:].isdigit()):
        return ending in PICTURES
    try:
        with open(path, "rb") as file:
            file.seek(MAGIC[0])
            return file.read(len(MAGIC[1])) == MAGIC[1]
    except OSError:
        return False


def pictures(folder: str) -> list[str]:
    """The picture files below, relative to the folder; where there are none, its `.npy` files."""
    names = list(walk(folder))
    return [name for name in names if is_picture(os.path.join(folder, name))] or [name for name in names if extension(name) == ".npy"]


def walk(folder: str) -> Iterator[str]:
    """Every file below, hidden ones left out, in sorted order, relative to the folder with `/`; no file is opened or measured.

    Links to folders are followed once each, so a link to a parent ends. A dangling link is a file: reading it will say so.
    """
    entered: set[str] = set()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        place = os.path.join(folder, inside)
        try:
            with os.scandir(place) as entries:
                here = sorted((entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries if not hidden(entry.name))
        except OSError as error:
            raise Refused(f"cannot read the folder {place}: {error.strerror}") from None
        deeper = []
        for name, is_folder, is_link in here:
            path = f"{inside}{name}"
            if not is_folder:
                yield path
            elif not is_link:
                deeper.append(path + "/")
            elif (real := os.path.realpath(os.path.join(folder, path))) not in entered and not (os.path.realpath(place) + os.sep).startswith(real + os.sep):
                entered.add(real)
                deeper.append(path + "/")
        waiting.extend(reversed(deeper))


def resolve(data: str) -> Form:
    """The form that DATA means; Refused, with what was perhaps meant, when it means none."""
    data = os.path.expanduser(os.fspath(data))
    if data.startswith("hf:"):
        return _hub(data)
    if os.path.isdir(data):
        return _folder(data)
    if os.path.isfile(data):
        return _files(data, (data,))
    archive = re.match(r"(.+?\.tar)/+(.+)", data)
    if archive and os.path.isfile(archive[1]):
        return Form("tar", (archive[1],), archive[2].rstrip("/"))
    shards = _numbered(data)
    if glob.has_magic(data) or shards:
        found = shards or [path for path in sorted(glob.glob(data, recursive=True)) if os.path.isfile(path) or os.path.islink(path)]
        known = tuple(path for path in found if not hidden(os.path.basename(path)))
        if not known:
            raise Refused(f"no file matches the pattern {data}")
        return _files(data, known)
    raise Refused(f"there is no file or folder {data}{_meant(data)}")


def check(data: str) -> None:
    """Refuse at once, in one line that names it, what cannot be DATA; neither torch nor numpy is imported."""
    form = resolve(data)
    if form.kind in ("hub", "saved"):
        _need("datasets", "hf", data)
    if form.kind == "parquet":
        _need("pyarrow", "hf", data)


def _need(package: str, extra: str, data: str) -> None:
    if find_spec(package) is None:
        raise Refused(f'reading {data} needs {package}: pip install "unmask[{extra}]"')


def _hub(data: str) -> Form:
    match = re.fullmatch(r"hf:([\w.-]+(?:/[\w.-]+)?)(?::(.+))?", data)
    if not match:
        raise Refused(f"'{data}' names no Hugging Face dataset: write hf:owner/name or hf:owner/name:split")
    return Form("hub", (match[1],), match[2] or "")


def _folder(folder: str) -> Form:
    names = set(os.listdir(folder))
    if {"dataset_info.json", "state.json"} <= names or "dataset_dict.json" in names:
        return Form("saved", (folder,))
    seen: dict[str, list[str]] = {".tar": [], ".parquet": [], ".npy": []}
    for name in walk(folder):
        if is_picture(os.path.join(folder, name)):
            return Form("folder", (folder,))
        if extension(name) in seen:
            seen[extension(name)].append(os.path.join(folder, name))
    for kind in (".tar", ".parquet"):
        if seen[kind]:
            return Form(kind[1:], tuple(seen[kind]))
    if seen[".npy"]:
        return Form("folder", (folder,)) if len(seen[".npy"]) > 1 else Form("array", tuple(seen[".npy"]))
    raise _no_pictures(folder)


def _no_pictures(folder: str) -> Refused:
    found = Counter(extension(name) or "nameless" for name in walk(folder))
    if not found:
        return Refused(f"the folder {folder} is empty: no pictures in it")
    there = ", ".join(f"{count} {kind}" for kind, count in found.most_common(3))
    return Refused(f"no pictures in the folder {folder} (it holds {there} files); DATA is {KINDS}")


def _files(data: str, paths: tuple[str, ...]) -> Form:
    """The form of one file or of a pattern's files."""
    kinds = Counter(extension(path) for path in paths)
    found = tuple(path for path in paths if is_picture(path))
    if found:
        return Form("files", found)
    kind = kinds.most_common(1)[0][0]
    same = tuple(path for path in paths if extension(path) == kind)
    if kind in (".tar", ".parquet"):
        return Form(kind[1:], same)
    if len(same) == 1 and kind in LISTS:
        return Form("list", same)
    if len(same) == 1 and kind in (".npy", ".npz"):
        return Form("array", same)
    if kind == ".npy":
        return Form("files", same)
    if data.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise Refused(f"{data} is a compressed tar, which cannot be read at any place: decompress it (the .tar stays one file), or unpack it")
    if kind == ".npz":
        raise Refused(f"{data} means {len(same)} {kind} files: give one")
    raise Refused(f"{data} is of a kind that is not read ({kind or 'no extension'}); DATA is {KINDS}")


def _numbered(data: str) -> list[str]:
    """`a-{000..003}.tar` as its four names; only those that exist count, and none missing."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", data)
    if not match:
        return []
    first, last = match.groups()
    names = [f"{data[: match.start()]}{number:0{len(first)}d}{data[match.end() :]}" for number in range(int(first), int(last) + 1)]
    missing = [name for name in names if not os.path.exists(name)]
    if missing:
        raise Refused(f"{len(missing)} of the {len(names)} files of {data} do not exist, the first is {missing[0]}")
    return names


def _meant(data: str) -> str:
    """` (did you mean …?)` with the nearest name that does exist."""
    parent, name = os.path.split(data.rstrip("/"))
    while parent and not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    try:
        near = difflib.get_close_matches(name, os.listdir(parent or "."), n=1)
    except OSError:
        near = []
    return f" (did you mean {os.path.join(parent, near[0])}?)" if near else ""
