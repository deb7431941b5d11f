"""Tables of pictures: `.parquet` through pyarrow, Hugging Face datasets through `datasets` (extra [hf])."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from typing import Any

import numpy as np

from unmask.data.forms import Form
from unmask.data.labels import Chosen, choose, read
from unmask.data.quarantine import BadSample
from unmask.data.source import Source
from unmask.errors import Refused
from unmask.settings import Labelled

PICTURE_COLUMNS = ("image", "img", "images", "picture", "jpg", "png", "jpeg", "bytes")
IN_MEMORY = 2 << 30  # bytes of pictures that are kept in memory whole: rows are read in random order, files are stored in groups
GROUPS = 4  # row groups that a process keeps of larger tables


class Parquet(Source):
    """The rows of parquet files: a column {bytes, path} or of bytes, maybe columns of labels, groups and splits."""

    def __init__(self, form: Form, asked: Labelled):
        if find_spec("pyarrow") is None:
            raise Refused(f'reading {form.paths[0]} needs pyarrow: pip install "unmask[hf]"')
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.paths = form.paths
        groups, size = [], 0
        cells: dict[str, list[Any]] = {}
        try:
            for number, path in enumerate(self.paths):
                file = pq.ParquetFile(path)
                schema = file.schema_arrow
                if not number:
                    self.column, self.nested = _picture_column(path, schema)
                    chosen = choose(_labelling(schema), asked, path)
                    names = _class_names(schema, chosen)
                for group in range(file.num_row_groups):
                    groups.append((number, group, file.metadata.row_group(group).num_rows))
                    size += file.metadata.row_group(group).total_byte_size
                for name in chosen.columns:
                    cells.setdefault(name, []).extend(file.read(columns=[name]).column(0).to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise Refused(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from None
        self.groups = np.array(groups, np.int64).reshape(-1, 3)  # file, row group, rows
        self._ends = np.cumsum(self.groups[:, 2])
        if not len(self):
            raise Refused(f"{self.paths[0]} is empty: no rows in it")
        self.labels, self.said = read(cells, chosen, asked.task, self.paths[0], names)
        self.size = size  # bytes, uncompressed
        self.kept = len(self.groups) if size <= IN_MEMORY else GROUPS
        if size > IN_MEMORY:
            self.said += (f"{size / 2**30:.1f} GiB of parquet: rows are read in random order, a whole group for each, which is slow; .tar shards are not",)
        self.fingerprint = f"{'-'.join(map(os.path.basename, self.paths))[:80]}-{len(self)}-{size}"
        self._cache: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self):
        return self.__dict__ | {"_cache": {}}

    def prepare(self) -> None:
        if self.kept == len(self.groups):
            for end in self._ends:
                self._values(int(end) - 1)

    def _values(self, index: int):
        """(pictures of the row group of a sample, row): from memory, or read."""
        group, row = self._place(index)
        values = self._cache.get(group)
        if values is None:
            values = self._cache[group] = self._read(group)
            if len(self._cache) > self.kept:
                self._cache.pop(list(self._cache)[0], None)  # noqa: RUF015  # the oldest, in one step: several threads may read
        return values, row

    def _place(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        return group, index - int(self._ends[group] - self.groups[group, 2])

    def name(self, index: int) -> str:
        group, _ = self._place(index)
        file = int(self.groups[group, 0])
        first = int(self.groups[self.groups[:, 0] < file, 2].sum())  # rows of the files before
        return f"{self.paths[file]}#{index - first}"

    def raw(self, index: int) -> bytes:
        values, row = self._values(index)
        value = values[row].as_py()
        if not value:
            raise BadSample("the row holds no picture")
        return value

    def _read(self, group: int):
        """The pictures' bytes of one row group, as one Arrow array."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, number, _ = (int(value) for value in self.groups[group])
        try:
            table = pq.ParquetFile(self.paths[file]).read_row_group(number, columns=[self.column])
        except (pa.ArrowException, OSError) as error:
            raise BadSample(f"row group {number} cannot be read: {' '.join(str(error).split())}") from None
        column = table.column(0).combine_chunks()
        return column.field("bytes") if self.nested else column


