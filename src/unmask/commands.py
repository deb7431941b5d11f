"""The table of commands: each with the words it wants, its settings and the verb behind it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unmask import api, settings
from unmask.api import asked, give, measure, see, train, transfer
from unmask.api.compare import Compare
from unmask.api.neighbours import Search
from unmask.encoders import names
from unmask.errors import Refused
from unmask.methods import METHODS, TOKENIZERS
from unmask.methods.statement import known
from unmask.options import suggestion
from unmask.settings import within


@dataclass(frozen=True)
class Said:
    """What every command takes."""

    json: bool = False  # stdout holds nothing but one JSON object; everything else goes to stderr
    quiet: bool = False  # say nothing but the result and what goes wrong


@dataclass(frozen=True)
class Command:
    """A command: the words it wants, its settings, and the verb that is called with both."""

    places: str  # its words in order; one that ends in … takes all that are left, one in brackets may be absent
    says: str
    verb: Callable[..., Any]
    settings: tuple[type, ...] = ()
    first: str = ""  # the verb's first argument, where several commands share it


@dataclass(frozen=True)
class Run:
    """Where a run is written and what it is read from."""

    out: str | None = None  # the folder to make; a non-empty one is refused
    config: str | None = None  # a YAML file of settings: METHOD, DATA and any option; what is typed goes above it


@dataclass(frozen=True)
class Again:
    """How a run goes on."""

    force: bool = False  # take settings that differ from the run's own: the result is then no longer the uninterrupted run's


@dataclass(frozen=True)
class Quickstart:
    """The embedded default."""

    out: str | None = None  # the folder to make, unmask-quickstart or unmask-proof; with the same one again it goes on where it stopped
    seed: int = 0  # of the crops and of everything else random
    steps: int = 400  # length of a run in optimiser steps
    proof: bool = False  # instead, pre-train several methods one after another and show which of them learn (several times as long)

    def __post_init__(self):
        within(self, "seed", 0)
        within(self, "steps", 1)


def quickstart(proof: bool = False, out: str | None = None, **settings: Any) -> Any:
    """The embedded default, or the smallest table of proof."""
    from unmask import proof as table
    from unmask import quickstart as embedded

    return table.run(out or "unmask-proof", **settings) if proof else embedded.run(out or "unmask-quickstart", **settings)


def describe(name: str) -> str:
    """A method in a few lines."""
    said = vars(known(name))
    row = dict(zip(("tokens", "masking", "masked patches are", "decoder", "target"), said.get("row", ())))
    lines = [f"{name}: {said['sentence']}", f"{said['source']}; standing: {said.get('standing', 'experimental')}"]
    lines += ["; ".join(f"{key} {value}" for key, value in row.items() if value != "–")] if row else []
    return "\n    ".join(lines)


def show_methods() -> dict[str, str]:
    """Every method's sentence, paper and standing."""
    print("\n".join(describe(name) for name in METHODS))
    print("\nVocabularies, for `unmask tokenizer train`:\n" + "\n".join(describe(name) for name in TOKENIZERS))
    print("\nunmask pretrain METHOD --help lists a method's settings; your own method is my_method.py:Name or package.module:Name")
    return {name: describe(name) for name in METHODS}


def show_views(method: str | None, data: str, **settings: Any) -> Any:
    """The views that a method trains on."""
    return api.show_views(data, method, **settings)


def show_models(word: str | None = None) -> dict[str, list[str]]:
    """The networks that can be pre-trained, without asking timm or torch."""
    found = [name for name in names.trainable() if (word or "") in name]
    if not found:
        raise Refused(f"no network's name holds '{word}'{suggestion(word or '', names.trainable())}")
    print("\n".join(found))
    print(SIZES if word is None else f"{len(found)} networks", file=sys.stderr)
    return {"models": found}


