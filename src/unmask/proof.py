"""The smallest table of proof: several methods on the quickstart's photographs, one after another, each beside its own random encoder.

Whoever doubts a table makes this one on their own machine. Same pictures, network, steps and rate for all; only methods that need no trained
encoder or vocabulary before them. It tells learning from not learning at this length, and says nothing about which method is best.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.quickstart import MAE, STEPS, Figures, cell, measure, photographs, pixels, pretrain, refuse

OWN: Mapping[str, Mapping[str, Any]] = {  # the methods of the table, and how small their decoders are
    "mae": MAE,
    "crossmae": {"method.decoder_width": 64, "method.decoder_depth": 2},
    "pixio": {"method.decoder_width": 64, "method.decoder_depth": 2},
    "maskfeat": {},
    "simmim": {},
}


def run(out: str | Path = "unmask-proof", seed: int = 0, steps: int | None = None) -> dict[str, Any]:
    """Train and measure each method in the folder `out`; the figures by method. Called again it goes on where it stopped."""
    out, steps = Path(out), steps or STEPS
    refuse(out, seed, steps, {"photographs", *OWN}, *OWN)
    print(f"{', '.join(OWN)}: one after another on the quickstart's photographs, {steps} steps each; every run says before its first step how long it will take. Everything goes to {out}/\n")
    train, val = photographs(out / "photographs", seed)
    found: dict[str, dict[str, Figures]] = {}
    for method, own in OWN.items():
        pretrain(out / method, train, seed, steps, method, own)
        found[method] = measure(out / method, train, val, seed)
    beside = pixels(train, val, seed)
    print(_table(found, beside))
    return {"figures": found | {"pixel mean and std": {"trained encoder": beside}}, "out": str(out)}


def _table(found: Mapping[str, Mapping[str, Figures]], beside: Figures) -> str:
    """A line for each method: both protocols, the random encoder in front of the trained one, and whether it learned."""
    lines = ["\nRight answers in percent on crops of the unseen parts (95 % interval):\n", f"{'':20}{'kNN, random':<22}{'trained':<22}{'linear, random':<22}{'trained':<22}learned"]
    for method, figures in found.items():
        pairs = [(figures["random encoder"][protocol], figures["trained encoder"][protocol]) for protocol in ("knn", "linear")]
        learned = any(trained["interval"][0] > random["interval"][1] for random, trained in pairs)
        lines.append(f"{method:<20}{''.join(cell(row).ljust(22) for pair in pairs for row in pair)}{'yes' if learned else 'not by this'}")
    lines.append(f"{'pixel mean and std':<20}{'':22}{cell(beside['knn']):<22}{'':22}{cell(beside['linear'])}")
    return "\n".join([*lines, "", "Learned: above its random encoder beyond both intervals, by kNN or by the linear probe. One seed; crops of one photograph overlap."])
