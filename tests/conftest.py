"""Fixtures shared by all tests: the real data sets, a small picture folder, the golden vectors."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks of the tests are tiny: a second thread costs more than it gives
ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("UNMASK_DATA", ROOT.parent / "shared" / "data"))
GOLDEN = Path(os.environ.get("UNMASK_GOLDEN", ROOT / "tests" / "golden"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data sets."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data sets at {SHARED}: set UNMASK_DATA")
    return SHARED


@pytest.fixture(scope="session")
def imagenette(shared_data, tmp_path_factory) -> Path:
    """A folder train/<class>/* and val/<class>/* of real photographs: 12 of each class."""
    archive = shared_data / "imagenette224.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    folder, seen = tmp_path_factory.mktemp("imagenette"), {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile() or "/n0" not in member.name:
                continue
            split, label, name = member.name.split("/")[-3:]
            seen[split, label] = seen.get((split, label), 0) + 1
            if seen[split, label] <= 12:
                target = folder / split / label / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
    return folder


@pytest.fixture(scope="session")
def golden():
    """`golden("mae")` opens that file of golden vectors: (tensors, metadata); an absent file is a skip."""

    def read(name: str):
        import json

        from safetensors import safe_open

        path = GOLDEN / f"{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"no golden vectors {path}: set UNMASK_GOLDEN")
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
        metadata["config"] = json.loads(metadata.get("config", "{}"))
        return tensors, metadata

    return read
