"""A safetensors file written straight from memory: no second copy, no held interpreter lock, its checksum on the way.

safetensors' own `save_file` first copies every tensor to bytes; a checkpoint beside the training loop should cost it nothing.
Source: the format's description in the safetensors README.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
CHUNK = 1 << 24  # bytes handed to the system at once


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write contiguous CPU tensors to a new file, synced to the disk; the checksum that `checksum` computes from it."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each begins aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = blake2b(digest_size=16)
    with open(path, "wb", buffering=0) as file:
        _put(file, digest, memoryview(len(text).to_bytes(8, "little") + text))
        for name in order:
            flat = tensors[name].detach().reshape(-1)
            if flat.numel():
                _put(file, digest, memoryview(flat.view(torch.uint8).numpy()))
        os.fsync(file.fileno())
    return digest.hexdigest()


def _put(file, digest, data: memoryview) -> None:
    while data:
        part = data[:CHUNK]
        written = file.write(part)  # may be less than asked on a disk that fills up
        digest.update(part[:written])
        data = data[written:]


def checksum(path: Path) -> str:
    """The checksum of a whole file."""
    digest = blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as file:
        while part := file.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()