def parquet(form: Form, asked: Labelled) -> Source:
    """Parquet from memory where it fits; larger tables through `datasets`, which unpacks them once into a cache of mapped files."""
    source = Parquet(form, asked)
    if source.size <= IN_MEMORY or find_spec("datasets") is None:
        return source
    import datasets

    found = datasets.load_dataset("parquet", data_files=list(form.paths), split="train").cast_column(source.column, datasets.Image(decode=False))
    hub = Hub(found, form.paths[0] if len(form.paths) == 1 else os.path.commonpath(form.paths), asked)
    hub.labels = source.labels
    hub.said = (*source.said[:-1], f"{source.size / 2**30:.1f} GiB of parquet: unpacked once into the cache of datasets ({datasets.config.HF_DATASETS_CACHE})")
    return hub


def _picture_column(path: str, schema) -> tuple[str, bool]:
    """The column of pictures, and whether it is {bytes, path}."""
    import pyarrow as pa

    found = {}
    for field in schema:
        nested = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if nested or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            found[field.name] = nested
    named = [name for name in PICTURE_COLUMNS if name in found] or list(found)
    if not named:
        raise Refused(f"{path} has no column of pictures (bytes, or {{bytes, path}}): its columns are {', '.join(schema.names)}")
    return named[0], found[named[0]]


def _labelling(schema) -> list[str]:
    """The columns that may be labels, groups or splits: all but nested ones and bytes."""
    import pyarrow as pa

    return [field.name for field in schema if not (pa.types.is_struct(field.type) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))]


def _class_names(schema, chosen: Chosen) -> list[str] | None:
    """The names of a ClassLabel column (or of lists of them), which Hugging Face writes into the schema's metadata."""
    try:
        (label,) = chosen.labels
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        return list((feature if "names" in feature else feature["feature"])["names"])
    except (KeyError, ValueError, TypeError):
        return None


class Hub(Source):
    """A `datasets.Dataset` with a column of type Image."""

    def __init__(self, dataset: Any, name: str, asked: Labelled):
        import datasets

        pictures = [column for column, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
        if not pictures:
            raise Refused(f"{name} has no column of type Image: its columns are {', '.join(dataset.features)}")
        if not len(dataset):
            raise Refused(f"{name} is empty: no rows in it")
        self.title, self.column = name, pictures[0]
        chosen = choose([column for column, kind in dataset.features.items() if not isinstance(kind, datasets.Image)], asked, name)
        kinds = [dataset.features[column] for column in chosen.labels]
        names = next((_names_of(kind) for kind in kinds), None) if len(kinds) == 1 else None
        self.labels, self.said = read({column: dataset[column][:] for column in chosen.columns}, chosen, asked.task, name, names)
        self.dataset = dataset.select_columns([self.column]).cast_column(self.column, datasets.Image(decode=False))
        self.fingerprint = f"{dataset._fingerprint}-{len(dataset)}"

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return f"{self.title}#{index}"

    def raw(self, index: int) -> str | bytes:
        value = self.dataset[index][self.column]
        if not value or not (value.get("bytes") or value.get("path")):
            raise BadSample("the row holds no picture")
        return value.get("bytes") or value["path"]


def _names_of(kind: Any) -> list[str] | None:
    """The names of a ClassLabel, or of a list of them."""
    inner = getattr(kind, "feature", kind)
    return list(inner.names) if type(inner).__name__ == "ClassLabel" else None


def _split(found: Any, name: str, wanted: str) -> Any:
    """One Dataset of what `datasets` returned: the wanted split, else train, else the only one."""
    if not isinstance(found, dict):
        return found
    split = wanted or ("train" if "train" in found else next(iter(found)))
    if split not in found:
        raise Refused(f"{name} has no split '{split}': it has {', '.join(found)}")
    return found[split]


def saved(form: Form, asked: Labelled) -> Source:
    """A folder that `Dataset.save_to_disk` wrote."""
    path = form.paths[0]
    if find_spec("datasets") is None:
        raise Refused(f'reading {path} needs datasets: pip install "unmask[hf]"')
    import datasets

    return Hub(_split(datasets.load_from_disk(path), path, form.part), path, asked)


def hub(form: Form, asked: Labelled) -> Source:
    """A dataset of the Hugging Face hub (or its local cache): the split named, else train. Only data is read, no script is run."""
    name = form.paths[0]
    if find_spec("datasets") is None:
        raise Refused(f'reading hf:{name} needs datasets: pip install "unmask[hf]"')
    import datasets

    try:
        found = datasets.load_dataset(name, split=form.part or None)
    except Exception as error:  # the library raises its own, requests' and huggingface_hub's errors alike
        raise Refused(f"hf:{name} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    return Hub(_split(found, name, ""), f"hf:{name}", asked)
