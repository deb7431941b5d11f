"""Pictures in memory or in one file: `.npy` and `.npz` (memory-mapped where they are stored plainly), arrays, torch Datasets.

No file is ever unpickled: an array of Python objects is refused by name.
"""

from __future__ import annotations

import os
import zipfile
from hashlib import blake2b
from typing import Any

import numpy as np

from unmask.data.forms import Form, extension
from unmask.data.labels import Labels, choose, read
from unmask.data.quarantine import BadSample
from unmask.data.source import Source
from unmask.errors import Refused
from unmask.settings import Labelled

PICTURE_NAMES = ("images", "image", "pictures", "x", "X", "x_train", "train_images", "data", "arr_0")
CLASS_NAMES = ("class_names", "label_names", "classes", "names")  # an array of words, beside class numbers


class Arrays(Source):
    """Pictures in one array: (N, H, W), (N, H, W, C) or (N, C, H, W); of the two, channels are the shorter side (a tie: last)."""

    def __init__(self, array: np.ndarray, path: str, labels: Labels | None = None, reopen: dict[str, Any] | None = None):
        if array.dtype.kind not in "uifb":
            raise Refused(f"{path} holds {array.dtype} numbers, which are no pixels")
        if array.ndim not in (3, 4) or 0 in array.shape:
            raise Refused(f"{path} has the shape {tuple(array.shape)}: pictures are (N, H, W), (N, H, W, C) or (N, C, H, W)")
        self.path, self.array, self._reopen = path, array, reopen
        self.channels_first = array.ndim == 4 and array.shape[1] < array.shape[3]
        order = {3: "N H W", 4: "N C H W" if self.channels_first else "N H W C"}[array.ndim]
        self.said = (f"{path}: shape {tuple(array.shape)} is read as ({order.replace(' ', ', ')}), {array.dtype}",)
        self.fingerprint = blake2b(f"{os.path.basename(path)}{array.shape}{array.dtype}".encode(), digest_size=16).hexdigest()
        self.labels = labels

    def __len__(self) -> int:
        return len(self.array)

    def __getstate__(self):
        return self.__dict__ | ({"array": None} if self._reopen else {})  # a mapped file is mapped anew in each process

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self._reopen:
            self.array = np.memmap(**self._reopen)

    def name(self, index: int) -> str:
        return f"{self.path}#{index}"

    def raw(self, index: int) -> np.ndarray:
        picture = np.asarray(self.array[index])
        return picture.transpose(1, 2, 0) if self.channels_first else picture  # (H, W[, C])


class Wrapped(Source):
    """Any torch Dataset or sequence whose items are a picture, (picture, label, …) or {"image": …, "label": …}.

    A picture is a Pillow image, an array (H, W[, C]), a tensor (C, H, W), a path or the bytes of a file. Random transforms belong
    to `Views`, not into the Dataset: they would not be keyed. Labels are those of a `targets` attribute (torchvision's name), the
    second tensor of a TensorDataset, or what stands beside the pictures of a list; a Subset has those of its Dataset.
    """

    def __init__(self, dataset: Any, asked: Labelled):
        self.dataset = dataset
        self.fingerprint = f"{type(dataset).__name__}-{len(dataset)}"
        targets = _targets(dataset)
        if targets is not None and len(targets) == len(dataset):
            self.labels, self.said = read({"label": targets}, choose(["label"], asked, self.fingerprint), asked.task, type(dataset).__name__, getattr(dataset, "classes", None))

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return f"{type(self.dataset).__name__}#{index}"

    def raw(self, index: int) -> Any:
        try:
            item = self.dataset[index]
        except Exception as error:
            raise BadSample(f"the Dataset raised {type(error).__name__}: {' '.join(str(error).split())}") from error
        if isinstance(item, dict):
            item = item["image"] if "image" in item else next(iter(item.values()))
        if isinstance(item, tuple | list):
            item = item[0]
        if type(item).__module__.split(".")[0] == "torch":
            item = _numpy(item)
            return item.transpose(1, 2, 0) if item.ndim == 3 else item  # (C, H, W) -> (H, W, C)
        return os.fspath(item) if isinstance(item, os.PathLike) else item


