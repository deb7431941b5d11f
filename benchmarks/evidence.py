"""Write docs/evidence.md from the results of learn.py: every method on the same ground, whichever way it falls. Never edited by hand.

    python benchmarks/evidence.py [--check]

`--check` writes nothing and ends with 1 where the page is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grounds import EXPERIMENTS, NEEDS, chosen
from record import RESULTS, ROOT

from unmask.methods import METHODS

PAGE = ROOT / "docs" / "evidence.md"
CURVES = RESULTS / "curves-{}.svg"
GROUNDS = {  # what each ground is, in the order of the page
    ("imagenette", "gpu"): "Imagenette at 224 px, ViT-S/16, 200 epochs",
    ("cifar10", "gpu"): "CIFAR-10, ViT-Ti with patches of 4, 400 epochs",
    ("cifar10", "cpu"): "CIFAR-10, 6 blocks of width 128, patches of 4, 250,000 pictures seen",
    ("imagenette", "cpu"): "Imagenette at 64 px, 6 blocks of width 128, patches of 8, 189,000 pictures seen",
    ("cifar10", "small"): "CIFAR-10, 4 blocks of width 96, patches of 4, 100,000 pictures seen",
    ("cifar10", "small-12-epochs"): "The same, 300,000 pictures seen: for methods that 100,000 do not teach",
    ("imagenette", "small"): "Imagenette at 64 px, 4 blocks of width 96, patches of 8, 95,000 pictures seen",
}
PUBLISHED: dict[str, tuple[str, str, str, str]] = {  # network and epochs, linear, fine-tuned (ImageNet-1k top-1), where it is said
    "mae": ("ViT-B/16, 1600", "68.0", "83.6", "arXiv:2111.06377, Tables 3 and 11"),
    "simmim": ("ViT-B/16, 800", "56.7", "83.8", "arXiv:2111.09886, Table 6"),
    "beit": ("ViT-B/16, 800", "56.7", "83.2", "arXiv:2106.08254; linear after arXiv:2208.06366"),
    "beit2": ("ViT-B/16, 1600", "80.1", "85.5", "arXiv:2208.06366; taught by CLIP"),
    "maskfeat": ("ViT-B/16, 1600", "", "84.0", "arXiv:2112.09133"),
    "data2vec": ("ViT-B/16, 800", "", "84.2", "arXiv:2202.03555"),
    "data2vec2": ("ViT-B/16, 200", "", "84.5", "arXiv:2212.07525"),
    "bootmae": ("ViT-B/16, 800", "66.1", "84.2", "arXiv:2207.07116"),
    "cae": ("ViT-B/16, 1600", "70.3", "83.9", "arXiv:2202.03026"),
    "ibot": ("ViT-B/16, 400", "79.5", "84.0", "arXiv:2111.07832"),
    "dino": ("ViT-B/16, 400", "78.2", "82.8", "arXiv:2104.14294"),
    "mocov3": ("ViT-B/16, 300", "76.7", "83.2", "arXiv:2104.02057"),
    "hiera_mae": ("Hiera-B, 1600", "", "84.5", "arXiv:2306.00989"),
    "fcmae": ("ConvNeXt V2-B, 1600", "", "84.9", "arXiv:2301.00808"),
    "mae_ct": ("ViT-B/16, MAE and 80", "76.9", "", "arXiv:2304.10520"),
}
DATA_NAMES = {"cifar10": "CIFAR-10", "imagenette": "Imagenette"}
MEANING = {"knn": "kNN", "linear": "linear probe"}


@dataclass(frozen=True)
class Result:
    """What one file of learn.py says."""

    name: str
    entry: dict[str, Any]
    rows: list[dict[str, Any]]
    loss: dict[str, Any]
    settings: dict[str, Any]
    seconds: float
    tokenizer: dict[str, Any] = field(default_factory=dict)

    @property
    def teacher(self) -> str:
        """The method whose encoder, of the same ground, taught this one, itself or its vocabulary; empty: nobody's."""
        source = self.entry["method"]
        while source in NEEDS:
            source = NEEDS[source][1]
        return source if source in METHODS and source != self.entry["method"] else ""

    def best(self, features: str, protocol: str) -> dict[str, Any] | None:
        """Of the rows of these features (a beginning) by this protocol the one with the highest figure, None without any."""
        rows = [row for row in self.rows if row["features"].startswith(features) and row["protocol"] == protocol]
        return max(rows, key=lambda row: row["top1"], default=None)

    @property
    def further(self) -> list[str]:
        """The protocols that train the encoder further."""
        return sorted({row["protocol"] for row in self.rows} - set(MEANING))

    @property
    def pictures(self) -> int:
        """Pictures seen while it was pre-trained, rounded to thousands."""
        return round(self.loss["steps"] * self.settings["batch_size"], -3)

    @property
    def learns(self) -> bool:
        """Whether the trained encoder is above the random ones beyond both 95 % intervals, by kNN or by the linear probe, or, fine-tuned, above from scratch."""
        pairs = [(self.best("trained", protocol), self.best("random", protocol)) for protocol in MEANING]
        pairs += [(self.best("trained", name), self.best("from scratch", name)) for name in self.further]
        return any(one["interval"][0] > other["interval"][1] for one, other in pairs if one and other)


