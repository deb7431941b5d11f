"""The codes that a tokenizer gives each patch: words for what is hidden."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.errors import Refused
from unmask.interchange.tokenizers import from_dalle, from_vqkd
from unmask.interchange.weights import read, read_safetensors
from unmask.patches import grid_of
from unmask.targets.features import digest
from unmask.targets.target import Target
from unmask.tokenizers.dvae import DVAE
from unmask.tokenizers.tokenizer import Tokenizer
from unmask.tokenizers.vqkd import VQKD

KINDS: dict[str, type[Tokenizer]] = {"dvae": DVAE, "vqkd": VQKD}


class Codes(Target):
    """One code a patch, (B, N) whole numbers: the tokenizer looks at the picture at the size at which its squares are our patches.

    Like a frozen teacher it is no part of the learner: neither trained nor saved with it; only a digest of it is saved, so that a run cannot go on
    with another one. BEiT's own code gives the tokenizer a second, smaller resizing of the same crop; here the crop itself is resized.
    """

    def __init__(self, tokenizer: Tokenizer, patch: tuple[int, ...], in_chans: int):
        super().__init__()
        self.outside = (tokenizer.requires_grad_(False).eval(),)  # in a tuple: not among our modules, so not among our weights
        self.patch = tuple(patch)
        self.register_buffer("mean", torch.zeros(1, in_chans, 1, 1))
        self.register_buffer("std", torch.ones(1, in_chans, 1, 1))
        self.register_buffer("digest", torch.tensor(digest(tokenizer)))

    @property
    def tokenizer(self) -> Tokenizer:
        return self.outside[0]

    def sees(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for name, given in (("mean", mean), ("std", std)):
            buffer = self.get_buffer(name)
            buffer.copy_(torch.tensor(tuple(given)).float().expand(buffer.shape[1]).reshape(buffer.shape))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # half precision would name other codes where two fit alike
            return self.tokenizer.codes(self.pixels(x)).flatten(1)  # (B, N)

    @torch.no_grad()
    def fits(self, x: Tensor) -> Tensor:
        """How well each code fits each patch: (B, N, vocabulary). For viewers."""
        return self.tokenizer.logits(self.pixels(x)).flatten(2).transpose(1, 2)

    def pixels(self, x: Tensor) -> Tensor:
        """The pictures in 0..1, at the size at which the tokenizer's squares are our patches."""
        grid = grid_of(tuple(x.shape[2:]), self.patch)
        size = tuple(side * self.tokenizer.stride for side in grid)
        pixels = x.float() * self.std + self.mean  # 0..1
        if tuple(x.shape[2:]) != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        return pixels.clamp(0, 1)

    def pictures(self, codes: Tensor, grid: tuple[int, ...]) -> Tensor | None:
        """The pictures (B, C, H, W), in our own numbers, that codes (B, N) stand for; None where nothing can be painted from them."""
        shares = F.one_hot(codes.unflatten(1, grid), self.tokenizer.vocabulary).movedim(-1, 1).float()  # (B, K, h, w)
        pixels = self.tokenizer.pictures(shares)
        if pixels is None:
            return None
        size = tuple(side * patch for side, patch in zip(grid, self.patch))
        pixels = pixels if tuple(pixels.shape[2:]) == size else F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        return (pixels - self.mean) / self.std

    def baseline(self, truth, loss):
        """The entropy of how often each code comes up: the loss of always answering those shares."""
        counts = torch.bincount(truth.flatten(), minlength=self.tokenizer.vocabulary).float()
        shares = counts[counts > 0] / counts.sum()
        return -(shares * shares.log()).sum()

    def _apply(self, fn: Any, recurse: bool = True) -> Codes:
        self.outside[0]._apply(fn)  # to the device, with us
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        kept = state_dict.get(prefix + "digest")
        if kept is not None and int(kept) != int(self.digest):
            raise Refused("the tokenizer is not the one that this run began with: its codes have changed, so the network's answers mean nothing")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def described(tokenizer: Tokenizer) -> str:
    """The word `tokenizer` in the metadata of a file: what builds the network around the weights again."""
    return json.dumps({"kind": tokenizer.kind} | tokenizer.sizes)


def open_tokenizer(word: str | None, in_chans: int, method: str) -> Tokenizer:
    """The tokenizer of a run of `unmask tokenizer train`, of its model.safetensors, of DALL-E's encoder as a plain state dict, or of BEiT v2's files."""
    if word is None:
        raise Refused(f"{method} needs a tokenizer: --method.tokenizer RUN (made by unmask tokenizer train {'vqkd DATA --teacher ENCODER' if method == 'beit2' else 'dvae DATA'} --out RUN)")
    path = Path(word).expanduser()
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise Refused(f"no tokenizer {word}: it is neither a finished run of `unmask tokenizer train` nor a file of weights")
    network = _opened(path)
    if network.in_chans != in_chans:
        raise Refused(f"the tokenizer {word} looks at {network.in_chans} channels, and the pictures have {in_chans}")
    return network


def _opened(path: Path) -> Tokenizer:
    """The network in a learner's file, or in DALL-E's own state dict: its encoder, or encoder and decoder under those names."""
    if path.suffix == ".safetensors":
        state, words = read_safetensors(path)
        if "tokenizer" in words:
            sizes = json.loads(words["tokenizer"])
            network = KINDS[sizes.pop("kind")](**sizes)
            network.load_state_dict({key.removeprefix("tokenizer."): value for key, value in state.items() if key.startswith("tokenizer.")})
            return network
    else:
        state = dict(read(path).state)
    if "encoder.blocks.input.w" in state:
        parts = [{key.removeprefix(part): value for key, value in state.items() if key.startswith(part)} for part in ("encoder.", "decoder.")]
        return from_dalle(parts[0], parts[1] or None)
    if "quantize.embedding.weight" in state and "encode_task_layer.2.weight" in state:
        return from_vqkd(state)
    if "blocks.input.w" not in state or "blocks.output.conv.w" not in state:
        raise Refused(f"{path} is no tokenizer: neither a run of `unmask tokenizer train` nor the encoder of DALL-E's discrete VAE (blocks.input.w, …) nor BEiT v2's VQ-KD")
    return from_dalle(state)
