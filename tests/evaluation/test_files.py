"""Feature files open in other tools, without pickle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unmask.evaluation.features import FeatureTable
from unmask.evaluation.files import write


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_saved_features_open_without_pickle(kind, tmp_path):
    table = FeatureTable({"cls": torch.randn(3, 4)}, torch.tensor([1, -1, 0]), ["a.jpg", "ü.jpg", "c.jpg"])
    write(table, "cls", ["cat", "dog"], tmp_path / f"f.{kind}")
    if kind == "npz":
        with np.load(tmp_path / "f.npz", allow_pickle=False) as opened:
            assert np.array_equal(opened["features"], table.of("cls").numpy()) and opened["paths"].tolist() == table.names
            assert opened["labels"].tolist() == [1, -1, 0] and opened["classes"].tolist() == ["cat", "dog"]
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "f.parquet").to_pylist()
        assert [row["class"] for row in rows] == ["dog", None, "cat"] and rows[1]["path"] == "ü.jpg"
        assert np.allclose([row["features"] for row in rows], table.of("cls").numpy())


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_tags_and_numbers_are_columns(kind, tmp_path):
    labels = torch.tensor([[1.0, 0.0], [0.0, float("nan")], [1.0, 1.0]])
    table = FeatureTable({"cls": torch.randn(3, 4)}, labels, ["a.jpg", "b.jpg", "c.jpg"], kind="tags")
    write(table, "cls", ["cat", "path"], tmp_path / f"f.{kind}")
    if kind == "npz":
        with np.load(tmp_path / "f.npz", allow_pickle=False) as opened:
            assert np.array_equal(opened["labels"], labels.numpy(), equal_nan=True) and opened["names"].tolist() == ["cat", "path"]
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "f.parquet").to_pylist()
        assert [row["cat"] for row in rows] == [1, 0, 1] and [row["path (label)"] for row in rows] == [0, None, 1] and rows[1]["path"] == "b.jpg"