def results(folder: Path = RESULTS) -> list[Result]:
    """All results of learn.py."""
    files = [(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("learn-*.json"))]
    return [Result(name, found["entry"], found["evaluations"], found["loss"], found["settings"], found["pretraining_seconds"], found.get("tokenizer", {})) for name, found in files]


def standing(found: list[Result], method: str) -> str:
    """How far a method is proven, as its class says it: by the result that learned, else by one with a setting changed that did, else by the longest that did not."""
    asked = [result for result in found if result.entry["method"] == method]
    own = [result for result in asked if not result.entry["question"]]
    if not own:
        return "experimental"
    result = max(own, key=lambda result: (result.learns, result.pictures))
    varied = max((one for one in asked if one.entry["question"] and one.learns), key=lambda one: one.pictures, default=None)
    if result.learns or varied is None:
        return f"{'proven' if result.learns else 'experimental'}: {figures(result)} (docs/evidence.md)"
    changed = next(entry.changes for entry in EXPERIMENTS if (entry.method, entry.variant) == (method, varied.entry["variant"]))
    words = " ".join(f"--{name} {value}" for name, value in changed.items())
    return f"experimental as published, {both(result)}; proven with {words}: {figures(varied)} (docs/evidence.md)"


def figures(result: Result) -> str:
    """One run in half a sentence: what it learned from, and what it is worth beside its baselines."""
    tuned = [f"fine-tuned {pair(result, name, below='from scratch')}" for name in result.further if name.startswith("finetune")][:1]
    data = DATA_NAMES.get(result.entry["data"], result.entry["data"])
    return f"{data}, {result.pictures:,} pictures seen, {' and '.join([both(result), *tuned])} %; in brackets random weights{', or from scratch' * bool(tuned)}"


def both(result: Result) -> str:
    return " and ".join(f"{word} {pair(result, protocol)}" for protocol, word in (("knn", "kNN"), ("linear", "linear")))


def figure(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['top1']:.1f}"


def pair(result: Result, protocol: str, above: str = "trained", below: str = "random") -> str:
    """The trained encoder's figure, and in brackets what stands beside it."""
    one, other = result.best(above, protocol), result.best(below, protocol)
    return f"{figure(one)} ({figure(other)})" if one and other else figure(one)


