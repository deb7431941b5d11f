"""BEiT v2's tokenizer (Peng et al. 2022, arXiv:2208.06366, section 3.1): vector-quantised knowledge distillation.

An encoder gives each patch a direction, the nearest row of a codebook of directions is its code, and a small decoder has to say from the codes what a
teacher makes of the patches. Its encoder and decoder are timm's VisionTransformer: the official code's blocks have no bias of keys, which
softmax takes away again, and its `fc_norm`, applied to every patch, is timm's final norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.encoders.vit import ViT
from unmask.errors import Refused
from unmask.tokenizers.tokenizer import Tokenizer

ITERATIONS = 10  # of k-means, from which the codebook begins (norm_ema_quantizer.py)


class Codebook(nn.Module):
    """Directions (K, columns) that follow the mean of what falls to them: an average over steps, and no gradient.

    What a step's pictures add up to is collected in `sums` and `counts` while the step looks at them, and moves the rows afterwards (`follow`), summed over
    the parts of a batch and over processes. Rows to which nothing falls are only brought to length 1. No dead row is revived, as in the source.
    """

    def __init__(self, vocabulary: int, columns: int, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("rows", F.normalize(torch.randn(vocabulary, columns), dim=-1))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.register_buffer("sums", torch.zeros(vocabulary, columns), persistent=False)
        self.register_buffer("counts", torch.zeros(vocabulary), persistent=False)

    def fits(self, z: Tensor) -> Tensor:
        """How near each row is to directions (…, columns), up to what is the same for all rows: (…, K). Never in half precision."""
        with torch.autocast(z.device.type, enabled=False):
            return 2 * z.float() @ self.rows.T - self.rows.square().sum(-1)

    def collect(self, z: Tensor, codes: Tensor) -> None:
        """Add directions (n, columns) to what fell to their codes (n,)."""
        z = z.detach().float()
        self.sums.index_add_(0, codes, z)
        self.counts.index_add_(0, codes, torch.ones_like(z[:, 0]))

    @torch.no_grad()
    def follow(self) -> None:
        """Move the rows towards what was collected, by all processes together."""
        joint = torch.cat([self.sums, self.counts.unsqueeze(1)], dim=1)  # (K, columns + 1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(joint)
        sums, counts = joint[:, :-1], joint[:, -1:]
        means = F.normalize(sums / counts.clamp(min=1), dim=-1)
        means = torch.where(counts > 0, means, self.rows)
        self.rows.copy_(F.normalize(self.decay * self.rows + (1 - self.decay) * means, dim=-1))
        self.sums.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def begin(self, z: Tensor) -> None:
        """Begin with the k-means of directions (n, columns), of all processes together."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [torch.empty_like(z) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, z.contiguous())
            z = torch.cat(parts)
        generator = torch.Generator().manual_seed(0)  # the same choice in every process
        if len(z) >= len(self.rows):
            starts = torch.randperm(len(z), generator=generator)[: len(self.rows)]
        else:
            starts = torch.randint(0, len(z), (len(self.rows),), generator=generator)
        self.rows.copy_(kmeans(z, starts.to(z.device)))
        self.begun.fill_(True)


def kmeans(z: Tensor, starts: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Mean directions (K, columns) of the groups of directions `z` (n, columns), from the rows `starts` (K,) on; an empty group keeps its own."""
    z = F.normalize(z.float(), dim=-1)
    means = z[starts]
    for _ in range(iterations):
        nearest = (z @ means.T).argmax(-1)  # (n,)
        counts = torch.bincount(nearest, minlength=len(means)).unsqueeze(1)
        sums = torch.zeros_like(means).index_add_(0, nearest, z)
        means = torch.where(counts > 0, F.normalize(sums / counts.clamp(min=1), dim=-1), means)
    return means


class VQKD(Tokenizer):
    """`trunk`: timm's name (`model`) and arguments of the encoder, a VisionTransformer; `out`: columns of the teacher's features.

    The decoder is of the same kind, over a picture of codes whose pixels are patches, with `decoder_depth` blocks.
    """

    kind = "vqkd"

    def __init__(self, trunk: Mapping[str, Any], out: int, vocabulary: int = 8192, columns: int = 32, decoder_depth: int = 3, decay: float = 0.99):
        super().__init__()
        self.sizes = {"trunk": dict(trunk), "out": out, "vocabulary": vocabulary, "columns": columns, "decoder_depth": decoder_depth, "decay": decay}
        self.vocabulary = vocabulary
        self.encoder = plain(trunk)
        self.stride, self.in_chans = self.encoder.patch[0], self.encoder.in_chans
        if len(set(self.encoder.patch)) != 1:
            raise Refused(f"a tokenizer's patches are square, these are {self.encoder.patch[0]}x{self.encoder.patch[1]}")
        grid = tuple(self.encoder.trunk.patch_embed.grid_size)
        self.decoder = plain(dict(trunk) | {"img_size": grid, "patch_size": 1, "in_chans": columns, "depth": decoder_depth})
        width = self.encoder.width
        self.to_codes = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, columns))
        self.to_features = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))
        self.codebook = Codebook(vocabulary, columns, decay)

    def directions(self, x: Tensor) -> Tensor:
        """What each patch of pictures in 0..1 is, as a direction: (B, N, columns)."""
        features = self.encoder(2 * x - 1).patches
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(self.to_codes(features.float()), dim=-1)

    def logits(self, x: Tensor) -> Tensor:
        fits = self.codebook.fits(self.directions(x))  # (B, N, K)
        rows = x.shape[2] // self.stride
        return fits.transpose(1, 2).unflatten(2, (rows, -1))  # (B, K, h, w)

    def features(self, quantised: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the teacher says of each patch, told from the codes' directions (B, N, columns): (B, N, out)."""
        return self.to_features(self.decoder(quantised.transpose(1, 2).unflatten(2, grid)).patches)


def plain(arguments: Mapping[str, Any]) -> ViT:
    """An encoder over timm's VisionTransformer of these arguments."""
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    trunk = timm.create_model(known.pop("model"), **known)
    if not isinstance(trunk, VisionTransformer):
        raise Refused(f"a VQ-KD tokenizer is made of plain vision transformers, not of a {type(trunk).__name__}: choose a vit_* as --model")
    return ViT(trunk)
