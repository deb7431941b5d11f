"""Every random number is a function of where it is used, so nothing random is ever saved and nothing else changes it."""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is imported where it is used: workers and `unmask inspect` throw dice without it
    import torch


def key(seed: int, purpose: str, *where: int) -> int:
    """63 bits of blake2b of (seed, purpose, where): the seed of one generator, used for one thing at one place.

    `purpose` is a word ("order", "view", "mask"), `where` the numbers that say which one: (epoch, sample), (step,), (step, rank).
    """
    text = "/".join([str(int(seed)), purpose, *(str(int(place)) for place in where)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(shape: tuple[int, ...], seed: int, purpose: str, *where: int) -> torch.Tensor:
    """Uniform float32 numbers in [0, 1) of this shape, on the CPU: the same on every machine and in every process."""
    import torch

    return torch.rand(shape, generator=torch.Generator().manual_seed(key(seed, purpose, *where)))


def dice(seed: int, purpose: str, *where: int) -> random.Random:
    """Python's own generator, keyed: for the few numbers that a worker needs for one picture."""
    return random.Random(key(seed, purpose, *where))


def reseed(seed: int, purpose: str, *where: int) -> None:
    """Seed torch's default generators (dropout, drop path) of the CPU and of this process's accelerator.

    The CPU generator is seeded directly: 1.3 µs a step, where `torch.manual_seed` takes 195.
    """
    import torch

    number = key(seed, purpose, *where)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(number)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