def table(found: list[Result]) -> Iterator[str]:
    """One line for each run; methods without one are unproven."""
    further = sorted({name for result in found for name in result.further})
    yield "| method | seed | kNN (random) | linear probe (random) | " + "".join(f"{name} % of the labels (from scratch) | " for name in further).replace("-", ", ") + "learns | pre-training |"
    yield "|---|---|---|---|" + "---|" * (len(further) + 2)
    named = {result.entry["method"]: [] for result in found}
    for result in found:
        named[result.entry["method"]].append(result)
    for method in chosen([]):
        for result in named.get(method, []):
            more = "".join(f" {pair(result, name, below='from scratch')} |" for name in further)
            yield f"| `{method}` | {result.entry['seed']} | {pair(result, 'knn')} | {pair(result, 'linear')} |{more} {'yes' if result.learns else 'no'} | {result.seconds / 60:.0f} min |"
    for name in ("raw pixels", "channel means and deviations"):
        rows = [result.best(name, protocol) for protocol in MEANING for result in found[:1]]
        if any(rows):
            yield f"| *{name}* | | {figure(rows[0])} | {figure(rows[1])} |{' |' * len(further)} | |"
    taught = [result for result in found if result.teacher and not result.entry["seed"]]
    for name in dict.fromkeys(result.teacher for result in taught):
        pupils = ", ".join(f"`{result.entry['method']}`" for result in taught if result.teacher == name)
        own = ", ".join(both(result) for result in named.get(name, [])[:1])
        yield f"\nTaught by the run of `{name}` in this table, itself trained without labels{f' ({own})' * bool(own)}: {pupils}."
    for result, words in ((result, result.tokenizer) for result in found if result.tokenizer and not result.entry["seed"]):
        last, sizes = words["measured_last"], words["settings"]
        yield f"\n`{result.entry['method']}` names codes of a `{words['method']}` trained before it: {sizes['vocabulary']} codes, of which it uses as many as {last['codes_as_many_as']:.0f} used evenly would be."
    if without := [f"`{method}`" for method in chosen([]) if method not in named]:
        yield f"\nUnproven on this ground: {', '.join(without)}."


def experiments(found: list[Result]) -> Iterator[str]:
    """One table for each question that was asked."""
    for question in dict.fromkeys(entry.question for entry in EXPERIMENTS):
        asked = [result for result in found if result.entry["question"] == question]
        if asked:
            yield f"\n**{question[0].upper()}{question[1:]}**\n\n| variant | kNN | linear probe | pre-training |\n|---|---|---|---|"
            base = [result for result in found if not result.entry["question"] and (result.entry["method"], result.entry["seed"]) == (asked[0].entry["method"], 0)]
            for result in [*base, *asked]:
                yield f"| {result.entry['variant'] or 'as the paper'} | {pair(result, 'knn')} | {pair(result, 'linear')} | {result.seconds / 60:.0f} min |"


def drawing(found: list[Result]) -> str:
    """kNN while training, a small chart for each method, all of one scale: the random encoder is the dashed line."""
    shown = [result for result in found if len(result.loss.get("knn", [])) > 1 and not result.entry["question"] and result.entry["seed"] == 0]
    if not shown:
        return ""
    wide, high, across = 180, 120, 4
    most = max(value for result in shown for _, value in result.loss["knn"])
    parts = []
    for place, result in enumerate(shown):
        left, top = place % across * wide + 14, place // across * high + 24
        last = result.loss["knn"][-1][0]
        points = " ".join(f"{left + step / last * (wide - 30):.1f},{top + 80 - value / most * 76:.1f}" for step, value in result.loss["knn"])
        random = top + 80 - result.loss["measured_last"].get("knn_random", 0) / most * 76
        parts.append(f'<text x="{left}" y="{top - 8}">{result.entry["method"]} {result.loss["knn"][-1][1]:.0f} %</text>')
        parts.append(f'<path d="M{left} {top}v80h{wide - 30}" fill="none" stroke="#999"/><path d="M{left} {random:.1f}h{wide - 30}" stroke="#999" stroke-dasharray="4 3"/>')
        parts.append(f'<polyline points="{points}" fill="none" stroke="#2563a8" stroke-width="2"/>')
    size = f"{across * wide} {-(-len(shown) // across) * high + 6}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'


