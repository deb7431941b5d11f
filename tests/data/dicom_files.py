"""Writes DICOM files for tests, with pydicom; the patient's name in them is one that must never be seen again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

NAME = "Secretive^Penelope"


def dataset(array: np.ndarray, **elements: Any):
    """A dataset around (H, W), (H, W, 3) or (frames, H, W) pixels; `elements` by keyword go above what is chosen here."""
    import pydicom
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    found: Dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    colour = array.ndim >= 3 and array.shape[-1] == 3
    defaults = {
        "PatientName": NAME, "PatientID": "P-007", "Modality": "OT",
        "Rows": array.shape[-3 if colour else -2], "Columns": array.shape[-2 if colour else -1],
        "SamplesPerPixel": 3 if colour else 1, "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": array.dtype.itemsize * 8, "BitsStored": array.dtype.itemsize * 8, "PixelRepresentation": int(array.dtype.kind == "i"),
    }  # fmt: skip
    if colour:
        defaults["PlanarConfiguration"] = 0
    if array.ndim == 3 + colour:
        defaults["NumberOfFrames"] = array.shape[0]
    for name, value in (defaults | elements).items():
        setattr(found, name, value)
    found.HighBit = found.BitsStored - 1
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    found.PixelData = data + b"\0" * (len(data) % 2)
    found["PixelData"].VR = "OW" if array.dtype.itemsize > 1 else "OB"
    return found


def write(path: Path, array: np.ndarray, **elements: Any) -> str:
    dataset(array, **elements).save_as(path, enforce_file_format=True)
    return str(path)


def hounsfield(seed: int = 0, size: int = 48) -> np.ndarray:
    """A CT slice of a kind: air, a body of water with grain, a bone; whole Hounsfield units."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    rng = np.random.default_rng(seed)
    body, bone = x**2 + y**2 < 0.16, (x - rng.uniform(-0.2, 0.2)) ** 2 + y**2 < 0.01
    return np.where(bone, 700, np.where(body, 40, -1000)).astype(np.int16) + rng.integers(-20, 20, (size, size)).astype(np.int16)
