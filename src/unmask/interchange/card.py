"""The model card: README.md of an exported folder, as the Hugging Face hub reads it.

It says what the files of the run say, and nothing else: no guess at a licence, no path of a machine.
Source of the front matter: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from timm.models.hiera import Hiera
from torch import nn

from unmask import __version__
from unmask.errors import Refused
from unmask.interchange.timm import Encoder
from unmask.interchange.witness import small
from unmask.options import load

CARD = "README.md"
MODES = {1: "L", 3: "RGB"}  # Pillow's words for grey and colour
SETTINGS = {  # of config.yaml: what a reader wants to know, in this order
    "steps": "optimiser steps",
    "epochs": "epochs",
    "batch_size": "batch size",
    "accumulate": "accumulated parts a step",
    "base_lr": "learning rate per 256 pictures",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "precision": "precision",
    "seed": "seed",
    "init": "started from",
    "encoder": "started from",
    "views.scale": "area of random crops",
    "views.flip": "chance of a flip",
}
FOOT = "<!-- written by unmask: {digest} -->\n"
TEXT = """\
# {name}

{summary}

## Use

```python
{use}```

{tokens}

## Trained on

{data}

## How

{settings}

## Evaluations

{evaluations}

## Limits

{limits}

"""


@dataclass(frozen=True)
class Facts:
    """What is known of how an encoder came to be, as the files of its run say it; without a run, nothing."""

    license: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)  # config.yaml
    data: Mapping[str, Any] = field(default_factory=dict)  # data.json
    evaluations: Sequence[Mapping[str, Any]] = ()
    step: int | None = None

    def __post_init__(self):
        if self.license is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", self.license):
            raise Refused(f"--license {self.license}: give the licence's short name, such as apache-2.0, mit or cc-by-4.0")

    @classmethod
    def of(cls, run: str | Path, license: str | None = None) -> Facts:
        """The facts in a run folder; of anything else only the licence."""
        folder = Path(run)
        if not (folder / "config.yaml").is_file():
            return cls(license)
        data, status = (_json((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {} for name in ("data.json", "status.json"))
        rows = folder / "evaluations.jsonl"
        evaluations = [row for line in rows.read_text(encoding="utf-8").splitlines() if (row := _json(line))] if rows.is_file() else []
        return cls(license, load(folder / "config.yaml"), data, evaluations, status.get("step"))

    @property
    def method(self) -> str | None:
        """The method's name, without the place of a file of one's own."""
        return name_of(str(self.config["method"])).rpartition(":")[2] if "method" in self.config else None

    @property
    def size(self) -> tuple[int, int] | None:
        """Median height and width of the pictures."""
        size = self.data.get("statistics", {}).get("size")
        return tuple(size) if size else None

    def card(self, encoder: Encoder, library: str, use: str, difference: float, name: str, notes: Sequence[str] = ()) -> str:
        """The text of README.md; `use`: lines of Python that run beside the folder `name`; `notes`: further limits."""
        text = front(library, self.license, self.method) + TEXT.format(
            name=name,
            summary=self.summary(encoder),
            use=use,
            tokens=tokens_of(encoder),
            data=self.pictures(encoder),
            settings=self.settings(encoder),
            evaluations=self.measured(),
            limits=self.limits(encoder, library, difference, notes),
        )
        return text + FOOT.format(digest=digest(text))

    def summary(self, encoder: Encoder) -> str:
        weights = sum(weight.numel() for weight in encoder.model.parameters())
        what = f"An image encoder ({encoder.name}, {weights / 1e6:.1f} million weights)"
        if self.method is None:
            return f"{what}; its weights are those of {name_of(encoder.source)}. Exported by unmask {__version__}."
        if self.config.get("scratch"):
            return f"{what}, trained from scratch on labels ({self.method}) with unmask {__version__}."
        if self.method == "attentive":
            return f"{what}: the encoder that a head was trained on with labels ({self.method}) by unmask {__version__}, itself unchanged by that."
        if "encoder" in self.config:
            return f"{what}, trained further on labels ({self.method}) with unmask {__version__}."
        return f"{what}, pre-trained without labels by {self.method.upper()} with unmask {__version__}."

    def pictures(self, encoder: Encoder) -> str:
        rows = {"pictures": f"{self.data['count']:,}"} if "count" in self.data else {}
        if "data" in self.config:
            rows = {"data": f"`{name_of(str(self.config['data']))}`"} | rows
        height, width = encoder.img_size
        rows |= {"input": f"{height} × {width} pixels, {encoder.in_chans} channel{'s' * (encoder.in_chans > 1)}", "scaling": scaling(encoder)}
        return table(rows)

    def settings(self, encoder: Encoder) -> str:
        if not self.config:
            return "The settings are not known: this is no run of unmask."
        rows: dict[str, Any] = {"method": self.method, "network": encoder.name, "patch": f"{'×'.join(map(str, encoder.patch_size or ()))} pixels"}
        unsaid = {"encoder"} if self.config.get("scratch") else set()  # of that one only the network was taken
        rows |= {word: self.config[key] for key, word in SETTINGS.items() if self.config.get(key) is not None and key not in unsaid}
        rows |= {key.removeprefix("method.").replace("_", " "): value for key, value in self.config.items() if key.startswith("method.")}
        if self.step is not None:
            rows["optimiser steps"] = self.step
        return table({key: name_of(str(value)) if key == "started from" else value for key, value in rows.items() if value is not None})

    def measured(self) -> str:
        """The rows of evaluations.jsonl, the newest of each kind, with their intervals."""
        newest = {tuple(str(row.get(key)) for key in ("protocol", "random", "pooling", "n_train", "n_val", "img_size")): row for row in self.evaluations}
        if not newest:
            return "None: nothing was measured before this card was written (`unmask evaluate knn RUN LABELLED`)."
        lines = ["| protocol | weights | metric | 95 % interval | pictures to learn from, to judge by | pooling | input |", "|---|---|---|---|---|---|---|"]
        return "\n".join(lines + [evaluation(row) for row in newest.values()])

    def limits(self, encoder: Encoder, library: str, difference: float, notes: Sequence[str]) -> str:
        height, width = encoder.img_size
        known = "It was trained on the pictures above, at {} × {} pixels: on others, measure it before you rely on it."
        unknown = "On which pictures it was trained is not known here; it looks at {} × {} pixels: measure it on yours before you rely on it."
        lines = [
            (known if "data" in self.config else unknown).format(height, width),
            "Features are not answers: a classifier on top has to be taught and tested on labelled pictures.",
            "What is unbalanced or missing in the pictures is so in the features; nobody has checked them for that.",
            f"Opened by {library}, its features differ by at most {small(difference)} from the trained encoder's.",
            *(f"{note[0].upper()}{note[1:]}." for note in notes),
        ]
        if self.license is None:
            lines.append("No licence was stated when this card was written.")
        start = origin(self.config) if self.config else encoder.source
        if start and not start.startswith("random:"):
            lines.append(f"It started from weights that were published elsewhere ({name_of(start)}): their licence may bind it too. MAE's own files, for one, are CC BY-NC 4.0.")
        return "\n".join(f"- {line}" for line in lines)


def origin(config: Mapping[str, Any], depth: int = 8) -> str | None:
    """The word of the weights that a run began with, or the run it began with; None where all was drawn and trained here."""
    word = config.get("init") or (None if config.get("scratch") else config.get("encoder"))
    if not word or str(word).startswith("random:"):
        return None
    place = Path(str(word)).expanduser()
    runs = [folder for folder in (place, *place.parents[:3]) if (folder / "config.yaml").is_file()]
    return origin(load(runs[0] / "config.yaml"), depth - 1) if runs and depth else str(word)


def front(library: str, license: str | None, method: str | None) -> str:
    """The YAML that the hub reads."""
    tags = ["unmask", "masked-image-modeling", "self-supervised-learning", "vision-transformer", *([method.lower()] if method else [])]
    lines = [f"library_name: {library}", "pipeline_tag: image-feature-extraction", *([f"license: {license}"] if license else []), "tags:"]
    return "\n".join(["---", *lines, *(f"- {json.dumps(tag)}" for tag in tags), "---", "", ""])


def evaluation(row: Mapping[str, Any]) -> str:
    """One line of the table: whatever protocol and metric the row names."""
    metric = str(row.get("metric", "top1"))
    value, unit = row.get(metric), " %" if metric == "top1" else ""
    shown = f"{metric} {value:.4g}{unit}" if isinstance(value, int | float) else metric
    low, high = row.get("interval") or (None, None)
    interval = f"{low:.4g} to {high:.4g}" if isinstance(low, int | float) and isinstance(high, int | float) else "not known"
    counts = f"{row.get('n_train', '?')}, {row.get('n_val', '?')}"
    size = "×".join(map(str, row["img_size"])) if isinstance(row.get("img_size"), list) else "?"
    tuned = row.get("protocol") == "finetune" or row.get("classifier") == "fine-tuned"
    weights = ("from scratch" if tuned else "random") if row.get("random") else "trained"
    cells = [row.get("protocol", "?"), weights, shown, interval, counts, row.get("pooling", "?"), size]
    return "| " + " | ".join(cell(value) for value in cells) + " |"


def scaling(encoder: Encoder) -> str:
    """How stored numbers become the input, in words."""
    if encoder.mean is None or encoder.std is None:
        return "not known"
    low, high = (numbers(value) for value in (encoder.low, encoder.high))
    scaled = "stored numbers / 255" if set(encoder.low) == {0.0} and set(encoder.high) == {255.0} else f"(stored − low) / (high − low), cut to [0, 1]; low {low}; high {high}"
    scaled = "grey values by each DICOM file's own window, 0 to 1" if encoder.window == "file" else scaled
    return f"{scaled}; minus mean {numbers(encoder.mean)}; over std {numbers(encoder.std)}"


def tokens_of(encoder: Encoder) -> str:
    """What the tokens are."""
    prefix = vars(encoder.model).get("num_prefix_tokens")
    if prefix is None or encoder.patch_size is None:
        said = " sorted by place within a mask unit, as timm's Hiera leaves them; `forward_intermediates` gives maps" if isinstance(encoder.model, Hiera) else ""
        return f"It gives the network's feature map{said}."
    place = "before" if isinstance(encoder.model.norm, nn.Identity) else "after"
    rows, columns = (side // patch for side, patch in zip(encoder.img_size, encoder.patch_size))
    first = f"{prefix} token{'s' * (prefix > 1)} of the whole picture first, then " if prefix else ""
    return f"The tokens: {first}{rows} × {columns} patches, row by row, each {encoder.model.num_features} numbers, {place} the final norm."


def ordinary(encoder: Encoder) -> bool:
    """Whether Pillow holds the pictures that it was trained on: 8 bits, grey or colour."""
    return encoder.in_chans in MODES and set(encoder.high) == {255.0} and encoder.mean is not None


def tensor_line(encoder: Encoder) -> str:
    """The line that stands for pictures which Pillow does not hold."""
    return f"x = torch.zeros(1, {encoder.in_chans}, {encoder.img_size[0]}, {encoder.img_size[1]})  # your pictures, scaled as said below"


def name_of(word: str) -> str:
    """What data or weights are called, without the folders of a machine; `hf:owner/name` and `timm:NAME` stay."""
    if re.match(r"(hf|timm|random):", word) or not re.search(r"[/\\]", word):
        return word if len(word) < 80 and not word.startswith("[") else "pictures given in Python"
    return next((part for part in reversed(re.split(r"[/\\]+", word)) if part not in ("", ".", "..", "~")), "pictures")


def table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {cell(value)} |" for key, value in rows.items())])


def cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def refuse_edited(folder: Path) -> None:
    """Refuse to replace a card that a person has edited."""
    path = folder / CARD
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        body, mark, foot = text.rpartition(FOOT.partition("{")[0])
        if not mark or not foot.startswith(digest(body)):
            raise Refused(f"--out {folder} holds a {CARD} that was edited: give a new folder, or take it away first")


def _json(text: str) -> dict[str, Any]:
    """An object of JSON; a line that a kill cut short is none."""
    try:
        row = json.loads(text)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
