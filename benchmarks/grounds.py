"""What the proof stands on: data, networks and lengths (grounds), what is trained on them (entries), and in which order of worth (the queue)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import ROOT

import unmask
from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.splits import parts
from unmask.data.statistics import survey
from unmask.methods import METHODS, TOKENIZERS
from unmask.settings import Views

SHARED = Path(os.environ.get("UNMASK_DATA", ROOT.parent / "shared" / "data"))
DATA = {
    "cifar10": (SHARED / "cifar10-train.parquet", SHARED / "cifar10-test.parquet"),  # 25,000 and 10,000 pictures of 32 px, 10 classes
    "imagenette": (SHARED / "imagenette224.tar" / "train", SHARED / "imagenette224.tar" / "val"),  # 9,469 and 3,925 of 224 px, 10 classes
}
TINY = {"model": "vit_tiny_patch16_224", "width": 96, "depth": 4, "heads": 3}
SMALL = {"model": "vit_tiny_patch16_224", "width": 128, "depth": 6, "heads": 4}
RUNS: dict[tuple[str, str], dict[str, Any]] = {  # what is pre-trained, by data and budget
    ("cifar10", "small"): TINY | {"patch_size": 4, "img_size": (32, 32), "epochs": 4, "batch_size": 128, "lr": 1.5e-3},
    ("imagenette", "small"): TINY | {"patch_size": 8, "img_size": (64, 64), "epochs": 10, "batch_size": 128, "lr": 1.5e-3},
    ("cifar10", "cpu"): SMALL | {"patch_size": 4, "img_size": (32, 32), "epochs": 10, "batch_size": 256, "lr": 2e-3},
    ("imagenette", "cpu"): SMALL | {"patch_size": 8, "img_size": (64, 64), "epochs": 20, "batch_size": 128, "lr": 1.5e-3},
    ("cifar10", "gpu"): {"model": "vit_tiny_patch16_224", "patch_size": 4, "img_size": (32, 32), "epochs": 400, "batch_size": 512, "lr": 1.5e-3},
    ("imagenette", "gpu"): {"model": "vit_small_patch16_224", "img_size": (224, 224), "epochs": 200, "batch_size": 256, "lr": 5e-4},
}
STAGES = {"model": None, "patch_size": None, "depth": None, "heads": None}  # networks of their own, with the patches that fit the pictures
SELF_DISTILLED = {"lr": 1e-3, "views.local_crops": 4, "method.prototypes": 1024, "method.hidden": 256, "method.bottleneck": 64, "method.drop_path": 0.0}
OWN: dict[str, dict[str, Any]] = {  # on a CPU's networks: what a method's parts are called and how small they are
    "mae": {"method.decoder_width": 64, "method.decoder_depth": 1},
    "ijepa": {"method.decoder_width": 48, "method.decoder_depth": 2, "lr": 1e-3},
    "data2vec": {"lr": 1e-3, "method.drop_path": 0.0},
    "aim": {"method.head_width": 192, "method.head_depth": 1},
    "bootmae": {"method.decoder_width": 64, "method.decoder_depth": 1},
    "pixio": {"method.decoder_width": 64, "method.decoder_depth": 2},
    "crossmae": {"method.decoder_width": 64, "method.decoder_depth": 2},
    "milan": {"method.decoder_width": 64, "method.decoder_depth": 1},
    "dino": SELF_DISTILLED,
    "ibot": SELF_DISTILLED,
    "dinov2": SELF_DISTILLED | {"method.patch_prototypes": 1024, "method.layer_decay": 1.0, "method.patch_embed_rate": 1.0},
    "mocov3": {"method.hidden": 256, "method.out": 64},
    "simclr": {"method.hidden": 256, "method.out": 64},
    "mae_ct": {"method.hidden": 256, "method.out": 64, "method.queue": 4096},
    "mae_lite": {"method.decoder_width": 64},
    "cae": {"method.regressor": 2, "method.decoder": 1},
    "adamae": {"method.decoder_width": 64, "method.decoder_depth": 1, "method.dropout": 0.0},
    "hiera_mae": STAGES | {"width": 24, "method.decoder_width": 64, "method.decoder_depth": 1},
    "modern_mae": {"model": "vit_small_plus_patch16_dinov3", "method.decoder_width": 64, "method.decoder_depth": 1},
    "fcmae": STAGES | {"width": 16, "method.decoder_width": 64},
}
VOCABULARIES: dict[str, dict[str, Any]] = {  # on a CPU: how small tokenizers are
    "dvae": {"vocabulary": 512, "hidden": 16, "blocks": 1},
    "vqkd": {"vocabulary": 512, "columns": 16, "decoder_depth": 1},
}
NEEDS: dict[str, tuple[str, str]] = {  # what a method learns from, trained before it on the same pictures: its setting, and whose run
    "eva": ("method.teacher", "mae"),
    "milan": ("method.teacher", "mae"),
    "mae_lite": ("method.teacher", "mae"),
    "distill": ("method.teacher", "mae"),
    "mae_ct": ("init", "mae"),
    "beit": ("method.tokenizer", "dvae"),
    "cae": ("method.tokenizer", "dvae"),
    "beit2": ("method.tokenizer", "vqkd"),
    "vqkd": ("teacher", "mae"),
}
WORTH = ("mae", "ibot", "simmim", "ijepa", "beit", "maskfeat", "data2vec", "dino", "crossmae", "beit2", "eva", "milan", "data2vec2", "bootmae", "cae", "pixio", "aim", "dae", "igpt", "mocov3", "simclr", "mae_ct", "mae_lite", "distill", "adamae", "hiera_mae", "fcmae", "modern_mae", "dinov2")
JUDGED = {"small": (10_000, 5_000)}  # pictures that teach and judge, where a budget does not take all
FEW = 5  # pictures of a class in a dry run


@dataclass(frozen=True)
class Entry:
    """One line of the table: a method with the settings of its ground, or with one thing changed."""

    method: str
    variant: str = ""  # what is changed, as files are called
    question: str = ""  # of the experiment that it belongs to; of none: the method itself
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    learner: str = ""  # what is trained under this name, as file:Class; not given: the method

    def name(self, ground: str) -> str:
        """What its result and its run are called, on a ground of that name."""
        return "-".join(["learn", self.method, *filter(None, [self.variant]), ground]) + (f"-seed{self.seed}" if self.seed else "")


def varied(question: str, setting: str, values: Mapping[str, Any]) -> list[Entry]:
    """The masked autoencoder with one setting at each of the values, by what files call them."""
    return [Entry("mae", variant, question, changes={setting: value}) for variant, value in values.items()]


EXPERIMENTS = (  # what the field has found out about masked autoencoders (arXiv:2111.06377, Tables 1 and Figure 5), asked again here, and what we ask ourselves
    *varied("mask ratio", "method.mask_ratio", {f"ratio{100 * share:g}": share for share in (0.15, 0.4, 0.5, 0.6, 0.85, 0.9)}),
    *varied("target", "method.norm_pix", {"raw": False}),
    *varied("target", "method.target", {"hog": "hog"}),
    *varied("which patches", "method.masking", {"block": "block", "grid": "grid"}),
    *varied("decoder depth", "method.decoder_depth", {f"decoder{depth}": depth for depth in (1, 2, 4, 8)}),
    Entry("mae", "tokens", "mask tokens in the encoder", learner=f"{Path(__file__).with_name('mask_tokens.py')}:MaskTokens"),
    *varied("augmentation", "views.scale", {"whole": (1.0, 1.0)}),
    Entry("dae", "noisier", "how much noise asks for more than the patch itself tells", changes={"method.amount": 2.0}),
    Entry("simmim", "normalised", "what SimMIM asks for: raw pixels, or each patch normalised", changes={"method.norm_pix": True}),
    Entry("data2vec", "instance", "what data2vec's teacher says, without what the whole picture shares", changes={"method.norm": "instance"}),
)


def queue(methods: list[str], seeds: int, experiments: bool) -> list[Entry]:
    """What is to be run, the most telling first: every method, then more seeds of each, then the experiments on these methods."""
    entries = [Entry(method, seed=seed) for seed in range(seeds) for method in methods]
    return entries + [entry for entry in EXPERIMENTS if experiments and entry.method in methods]


@dataclass(frozen=True)
class Ground:
    """What every entry of one call stands on: pictures to learn from and to judge by, settings, and where runs are made."""

    data: str
    budget: str
    train: Path
    val: Path | None
    settings: Mapping[str, Any]
    runs: Path
    seed: int = 0
    workers: int = 0
    longer: str = ""  # another length than the budget's, as files are called
    dry: bool = False

    @property
    def name(self) -> str:
        """Data, budget and length, as files are called."""
        return f"{self.data if self.data in DATA else Path(self.data).name}-{self.budget}{self.longer}" + "-dry" * self.dry

    @cached_property
    def count(self) -> int:
        """Pictures that are learned from without labels."""
        return len(open_source(str(self.train)))

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def run(self, entry: Entry) -> Path:
        return self.runs / entry.name(self.name)

    def planned(self, entry: Entry) -> dict[str, Any]:
        """All settings of an entry but what it learns from."""
        name, sizes = entry.method, self.settings
        if name in TOKENIZERS:
            taken = ("img_size", "epochs", "steps", "batch_size", *(("model", "width", "depth", "heads", "patch_size") if name == "vqkd" else ()))
            own = {key: sizes[key] for key in taken if key in sizes} | {"lr": 1e-3} | (VOCABULARIES[name] if self.budget != "gpu" else {})
            own |= {"stride": min(8, sizes.get("patch_size", 8))} if name == "dvae" else {}
        else:
            own = dict(sizes) | (OWN.get(name, {}) if self.budget != "gpu" else {}) | dict(entry.changes)
        if self.dry:
            own = {key: value for key, value in own.items() if key != "epochs"} | {"steps": sizes["steps"], "batch_size": sizes["batch_size"]}
        return own | {"seed": entry.seed, "workers": self.workers}

    def pretrain(self, entry: Entry) -> tuple[dict[str, Any], float]:
        """Make the run and those that it learns from, or go on with them; its settings, and the seconds from its first file to its last, pauses included."""
        settings = self.planned(entry)
        if entry.method in NEEDS:
            setting, source = NEEDS[entry.method]
            before = Entry(source, seed=entry.seed)
            self.pretrain(before)
            settings[setting] = str(self.run(before))
        run = self.run(entry)
        status = run / "status.json"
        state = json.loads(status.read_text(encoding="utf-8"))["status"] if status.is_file() else None
        if state is None:
            (unmask.train_tokenizer if entry.method in TOKENIZERS else unmask.pretrain)(entry.learner or entry.method, str(self.train), run, **settings)
        elif state != "finished":
            unmask.resume(run)
        return settings, (run / "model.safetensors").stat().st_mtime - (run / "config.yaml").stat().st_mtime

    @cached_property
    def halves(self) -> tuple[tuple[Pictures, list[int]], tuple[Pictures, list[int]]]:
        """Pictures and their numbers, that teach and that judge."""
        source = open_source(str(self.train))
        format, size = survey(source, seed=self.seed), self.settings["img_size"]  # as a run measures it
        pictures = Pictures(source, format, Views(), size, self.seed)
        held = Pictures(open_source(str(self.val)), format, Views(), size, self.seed) if self.val else None
        pictures, teach, judging, judge, _ = parts(pictures, held, str(self.train), self.seed)
        most = JUDGED.get(self.budget, (None, None))
        shuffle = np.random.default_rng(self.seed).permutation
        return (pictures, sorted(shuffle(teach)[: most[0]].tolist())), (judging, sorted(shuffle(judge)[: most[1]].tolist()))


def ground(data: str, budget: str, runs: Path, *, seed: int = 0, workers: int = 0, epochs: float | None = None, dry: bool = False) -> Ground:
    """The ground of that name; `dry`: five pictures a class and two steps."""
    train, val = folders(data)
    settings = RUNS[data if data in DATA else "imagenette", budget] | ({"epochs": epochs} if epochs else {})
    if dry:
        name = f"learn-{data if data in DATA else Path(data).name}-dry"
        train, val = few(train, runs / f"{name}-train"), val and few(val, runs / f"{name}-val")
        settings = {key: value for key, value in settings.items() if key != "epochs"} | {"steps": 2, "batch_size": 16}
    return Ground(data, budget, train, val, settings, runs, seed, workers, f"-{epochs:g}-epochs" if epochs else "", dry)


def folders(data: str) -> tuple[Path, Path | None]:
    """The pictures to learn from and those to judge by (None: a fifth of them is kept apart)."""
    if data in DATA:
        return DATA[data]
    train, val = Path(data, "train"), Path(data, "val")
    return (train, val) if train.is_dir() and val.is_dir() else (Path(data), None)


def few(data: Path, folder: Path) -> Path:
    """The first pictures of every class of DATA, as files in class folders."""
    source = open_source(data)
    if source.labels is None or source.labels.kind != "classes":
        raise SystemExit(f"{data} has no labels: class folders are wanted")
    for number, name in enumerate(source.labels.names):
        for index in np.flatnonzero(source.labels.values == number)[:FEW]:
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = source.read(int(index))  # (H, W, 1 or 3)
            Image.fromarray(np.repeat(pixels, 3 // pixels.shape[2], axis=2)).save(path)
    return folder


def chosen(words: list[str]) -> list[str]:
    """The methods that are named, or all of them in order of worth."""
    wrong = [name for name in words if name not in METHODS]
    if wrong:
        raise SystemExit(f"no method {wrong[0]}; there are {', '.join(METHODS)}")
    return words or [*WORTH, *(name for name in METHODS if name not in WORTH)]


def unfinished(entries: list[Entry], ground: Ground, results: Path) -> Iterator[Entry]:
    """Those that have no result yet (of a dry run: all)."""
    return (entry for entry in entries if ground.dry or not (results / f"{entry.name(ground.name)}.json").is_file())
