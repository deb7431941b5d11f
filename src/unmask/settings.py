"""The plain numbers that commands, files and methods carry. No torch here: `unmask pretrain mae --help` reads this file.

A field's line ends with a comment: that comment is its help on the command line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

FORMAT = 1  # of config.yaml, environment.json, status.json, state.json and the metadata of safetensors files

WINDOWS = {  # of CT, centre and width in Hounsfield units: the settings that radiologists commonly use (radiopaedia.org/articles/windowing-ct)
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "soft": (50.0, 400.0),
    "liver": (30.0, 150.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
}
Window = tuple[float, float] | Literal["file", "measured", "lung", "mediastinum", "soft", "liver", "brain", "bone"]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # of `--time`


def seconds(time: str) -> float:
    """The seconds that `90s`, `30m`, `8h` or `2d` mean."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smhd])", time)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"time must be a number and its unit, such as 90s, 30m, 8h or 2d, got '{time}'")
    return float(found[1]) * UNITS[found[2]]


def within(settings: Any, names: str, low: float, high: float | None = None, above: bool = False) -> None:
    """A ValueError for the first of these fields, or of their numbers, outside low..high (`above`: low itself is outside)."""
    for name in names.split():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is None or ((number > low if above else number >= low) and (high is None or number <= high)):
                continue
            wanted = f"lie between {low:g} and {high:g}" if high is not None else f"be {'more than' if above else 'at least'} {low:g}"
            raise ValueError(f"{name} must {wanted}, got {number:g}")


def in_order(settings: Any, names: str) -> None:
    """A ValueError for the first of these pairs whose larger number stands first."""
    for name in names.split():
        low, high = getattr(settings, name)
        if low > high:
            raise ValueError(f"{name} must have its smaller number first, got {low:g} {high:g}")


def check_window(window: Window | None) -> None:
    """A ValueError for a window without width."""
    if isinstance(window, tuple) and window[1] <= 0:
        raise ValueError(f"window must have a centre and a width above 0, got {window[0]:g} {window[1]:g}")


@dataclass(frozen=True)
class Ratio:
    """The share of cells that is masked: fixed, drawn anew each step from a range, or moving over the run.

    In words and files: `.75`, `.6-.9` (a range: uniform, one draw a step), `.5:.75` (a schedule: linear in progress)
    or the name of a preset. A range or a schedule takes `LEVELS` values, so that few graphs are compiled.
    """

    first: float
    last: float
    moves: Literal["never", "each step", "over the run"] = "never"

    LEVELS = 8
    PRESETS = {"video": 0.9, "audio": 0.8, "images": 0.75, "medical": 0.5}  # the field's usual optima by redundancy

    def __post_init__(self):
        if not (0 < self.first < 1 and 0 < self.last < 1):
            raise ValueError(f"mask_ratio must lie between 0 and 1, got {self}")

    @classmethod
    def of(cls, value: Ratio | float | str) -> Ratio:
        """The ratio that a number, a word or a pair of numbers means."""
        if isinstance(value, Ratio):
            return value
        text = str(cls.PRESETS.get(str(value), value))
        try:
            return cls(float(text), float(text))
        except ValueError as error:
            if "mask_ratio" in str(error):  # a number, outside 0..1
                raise
        ways: tuple[tuple[str, Literal["over the run", "each step"]], ...] = ((":", "over the run"), ("-", "each step"))
        for separator, moves in ways:
            first, found, last = text.partition(separator)
            if found and all(re.fullmatch(r"\d*\.?\d+", part) for part in (first, last)):
                return cls(float(first), float(last), moves)
        names = ", ".join(cls.PRESETS)
        raise ValueError(f"mask_ratio must be a number, a range (.6-.9), a schedule (.5:.75) or one of {names}, got '{value}'")

    def at(self, progress: float, u: float) -> float:
        """The ratio of one step: `progress` in [0, 1] of the run, `u` uniform in [0, 1)."""
        if self.moves == "never":
            return self.first
        place = u if self.moves == "each step" else progress
        level = min(int(place * self.LEVELS), self.LEVELS - 1) / (self.LEVELS - 1)
        return self.first + (self.last - self.first) * level

    def __str__(self) -> str:
        separator = {"never": "", "each step": "-", "over the run": ":"}[self.moves]
        return f"{self.first!r}" + (f"{separator}{self.last!r}" if separator else "")


@dataclass(frozen=True)
class Views:
    """How a picture becomes the network's input while it trains (the random part runs in the workers)."""

    scale: tuple[float, float] = (0.2, 1.0)  # area of the random crop, as a share of the picture
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of the crop, beside that of the input
    flip: float = 0.5  # chance of a horizontal flip
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # how the crop is resized

    def __post_init__(self):
        within(self, "scale", 0, 1, above=True)
        within(self, "ratio", 0, above=True)
        within(self, "flip", 0, 1)
        in_order(self, "scale ratio")


