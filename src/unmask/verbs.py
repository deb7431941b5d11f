"""What each verb besides pretrain takes, as plain numbers. No torch here: the comment at the end of a field's line is its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unmask.settings import Ratio, within


@dataclass(frozen=True)
class Quickstart:
    """The embedded default."""

    out: str = "unmask-quickstart"  # the folder to make; with the same one again it goes on where it stopped
    seed: int = 0  # of the crops and of everything else random
    steps: int = 400  # length of the run in optimiser steps

    def __post_init__(self):
        within(self, "seed", 0)
        within(self, "steps", 1)


@dataclass(frozen=True)
class Look:
    """How a frozen encoder looks at pictures: the same for every command that takes ENCODER."""

    img_size: tuple[int, int] | None = None  # height and width of the input (one number: square); not given: the encoder's own
    patch_size: int | None = None  # pixels a patch side, of random:NAME
    in_chans: int | None = None  # channels of the input, of random:NAME; not given: what the data has
    random: bool = False  # with the encoder's weights drawn anew: what its architecture reaches without training
    seed: int = 0  # of everything random
    batch_size: int = 64  # pictures at once
    workers: int | None = None  # processes that read and crop; not given: chosen for the machine
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    max_bad_share: float = 0.05  # stop when more than this share of the pictures is unreadable

    def __post_init__(self):
        within(self, "patch_size img_size in_chans batch_size", 1)
        within(self, "workers seed", 0)
        within(self, "max_bad_share", 0, 1)


@dataclass(frozen=True)
class Measure:
    """On which labelled pictures an encoder is measured."""

    val: str | None = None  # labelled pictures to judge by; not given: a fifth of DATA, kept apart
    labels: str | None = None  # CSV with columns path and label, for DATA and --val; class folders are used without it


@dataclass(frozen=True)
class Neighbours:
    """The nearest-neighbour protocol."""

    k: int = 20  # neighbours that vote
    temperature: float = 0.07  # a vote weighs exp(cosine / temperature)
    pooling: Literal["auto", "cls", "avg", "cls+avg"] = "auto"  # what a picture's features are; auto: the class token where there is one

    def __post_init__(self):
        within(self, "k", 1)
        within(self, "temperature", 0, above=True)


@dataclass(frozen=True)
class Linear:
    """The linear probe."""

    paper: bool = False  # MAE's own protocol (LARS, BatchNorm without affine, 90 epochs) instead of the sweep of rates and poolings
    epochs: int | None = None  # passes over the features; not given: 100, with --paper 90
    pooling: Literal["auto", "cls", "avg", "cls+avg"] = "auto"  # what a picture's features are; auto: the best one on a held-out part

    def __post_init__(self):
        within(self, "epochs", 1)


@dataclass(frozen=True)
class Reconstruct:
    """A drawing of what a run imagines."""

    out: str = "reconstruction.png"  # the picture to write
    statistics: Literal["visible", "truth"] = "visible"  # brightness of hidden patches: estimated from what is visible, or given away
    mask_ratio: Ratio | None = None  # share of patches hidden; not given: the run's own
    img_size: tuple[int, int] | None = None  # height and width of the input (one number: square); not given: the run's own
    count: int = 8  # pictures drawn at most
    seed: int = 0  # of the masks

    def __post_init__(self):
        within(self, "img_size count", 1)
        within(self, "seed", 0)


@dataclass(frozen=True)
class Export:
    """Where an encoder goes, and for which library."""

    to: Literal["timm", "safetensors"] = "timm"  # timm: a folder for timm.create_model("local-dir:…"); safetensors: one file
    out: str | None = None  # the folder or file to write


@dataclass(frozen=True)
class Embed:
    """Where features go."""

    out: str = "features.npz"  # .npz (NumPy) or .parquet: features, paths, and labels where known
    labels: str | None = None  # CSV with columns path and label; class folders are used without it
    pooling: Literal["auto", "cls", "avg", "cls+avg"] = "auto"  # what a picture's features are; auto: the class token where there is one


@dataclass(frozen=True)
class ShowMask:
    """A drawing of a masking strategy."""

    mask_ratio: Ratio | None = None  # share of patches hidden; not given: the strategy's own
    grid: tuple[int, int] = (14, 14)  # patches down and across
    picture: str | None = None  # a picture under the masks
    count: int = 8  # masks drawn
    seed: int = 0  # of the masks
    out: str = "show-mask.png"  # the picture to write

    def __post_init__(self):
        within(self, "grid count", 1)
        within(self, "seed", 0)


@dataclass(frozen=True)
class ShowViews:
    """A drawing of training crops."""

    img_size: tuple[int, int] = (224, 224)  # height and width of the crops (one number: square)
    count: int = 6  # pictures, one a row
    epochs: int = 6  # crops of each, as in that many passes over the data
    seed: int = 0  # of the crops
    out: str = "show-views.png"  # the picture to write

    def __post_init__(self):
        within(self, "img_size count epochs", 1)
        within(self, "seed", 0)


@dataclass(frozen=True)
class ShowEncoder:
    """A drawing of what an encoder sees."""

    count: int = 8  # pictures drawn at most
    out: str | None = None  # the picture to write; not given: show-attention.png or show-features.png here

    def __post_init__(self):
        within(self, "count", 1)


@dataclass(frozen=True)
class Inspect:
    """A check of pictures before they train."""

    labels: str | None = None  # CSV with columns path and label; class folders are used without it
    tile: int | None = None  # look at a window of this side of pictures beyond Pillow's size limit
    workers: int | None = None  # pictures that are read at once; not given: chosen for the machine

    def __post_init__(self):
        within(self, "tile workers", 1)


@dataclass(frozen=True)
class Report:
    """Where the page goes."""

    out: str | None = None  # the file to write; not given: report.html in the run, or here for several
