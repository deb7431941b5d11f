"""Small tokenizers in files, for methods that predict codes: they are gone when the tests end."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from unmask.targets.codes import described
from unmask.tokenizers.dvae import DVAE
from unmask.tokenizers.tokenizer import Tokenizer

FOLDER = tempfile.TemporaryDirectory(prefix="vocabularies-")


def written(network: Tokenizer, path: Path) -> str:
    """A tokenizer as a finished run leaves it."""
    path.mkdir(parents=True, exist_ok=True)
    save_file({f"tokenizer.{key}": value.contiguous() for key, value in network.state_dict().items()}, path / "model.safetensors", {"tokenizer": described(network)})
    return str(path)


@cache
def vocabulary(in_chans: int = 3, codes: int = 12, stride: int = 4) -> str:
    """The folder of a random discrete VAE."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DVAE(in_chans, hidden=4, blocks=1, vocabulary=codes, stride=stride, first=8)
    return written(network, Path(FOLDER.name) / f"{in_chans}-{codes}-{stride}")