@dataclass(frozen=True)
class Crops:
    """Several random views of a picture while it trains: two global ones and some small local ones, each recoloured by itself.

    Three chances are those at the first global crop, the second and every local one.
    """

    global_scale: tuple[float, float] = (0.4, 1.0)  # area of a global crop, as a share of the picture
    local_scale: tuple[float, float] = (0.05, 0.4)  # area of a local crop
    local_crops: int = 0  # local crops of a picture, beside the two global ones
    local_size: tuple[int, int] | None = None  # height and width of a local crop (one number: square); not given: 3/7 of the input, in whole patches
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of a crop, beside that of the input
    flip: float = 0.5  # chance of a horizontal flip
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # how a crop is resized
    jitter: float = 0.8  # chance that brightness, contrast, saturation and hue change, in random order
    jitter_by: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # how much, each
    grey: float = 0.2  # chance that the colours are lost
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)  # three chances of a Gaussian blur of .1 to 2 pixels at an input of 224, less at smaller ones
    blur_kernel: Literal["whole", "9 taps", "a tenth"] = "whole"  # the blur's width in pixels: all it has, nine, or about a tenth of the picture
    solarise: tuple[float, float, float] = (0.0, 0.2, 0.0)  # three chances that the brighter half of the values is inverted

    def __post_init__(self):
        within(self, "global_scale local_scale", 0, 1, above=True)
        within(self, "ratio", 0, above=True)
        within(self, "local_crops jitter_by", 0)
        within(self, "local_size", 1)
        within(self, "flip jitter grey blur solarise", 0, 1)
        in_order(self, "global_scale local_scale ratio")


@dataclass(frozen=True)
class Trunk:
    """Which network looks at which input. What is None is chosen for the data and the machine, and said."""

    model: str | None = None  # any timm VisionTransformer, Eva, Beit, Swin, Hiera or ConvNeXt name; not given: chosen for the data and machine
    patch_size: int | None = None  # pixels a patch side; not given: the model's own
    width: int | None = None  # another width of its blocks, for networks smaller than any that has a name (timm's embed_dim)
    depth: int | None = None  # another number of blocks
    heads: int | None = None  # another number of attention heads
    img_size: tuple[int, int] | None = None  # height and width of the input (one number: square)
    in_chans: int | None = None  # channels of the input; not given: what the data has
    init: str | None = None  # start from these weights: a run, an encoder or checkpoint file, timm:NAME
    activation_checkpointing: bool = False  # recompute activations in the backward pass: less memory, a third more time

    def __post_init__(self):
        within(self, "patch_size width depth heads img_size in_chans", 1)
        if self.patch_size and self.img_size and any(side % self.patch_size for side in self.img_size):
            raise ValueError(f"img_size {self.img_size[0]} {self.img_size[1]} is no multiple of patch_size {self.patch_size}")


@dataclass(frozen=True)
class Labelled:
    """What is known of the pictures and where it stands: part of the settings of every command that reads labels."""

    labels: Any | None = None  # CSV, TSV or parquet with columns path and label, maybe group and split; not given: class folders, or what DATA holds
    label: str | None = None  # the column that holds the labels, or several with commas between them
    group: str | None = None  # the column of patients, scenes or videos, which never stand on both sides of a split; not given: group
    split: str | None = None  # the column that says train, val or test; COLUMN=VALUE: the pictures with that value judge; -: none
    task: Literal["auto", "classes", "tags", "numbers"] = "auto"  # one class a picture, several tags, or quantities; auto: told from the values, and said


@dataclass(frozen=True)
class Start:
    """Which encoder is trained further, on which input."""

    encoder: str | None = None  # the encoder to begin with: a run, an encoder or checkpoint file, timm:NAME or random:NAME
    scratch: bool = False  # the same network with fresh weights: what the labels teach without pre-training
    paper: bool = False  # the published settings for this width, however few the pictures are
    img_size: tuple[int, int] | None = None  # height and width of the input (one number: square); not given: the encoder's own
    patch_size: int | None = None  # pixels a patch side, of random:NAME
    in_chans: int | None = None  # channels of the input, of random:NAME; not given: what the data has
    activation_checkpointing: bool = False  # recompute activations in the backward pass: less memory, a third more time

    def __post_init__(self):
        within(self, "patch_size img_size in_chans", 1)


