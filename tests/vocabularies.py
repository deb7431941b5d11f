"""Small tokenizers in files, for methods that predict codes: they are gone when the tests end."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from unmask.methods.dvae import DVAE as Method
from unmask.methods.dvae import Tokenizing
from unmask.methods.vqkd import VQKD
from unmask.targets.codes import described
from unmask.testing import Case, case_of, pictures
from unmask.tokenizers.dvae import DVAE
from unmask.tokenizers.tokenizer import Tokenizer


class Still(Tokenizing):
    """A discrete VAE that learns without Gumbel noise, which each process draws for its own pictures."""

    def forward(self, x, noise=None, mask=None, rows=None, gumbel=None):
        side = x.shape[-1] // self.tokenizer.stride
        return super().forward(x, gumbel=torch.zeros(len(x), self.tokenizer.vocabulary, side, side))


def still() -> Still:
    return Still(DVAE(3, hidden=8, blocks=1, vocabulary=32, stride=4, first=8), Method(hidden=8, blocks=1, vocabulary=32, stride=4))


LEARNERS: dict[str, Case] = {  # that end with two processes where they end with one; the codebook too, whose start is the k-means of the pictures of both
    "dvae": Case(still, pictures(4), 4),
    "vqkd": case_of(VQKD(teacher="random:vit_tiny_patch16_224", vocabulary=24, columns=8, decoder_depth=1)),
}
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
