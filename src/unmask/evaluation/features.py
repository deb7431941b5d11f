"""Features of a frozen encoder, computed once for a set of pictures and kept in memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unmask.data.labels import Labels
from unmask.data.source import Source
from unmask.data.splits import LABEL_HELP, held_out
from unmask.errors import Refused
from unmask.interchange.timm import Encoder

BLOCKS = (VisionTransformer, Eva, Beit)  # networks whose blocks all give the same tokens


class Stills(Protocol):
    """What is asked of a set of pictures: evaluation pictures in order, bad ones left out (`data.loader.Pictures` gives them)."""

    labels: Labels | None
    source: Source

    def __len__(self) -> int: ...

    def numbered_batches(self, batch_size: int, workers: int = 0, indices: Any = None) -> Iterator[tuple[Tensor, list[int]]]: ...

    def judge(self, spoiled: int, seen: int) -> None: ...


@dataclass(frozen=True)
class FeatureTable:
    """One row a picture: pooled features by the name of the pooling, labels and names."""

    parts: dict[str, Tensor]  # pooling -> (n, D)
    labels: Tensor | None  # classes (n,) int64, -1: none · tags or numbers (n, K) float32, NaN: unknown
    names: list[str]
    skipped: int = 0  # unreadable pictures, which have no row
    kind: Literal["classes", "tags", "numbers"] = "classes"  # what the labels are
    groups: Tensor | None = None  # (n,) int64: rows that stay together when a part is held out
    ids: Tensor | None = None  # (n,) int64: the pictures' numbers in their source

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
        if self.kind != "classes":
            raise Refused(f"these pictures have {self.kind}, and one class each is wanted: --task classes reads a column so, --label says which")
        return self.truth()

    def truth(self) -> Tensor:
        """The labels, of whatever kind, or Refused where a picture has none."""
        if self.labels is None or not bool(self.known.all()):
            raise Refused(f"these pictures have no label each: {LABEL_HELP}")
        return self.labels

    @property
    def known(self) -> Tensor:
        """(n,) bool: whether anything is known of the picture."""
        if self.labels is None:
            return torch.zeros(len(self), dtype=torch.bool)
        return self.labels >= 0 if self.kind == "classes" else ~self.labels.isnan().all(dim=1)

    def held_out(self, share: float, seed: int) -> tuple[Tensor, Tensor]:
        """Row numbers kept and held out, alike in classes, tags or numbers, groups whole: see `data.splits.held_out`."""
        truth = self.truth().cpu().numpy()
        names = [str(number) for number in range(int(truth.max()) + 1 if self.kind == "classes" else truth.shape[1])]
        labels = Labels(self.kind, truth, names, None if self.groups is None else self.groups.cpu().numpy())
        kept, held, _ = held_out(labels, share, seed)
        device = self.truth().device
        return torch.from_numpy(kept).to(device), torch.from_numpy(held).to(device)

    def rows(self, ids: Tensor) -> FeatureTable:
        """The pictures of these row numbers."""

        def of(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[ids.to(x.device)]

        parts = {name: x[ids.to(x.device)] for name, x in self.parts.items()}
        names = [self.names[i] for i in ids.tolist()]
        return replace(self, parts=parts, labels=of(self.labels), groups=of(self.groups), ids=of(self.ids), names=names)

    def to(self, device: torch.device | str) -> FeatureTable:
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, parts={name: x.to(device) for name, x in self.parts.items()}, labels=labels)


def poolings(model: Any) -> tuple[str, ...]:
    """What `pool` and `FeatureTable.of` give of such a network."""
    return ("cls", "avg", "cls+avg") if isinstance(model, BLOCKS) and model.cls_token is not None else ("avg",)


@torch.inference_mode()
def pool(model: Any, x: Tensor, layers: int = 1) -> dict[str, Tensor]:
    """Pooled features of pictures (B, C, H, W): `cls` the class token, `avg` the mean of the patches, each (B, layers * D).

    After the network's final norm; where timm keeps a norm behind the pool (`fc_norm`), after that. With several layers
    the last blocks' outputs, each through the final norm, are joined, oldest first (DINO, eval_linear.py). Networks that
    are no plain transformer give timm's own pooled output as `avg`.
    """
    if not isinstance(model, BLOCKS):
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


@torch.inference_mode()
def pool_blocks(model: Any, x: Tensor) -> dict[str, Tensor]:
    """`cls@i` and `avg@i`, each (B, D), of the output of every block i = 1, 2, …, each through the final norm."""
    if not isinstance(model, BLOCKS):
        raise Refused(f"the blocks of a {type(model).__name__} are not all alike: layers are those of a VisionTransformer, Eva or Beit")
    blocks = model.forward_intermediates(x, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True)
    pooled = {f"avg@{i}": model.fc_norm(patches.mean(dim=1)) for i, (patches, _) in enumerate(blocks, 1)}
    return pooled if model.cls_token is None else {f"cls@{i}": model.fc_norm(prefix[:, 0]) for i, (_, prefix) in enumerate(blocks, 1)} | pooled


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
    return tabulate(lambda x: pool(model, x.to(device), layers), pictures, indices, batch_size, workers, title)


def pixel_statistics(pictures: Stills, indices: Any = None, batch_size: int = 256, workers: int = 0, title: str = "") -> FeatureTable:
    """Mean and standard deviation of each channel as features `pixels` (n, 2C): what colour and contrast alone tell."""
    return tabulate(lambda x: {"pixels": torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)}, pictures, indices, batch_size, workers, title)


def tabulate(
    features: Callable[[Tensor], dict[str, Tensor]], pictures: Stills, indices: Any = None, batch_size: int = 256, workers: int = 0, title: str = ""
) -> FeatureTable:
    """The table of `features(x (b, C, H, W)) -> {name: (b, D)}` over the evaluation pictures; progress goes to stderr. Failed where too many are bad."""
    total, done, said = len(pictures) if indices is None else len(indices), 0, time.monotonic()
    parts: dict[str, list[Tensor]] = {}
    ids: list[int] = []
    for x, numbers in pictures.numbered_batches(batch_size, workers=workers, indices=indices):
        for name, rows in features(x).items():
            parts.setdefault(name, []).append(rows.float().cpu())
        ids += numbers
        done += len(x)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"unmask: features{title and ' of '}{title}: {done:,} of {total:,} pictures", file=sys.stderr)
    if not ids:
        raise Refused("not one picture could be read: unmask inspect names what is wrong with each")
    pictures.judge(total - len(ids), total)
    joined = {name: torch.cat(rows) for name, rows in parts.items()}
    names, table = [pictures.source.name(index) for index in ids], pictures.labels
    if table is None:
        return FeatureTable(joined, None, names, total - len(ids), ids=torch.tensor(ids))
    groups = None if table.groups is None else torch.from_numpy(table.groups[ids])
    return FeatureTable(joined, torch.from_numpy(table.values[ids]), names, total - len(ids), table.kind, groups, torch.tensor(ids))