SIZES = """
These are timm's plain vision transformers (VisionTransformer, Eva, Beit), and Swin, Hiera and ConvNeXt. The usual ones by size:
  vit_tiny_patch16_224    5.5 M weights    vit_base_patch16_224   85.8 M    vit_huge_patch14_224  630.8 M
  vit_small_patch16_224  21.7 M weights    vit_large_patch16_224 303.3 M
--img_size, --patch_size and --in_chans change the input of any of them: the sizes in the names are only defaults."""
MEASURE = (measure.Measure, asked.Look)
RUN = (settings.Trunk, settings.Input, settings.Train)
COMMANDS = {
    "quickstart": Command("", "train on real photographs that need no download, and show everything once (a few minutes)", quickstart, (Quickstart,)),
    "pretrain": Command("[METHOD] [DATA]", "pre-train an encoder: any folder of pictures in, a proven encoder out", api.pretrain, (Run, *RUN)),
    "tokenizer train": Command("[METHOD] [DATA]", "train a vocabulary for beit, cae and beit2: dvae (of picture squares) or vqkd (of a teacher's features)", api.train_tokenizer, (Run, *RUN)),
    "distill": Command("TEACHER DATA", "train a small encoder to say or see what a larger one does (a run)", api.distill, (Run, train.Lesson, *RUN)),
    "resume": Command("RUN", "go on exactly where a run stopped", api.resume, (Again, *RUN)),
    "evaluate knn": Command("ENCODER DATA", "are pictures of a class near each other? (no training)", api.evaluate, (*MEASURE, measure.Neighbours), "knn"),
    "evaluate linear": Command("ENCODER DATA", "can a linear map tell the classes from frozen features?", api.evaluate, (*MEASURE, measure.Linear), "linear"),
    "evaluate layers": Command("ENCODER DATA", "which block's output tells most? A probe of each", api.evaluate, (*MEASURE, measure.Layers), "layers"),
    "evaluate attentive": Command("[ENCODER] [DATA]", "train a head that learns where to look on the frozen encoder (a run)", api.evaluate, (Run, transfer.Fresh), "attentive"),
    "evaluate lowshot": Command("ENCODER DATA", "learn from a few pictures of each class, several times", api.evaluate, (*MEASURE, transfer.Lowshot), "lowshot"),
    "evaluate finetune": Command("[ENCODER] [DATA]", "train an encoder further on labels, whole or its last blocks (a run)", api.evaluate, (Run, transfer.Fresh), "finetune"),
    "evaluate retrieval": Command("RUN DATA", "does a run that read captions find the caption of a picture, and the picture of a caption?", api.evaluate, (*MEASURE, measure.Retrieval), "retrieval"),
    "evaluate zeroshot": Command("RUN DATA", "does a run that read captions know classes by their names alone?", api.evaluate, (*MEASURE, measure.ZeroShot), "zeroshot"),
    "compare": Command("DATA ENCODER…", "which encoder is better here? one protocol for all, with intervals and a verdict in words", api.compare, (Compare, asked.Look)),
    "reconstruct": Command("RUN IMAGES…", "draw what the network imagines behind the mask", api.reconstruct, (see.Reconstruct,)),
    "embed": Command("ENCODER IMAGES…", "write the features of pictures to .npz or .parquet", api.embed, (measure.Embed, asked.Look)),
    "neighbours": Command("ENCODER DATA", "the nearest pictures of --query; without it near-duplicates and outliers", api.neighbours, (Search, asked.Look)),
    "export": Command("ENCODER", "write the encoder for timm, transformers, ONNX, or as one plain file", api.export, (give.Export,)),
    "inspect": Command("DATA", "count and check pictures: sizes, channels, statistics, bad files, duplicates", api.inspect, (see.Inspect,)),
    "report": Command("RUN…", "write report.html: curves, pictures, evaluations; several runs side by side", api.report, (see.Report,)),
    "runs": Command("FOLDER", "every run below a folder: state, best figures, size, and the command that goes on", api.runs),
    "methods": Command("", "the methods, their papers, and how far each is proven", show_methods),
    "models": Command("[WORD]", "the networks that can be pre-trained, or those whose name holds WORD", show_models),
    "show mask": Command("STRATEGY", "draw a strategy (random, block, inverse_block, multi_block, grid, prefix, attention), or what a METHOD or a RUN hides, and its law", api.show_mask, (see.ShowMask,)),
    "show attention": Command("ENCODER IMAGES…", "draw where the encoder looks", api.show_encoder, (see.ShowEncoder, asked.Look), "attention"),
    "show features": Command("ENCODER IMAGES…", "draw patch features as colours (principal components)", api.show_encoder, (see.ShowEncoder, asked.Look), "features"),
    "show weights": Command("ENCODER", "say what a file of weights holds, and every name that is left out", api.show_weights),
    "show views": Command("[METHOD] DATA", "draw the views that METHOD trains on (not given: one crop, as mae)", show_views, (see.ShowViews,)),
}
SEVERAL = {name.split()[0] for name in COMMANDS if " " in name}
