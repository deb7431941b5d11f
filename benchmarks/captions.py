"""Does a small run find captions and pictures that it has not seen? modern_mae with captions on Flickr8k, recall beside guessing and beside the untrained network.

It learns from the 900 pictures of flickr8k_1k.tar that teach, with one of five captions at a time, and is judged by the 100 that were kept apart: recall@1, @5 and @10
from picture to captions (500) and from caption to pictures (100), each with its 95 % interval over pictures.

    python benchmarks/captions.py [--steps N] [--seed N] [--threads N] [--dry]

Running it again goes on with what is unfinished (in runs/, not under version control). The result goes to benchmarks/results/captions-flickr8k.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from grounds import SHARED
from record import RESULTS, ROOT, keep, machine

import unmask

DATA = SHARED / "flickr8k_1k.tar"
SMALL: dict[str, Any] = {  # what is trained: small, so that minutes on one core are hundreds of epochs
    "model": "vit_small_plus_patch16_dinov3",
    "width": 96,
    "depth": 3,
    "heads": 3,
    "patch_size": 16,
    "img_size": (64, 64),
    "batch_size": 100,
    "lr": 1e-3,
    "weight_decay": 0.1,
    "views.scale": (0.5, 1.0),
    "method.text": "own",
    "method.text_depth": 1,
    "method.text_length": 20,
    "method.embedding": 128,
    "method.decoder_width": 64,
    "method.decoder_depth": 1,
}
STEPS = 2500


def trained(out: Path, settings: dict[str, Any]) -> float:
    """The run at `out`, made or gone on with; the seconds spent here."""
    begin = time.perf_counter()
    if (out / "config.yaml").is_file():
        unmask.resume(out)
    else:
        unmask.pretrain("modern_mae", str(DATA), out=out, **settings)
    return time.perf_counter() - begin


def show(name: str, row: dict[str, Any]) -> None:
    for way, words in (("image_to_text", "picture → captions"), ("text_to_image", "caption → pictures")):
        parts = []
        for rank, value in row[way].items():
            low, high = row[f"{way}_interval"][rank]
            parts.append(f"{rank} {value:5.1f} ({low:.1f} to {high:.1f}; guessing {row[f'{way}_chance'][rank]:.1f})")
        print(f"  {name:10s}{words:20s}{', '.join(parts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads; not given: torch's choice")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--dry", action="store_true", help="two steps")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders are made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the result goes")
    words = parser.parse_args()
    if words.threads:
        torch.set_num_threads(words.threads)
    name = "captions-flickr8k" + (f"-seed{words.seed}" if words.seed else "")
    settings = SMALL | {"steps": 2 if words.dry else words.steps, "seed": words.seed, "workers": words.workers}
    run = words.runs.resolve() / (name + "-dry" * words.dry)
    seconds = trained(run, settings)
    rows = {who: unmask.evaluate("retrieval", run, str(DATA), random=who == "untrained", workers=words.workers) for who in ("trained", "untrained")}
    losses = [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) if row.get("loss") is not None]
    told = {key: {k: v for k, v in row.items() if k != "encoder"} for key, row in rows.items()}
    found = {"data": DATA.name, "settings": {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}, "seconds": round(seconds), "losses": [losses[0], losses[-1]]}
    path = keep(name + "-dry" * words.dry, found | {"figures": told, "machine": machine("cuda" if torch.cuda.is_available() else "cpu")}, words.out)
    for who, row in rows.items():
        show(who, row)
    print(path)


if __name__ == "__main__":
    main()