@dataclass(frozen=True)
class Lessons(Labelled):
    """The labelled pictures that an encoder is trained further on."""

    val: Any | None = None  # labelled pictures to judge by; not given: those of the split column, of val/ folders, or a fifth of DATA, kept apart
    shots: int | None = None  # learn from this many pictures of each class only
    share: float | None = None  # learn from this share of each class only: .01, or 1%
    subset: int = 0  # which of the subsets of that size
    max_bad_share: float = 0.05  # stop when more than this share of the samples is unreadable
    tile: int | None = None  # read pictures that are larger by windows of this side, a random one each time; not given: as the encoder trained
    window: Window | None = None  # grey values from black to white where there are more than 8 bits; not given: as the encoder trained
    workers: int | None = None  # processes that read and crop; not given: chosen for the machine

    def __post_init__(self):
        within(self, "share", 0, 1, above=True)
        within(self, "max_bad_share", 0, 1)
        within(self, "shots tile", 1)
        check_window(self.window)
        within(self, "subset workers", 0)
        if self.shots is not None and self.share is not None:
            raise ValueError("shots and share both say how many pictures teach: give one of them")


@dataclass(frozen=True)
class Input(Labelled):
    """What is read, and how the numbers in it become the network's."""

    captions: str | None = None  # JSON lines, CSV, TSV or parquet with paths and captions, for methods that read them (modern_mae); not given: captions.jsonl in DATA, or a .txt beside each picture
    normalize: Literal["measured", "imagenet"] = "measured"  # per-channel mean and std: measured once on the data, or ImageNet's
    max_bad_share: float = 0.05  # stop when more than this share of the samples is unreadable
    tile: int | None = None  # read pictures that are larger by windows of this side, a random one each time
    window: Window | None = None  # grey values from black to white where there are more than 8 bits: CENTRE WIDTH, lung, soft, bone …, file or measured
    workers: int | None = None  # processes that read and crop; not given: chosen for the machine

    def __post_init__(self):
        within(self, "max_bad_share", 0, 1)
        within(self, "tile", 1)
        within(self, "workers", 0)
        check_window(self.window)


@dataclass(frozen=True)
class Train:
    """One run of the loop: length, optimiser, machine. A method's `paper` is one of these."""

    epochs: float | None = None  # length of the run in passes over the data
    steps: int | None = None  # length of the run in optimiser steps
    time: str | None = None  # length of the run as wall-clock time: 90s, 30m, 8h, 2d
    batch_size: int | None = None  # pictures an optimiser step, over all processes and accumulation
    accumulate: int = 1  # parts in which a step's batch is computed, to save memory
    lr: float | None = None  # the absolute peak learning rate, at the effective batch
    base_lr: float = 1.5e-4  # learning rate at 256 pictures of the effective batch; --lr goes before it
    lr_by: Literal["linear", "root"] = "linear"  # how base_lr grows with the effective batch: as it, or as its square root
    min_lr: float = 0.0  # where the cosine ends
    encoder_rate: float | None = None  # what the encoder's learning rate is multiplied by; not given: .1 with --init, else 1
    warmup_epochs: float = 40.0  # epochs of linear warm-up; never more than 10 % of the run
    weight_decay: float = 0.05  # of matrices; biases, norms and other vectors have none
    weight_decay_end: float | None = None  # cosine from weight_decay to this over the run; not given: constant
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's
    eps: float = 1e-8  # AdamW's
    clip: float | None = None  # largest gradient norm; not given: no clipping
    clip_per: Literal["all", "module", "tensor"] = "all"  # the norm is of all gradients together, of each top module, or of each tensor
    seed: int = 0  # of everything random
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    devices: int = 1  # devices (on the CPU: processes) on each machine
    nodes: int = 1  # machines
    strategy: Literal["auto", "ddp"] = "auto"  # how several processes share the work: ddp, which auto takes too
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"  # auto: what the hardware is fast at
    compile: Literal["auto", "yes", "no"] = "auto"  # torch.compile; auto: on CUDA
    checkpoint_every: int | None = None  # steps between checkpoints; not given: about every five minutes
    keep: int = 3  # checkpoints kept
    monitor_every: int | None = None  # steps between kNN, feature rank and pictures; not given: ten times a run

    def __post_init__(self):
        within(self, "epochs lr base_lr eps clip", 0, above=True)
        within(self, "steps batch_size accumulate devices nodes checkpoint_every keep monitor_every", 1)
        within(self, "min_lr encoder_rate warmup_epochs weight_decay weight_decay_end betas seed", 0)
        if max(self.betas) >= 1:
            raise ValueError(f"betas must be less than 1, got {max(self.betas):g}")
        if self.time is not None:
            seconds(self.time)


def evaluation_share(img_size: tuple[int, int]) -> float:
    """Side of the evaluation's centre crop over the resized shorter side (MAE, and the field): .875 up to 224 px, 1 above."""
    return 0.875 if max(img_size) <= 224 else 1.0