def _targets(dataset: Any) -> Any:
    """The labels of a Dataset where they can be had without reading its pictures; None elsewhere."""
    kind = type(dataset).__name__
    if kind == "Subset":
        targets = _targets(dataset.dataset)
        return None if targets is None else [targets[int(index)] for index in dataset.indices]
    if kind == "TensorDataset":
        return dataset.tensors[1] if len(dataset.tensors) > 1 and dataset.tensors[1].ndim <= 2 else None
    if isinstance(dataset, list) and all(isinstance(item, tuple) and len(item) > 1 for item in dataset):
        return [item[1] for item in dataset]
    if isinstance(dataset, list) and all(isinstance(item, dict) and "label" in item for item in dataset):
        return [item["label"] for item in dataset]
    return getattr(dataset, "targets", None)


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy() if type(tensor).__module__.split(".")[0] == "torch" else np.asarray(tensor)


def in_memory(data: Any, asked: Labelled) -> Source:
    """A source over an array, a tensor, or anything with a length and items."""
    module = type(data).__module__.split(".")[0]
    if isinstance(data, np.ndarray) or (module == "torch" and type(data).__name__ == "Tensor"):
        return Arrays(_numpy(data), "array")
    if module == "datasets" and type(data).__name__ == "Dataset":
        from unmask.data.tables import Hub

        return Hub(data, "dataset", asked)
    try:
        size, _ = len(data), type(data).__getitem__
    except (TypeError, AttributeError):
        raise Refused(f"a {type(data).__name__} cannot be DATA: it needs a length and items by number (an IterableDataset has none)") from None
    if not size:
        raise Refused(f"the {type(data).__name__} is empty: no pictures in it")
    return Wrapped(data, asked)


def open_arrays(form: Form, asked: Labelled) -> Source:
    """The pictures, and the labels where there are some, of a `.npy` or `.npz` file."""
    path = form.paths[0]
    try:
        if extension(path) == ".npy":
            return _arrays(_load(path), path, None)
        with zipfile.ZipFile(path) as archive:
            names = {name[:-4]: name for name in archive.namelist() if name.endswith(".npy")}
        with np.load(path, allow_pickle=False) as file:
            shapes = {name: _shape(path, member) for name, member in names.items()}
            chosen = _chosen(path, shapes)
            labels, said = _labels(path, file, shapes, chosen, asked)
            mapped = _mapped_member(path, names[chosen])
            source = _arrays(mapped if mapped is not None else file[chosen], path, labels)
            source.said += said
            return source
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, Refused):
            raise
        if any(word in str(error).lower() for word in ("pickle", "object array", "python objects")):
            raise Refused(f"{path} is refused: it holds Python objects, and opening those would run whatever code is in them") from None
        raise Refused(f"{path} cannot be read as {extension(path)}: {error}") from None


def _labels(path: str, file: Any, shapes: dict[str, tuple[int, ...]], pictures: str, asked: Labelled) -> tuple[Labels | None, tuple[str, ...]]:
    """What the arrays beside the pictures tell: those with as many rows, by their names."""
    columns = [name for name, shape in shapes.items() if name != pictures and len(shape) in (1, 2) and shape[0] == shapes[pictures][0]]
    chosen = choose(columns, asked, path)
    words = next((name for name in CLASS_NAMES if len(shapes.get(name, ())) == 1 and name not in chosen.columns and file[name].dtype.kind in "US"), None)
    names = [str(word) for word in file[words]] if words and len(chosen.labels) == 1 and file[chosen.labels[0]].dtype.kind in "iu" else None
    return read({name: file[name] for name in chosen.columns}, chosen, asked.task, path, names)


def _load(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _arrays(array: np.ndarray, path: str, labels: Labels | None) -> Arrays:
    reopen = None
    if isinstance(array, np.memmap):
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        reopen = {"filename": array.filename, "dtype": array.dtype, "mode": "r", "offset": array.offset, "shape": array.shape, "order": order}
    return Arrays(array, path, labels, reopen)


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _shape(path: str, member: str) -> tuple[int, ...]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        return _header(file)[0]


def _chosen(path: str, shapes: dict[str, tuple[int, ...]]) -> str:
    """The array of pictures: by its name, else the only one that can be."""
    likely = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
    named = [name for name in PICTURE_NAMES if name in likely]
    if named or len(likely) == 1:
        return (named or likely)[0]
    there = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise Refused(f"{path}: which array holds the pictures? Name it 'images' (there are: {there or 'none'})")


def _mapped_member(path: str, member: str) -> np.ndarray | None:
    """A member that `numpy.savez` stored without compression, mapped where it lies in the zip file."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(member) as file:
            shape, fortran, dtype = _header(file)
            header = file.tell()
    if dtype.hasobject:
        return None  # numpy.load refuses it
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    start = info.header_offset + 30 + name + extra + header
    return np.memmap(path, dtype, "r", offset=start, shape=shape, order="F" if fortran else "C")
