"""A feature table as a file that other tools open: NumPy's .npz or Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable


def write(table: FeatureTable, pooling: str, classes: Sequence[str] | None, out: Path) -> None:
    """`features` (n, D) float32 and `paths`; where labels are known `labels` (n,) int64 (-1: none) and the names of the `classes`.

    The .npz holds plain arrays, text of a fixed width, so that `numpy.load` opens it without pickle. In Parquet a row is a
    picture: path, features (a list), label (a number) and class (its name).
    """
    features = table.of(pooling).float().numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    labels = table.labels.numpy().astype(np.int64) if table.labels is not None else None
    if out.suffix == ".npz":
        known: dict[str, Any] = {"labels": labels, "classes": np.array(list(classes or []), dtype=np.str_)} if labels is not None else {}
        np.savez(out, features=features, paths=np.array(table.names, dtype=np.str_), **known)
        return
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Refused(f'--out {out}: writing Parquet needs pyarrow: pip install "unmask[hf]", or give a name that ends in .npz') from None
    columns = {"path": table.names, "features": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), features.shape[1])}
    if labels is not None:
        columns["label"] = labels
        columns["class"] = [classes[label] if classes is not None and 0 <= label < len(classes) else None for label in labels]
    parquet.write_table(pyarrow.table(columns), out)
