"""A feature table as a file that other tools open: NumPy's .npz or Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable


def write(table: FeatureTable, pooling: str, names: Sequence[str] | None, out: Path) -> None:
    """`features` (n, D) float32 and `paths`; where labels are known `labels` and what they are called.

    The .npz holds plain arrays, text of a fixed width, so that `numpy.load` opens it without pickle: `labels` (n,) int64 (-1:
    none) and `classes`, or of tags and numbers `labels` (n, K) float32 (NaN: unknown) and `names`. In Parquet a row is a picture:
    path, features (a list), label (a number) and class (its name), or a column for each tag or number.
    """
    features = table.of(pooling).float().numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    labels, classes = (table.labels.numpy() if table.labels is not None else None), table.kind == "classes"
    if out.suffix == ".npz":
        known: dict[str, Any] = {}
        if labels is not None:
            known = {"labels": labels, "classes" if classes else "names": np.array(list(names or []), dtype=np.str_)}
        np.savez(out, features=features, paths=np.array(table.names, dtype=np.str_), **known)
        return
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Refused(f'--out {out}: writing Parquet needs pyarrow: pip install "unmask[hf]", or give a name that ends in .npz') from None
    columns = {"path": table.names, "features": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), features.shape[1])}
    if labels is not None and classes:
        columns["label"] = labels
        columns["class"] = [names[label] if names is not None and 0 <= label < len(names) else None for label in labels]
    elif labels is not None:
        columns |= {name if name not in columns else f"{name} (label)": pyarrow.array(column, from_pandas=True) for name, column in zip(names or [], labels.T)}
    parquet.write_table(pyarrow.table(columns), out)