def page(everything: list[Result]) -> tuple[str, dict[Path, str]]:
    """The page, and the drawings that it shows."""
    lines = [
        "# Evidence",
        "",
        "Made by `python benchmarks/evidence.py` out of `benchmarks/results/`; what is measured and how is said in [its README](../benchmarks/README.md). Every figure is",
        "top-1 in percent on pictures that nothing was learned from. In brackets stands the same network with random weights, or, for fine-tuning, trained from scratch",
        "in the same way. *Learns* says whether one of them is above what stands in its brackets beyond both 95 % intervals. `unproven` means: not run on this ground.",
        "For kNN the better of class token and mean of the patches is shown, of trained and random encoders alike, chosen on the judged pictures; the probe chooses its own",
        "on held-out ones. One run of one seed unless more are listed; short runs tell which methods learn, not which is best.",
        "Random weights are those of a fresh start; what they are worth depends on how a network is told places: beside fixed sine-cosine places stands a higher figure than beside learned",
        "ones, which start near zero. A method can be above its own start and not above another's. kNN of raw pixels, at the foot of each table, is hard to beat on small pictures.",
    ]
    drawings = {}
    unknown = {(result.entry["data"], result.entry["budget"]) for result in everything} - set(GROUNDS)
    if unknown:
        raise SystemExit(f"no words for the ground {' '.join(sorted(unknown)[0])}: add it to GROUNDS")
    for (data, budget), what in GROUNDS.items():
        found = [result for result in everything if (result.entry["data"], result.entry["budget"]) == (data, budget)]
        if not found and budget != "gpu":
            continue
        if not found:
            lines += ["", f"## {what}", "", "Unproven: nothing has been run to the end on this ground."]
            continue
        methods = [result for result in found if not result.entry["question"]]
        lines += ["", f"## {what}", "", *table(methods), *experiments(found)]
        name = f"{data}-{budget}"
        if svg := drawing(methods):
            drawings[Path(str(CURVES).format(name))] = svg
            lines += ["", "kNN while training on a few hundred held-out pictures; dashed: the random encoder.", "", f"![kNN while training](../benchmarks/results/curves-{name}.svg)"]
        pictures = [result for result in methods if (RESULTS / f"{result.name}.png").is_file() and result.entry["seed"] == 0]
        if pictures:
            lines += ["", "<details><summary>What each says of the same hidden patches</summary>", ""]
            lines += [f"{result.entry['method']}:\n\n![{result.entry['method']}](../benchmarks/results/{result.name}.png)\n" for result in pictures]
            lines += ["</details>"]
    lines += ["", "## What the papers report", "", "ImageNet-1k, top-1. Another world: fifty times the pictures, a larger network, hundreds of epochs; nothing above can be set beside it.", ""]
    lines += ["| method | network, epochs | linear probe | fine-tuned | source |", "|---|---|---|---|---|"]
    lines += [f"| `{method}` | {' | '.join(said)} |" for method, said in PUBLISHED.items()]
    lines += [
        "",
        "The nearest neighbour of this project, stable-pretraining, reports for Imagenette with a ViT-S/16 and 200 epochs (its own RESULTS.md of imagenet10, best probe",
        "over the run, another copy of the data, quoted and not run here): MAE 84.1, iBOT 57.9, I-JEPA 34.0, data2vec 26.3, MaskFeat 25.6, SimMIM 22.5, BEiT 15.3 without a tokenizer.",
    ]
    return "\n".join(lines) + "\n", drawings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the page is what the results say")
    words = parser.parse_args()
    text, drawings = page(results())
    files = {PAGE: text} | drawings
    if words.check:
        stale = [str(path.relative_to(ROOT)) for path, content in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != content]
        sys.exit(f"{', '.join(stale)}: not what the results say; python benchmarks/evidence.py writes it" if stale else 0)
    for path, content in files.items():
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
