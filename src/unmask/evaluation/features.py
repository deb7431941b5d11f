"""Features of a frozen encoder, computed once for a set of pictures and kept in memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unmask import seeds
from unmask.errors import Refused
from unmask.interchange.timm import Encoder


class Stills(Protocol):
    """What is asked of a set of pictures: evaluation pictures in order, bad ones left out (`data.loader.Pictures` gives them)."""

    def __len__(self) -> int: ...

    def still_batches(self, batch_size: int, workers: int = 0, indices: Any = None) -> Iterator[tuple[Tensor, Tensor | None, Sequence[str]]]: ...


@dataclass(frozen=True)
class FeatureTable:
    """One row a picture: pooled features by the name of the pooling, class numbers (-1: none) and names."""

    parts: dict[str, Tensor]  # pooling -> (n, D)
    labels: Tensor | None  # (n,) int64
    names: list[str]
    skipped: int = 0  # unreadable pictures, which have no row

    def __len__(self) -> int:
        return len(self.names)

    @property
    def poolings(self) -> tuple[str, ...]:
        """The names of what `of` gives; the class token comes first where there is one."""
        return (*self.parts, "cls+avg") if {"cls", "avg"} <= set(self.parts) else tuple(self.parts)

    def of(self, pooling: str) -> Tensor:
        """Features (n, D) of one pooling; `cls+avg` is both side by side, (n, 2D)."""
        if pooling not in self.poolings:
            raise Refused(f"this encoder has no pooling '{pooling}': there are {', '.join(self.poolings)}")
        return torch.cat([self.parts[part] for part in pooling.split("+")], dim=1)

    def classes_of(self) -> Tensor:
        """The class numbers (n,), or Refused."""
        if self.labels is None or bool((self.labels < 0).any()):
            raise Refused("these pictures have no label each: put each class in a folder of its own, or give --labels FILE.csv")
        return self.labels

    def rows(self, ids: Tensor) -> FeatureTable:
        """The pictures of these row numbers."""
        labels = None if self.labels is None else self.labels[ids.to(self.labels.device)]
        parts = {name: x[ids.to(x.device)] for name, x in self.parts.items()}
        return replace(self, parts=parts, labels=labels, names=[self.names[i] for i in ids.tolist()])

    def to(self, device: torch.device | str) -> FeatureTable:
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, parts={name: x.to(device) for name, x in self.parts.items()}, labels=labels)


@torch.inference_mode()
def pool(model: Any, x: Tensor, layers: int = 1) -> dict[str, Tensor]:
    """Pooled features of pictures (B, C, H, W): `cls` the class token, `avg` the mean of the patches, each (B, layers * D).

    After the network's final norm; where timm keeps a norm behind the pool (`fc_norm`), after that. With several layers
    the last blocks' outputs, each through the final norm, are joined, oldest first (DINO, eval_linear.py). Networks that
    are no plain transformer give timm's own pooled output as `avg`.
    """
    if not isinstance(model, VisionTransformer | Eva):
        return {"avg": model.forward_head(model.forward_features(x), pre_logits=True)}
    blocks: Any
    if layers == 1:
        tokens = model.forward_features(x)  # (B, P + N, D)
        blocks = [(tokens[:, model.num_prefix_tokens :], tokens[:, : model.num_prefix_tokens])]
    else:
        blocks = model.forward_intermediates(x, indices=layers, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True)
    pooled = {"avg": torch.cat([model.fc_norm(patches.mean(dim=1)) for patches, _ in blocks], dim=1)}  # (B, layers·D)
    if model.cls_token is None:
        return pooled
    return {"cls": torch.cat([model.fc_norm(prefix[:, 0]) for _, prefix in blocks], dim=1)} | pooled


def extract(
    encoder: Encoder,
    pictures: Stills,
    indices: Any = None,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
    layers: int = 1,
    title: str = "",
) -> FeatureTable:
    """The features of all `pictures` (or of those of `indices`), in float32, on the CPU.

    Unreadable pictures have no row and are counted in `skipped`. A line on stderr every five seconds says how far it is.
    """
    model = encoder.model.eval().to(device)
    batches = _stills(pictures, indices, batch_size, workers, title)
    return _table(((pool(model, x.to(device), layers), labels, names) for x, labels, names in batches), _count(pictures, indices))


def pixel_statistics(pictures: Stills, indices: Any = None, batch_size: int = 256, workers: int = 0, title: str = "") -> FeatureTable:
    """Mean and standard deviation of each channel as features `pixels` (n, 2C): what colour and contrast alone tell."""
    batches = _stills(pictures, indices, batch_size, workers, title)
    rows = (({"pixels": torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)}, labels, names) for x, labels, names in batches)
    return _table(rows, _count(pictures, indices))


def _count(pictures: Stills, indices: Any) -> int:
    return len(pictures) if indices is None else len(indices)


def _stills(pictures: Stills, indices: Any, batch_size: int, workers: int, title: str):
    """The evaluation pictures, with progress on stderr."""
    total, done, said = _count(pictures, indices), 0, time.monotonic()
    for x, labels, names in pictures.still_batches(batch_size, workers=workers, indices=indices):
        done += len(x)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"unmask: features{title and ' of '}{title}: {done:,} of {total:,} pictures", file=sys.stderr)
        yield x, labels, names


def _table(batches: Iterable[tuple[dict[str, Tensor], Tensor | None, Sequence[str]]], total: int) -> FeatureTable:
    """The rows of all batches; what is missing of `total` was skipped."""
    parts: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    names: list[str] = []
    for pooled, numbers, words in batches:
        for pooling, x in pooled.items():
            parts.setdefault(pooling, []).append(x.float().cpu())
        labels += [] if numbers is None else [torch.as_tensor(numbers, dtype=torch.int64)]
        names += words
    if not names:
        raise Refused("not one picture could be read: unmask inspect names what is wrong with each")
    joined = {pooling: torch.cat(rows) for pooling, rows in parts.items()}
    return FeatureTable(joined, torch.cat(labels) if labels else None, names, total - len(names))


def split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers kept and held out: a `share` of every class, at least one picture of a class that has two or more."""
    order = seeds.uniform((len(labels),), seed, "split").to(labels.device)
    held = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for number in labels.unique():
        rows = (labels == number).nonzero().flatten()
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held[rows[order[rows].argsort()[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
