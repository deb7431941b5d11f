"""Which block's output tells most? A probe of each, the block chosen on pictures that do not judge.

For masked encoders the last block is often not the best: it already works for the decoder.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from unmask.data.loader import Pictures
from unmask.data.splits import parts
from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable, pool_blocks, tabulate
from unmask.evaluation.measure import by_knn, circumstances, figures, fitted
from unmask.evaluation.metrics import METRIC, shown, worth
from unmask.evaluation.probe import HELD_OUT, shares
from unmask.interchange.timm import Encoder

KEPT = ("metric", "interval", "top1", "auroc", "r2", "map", "mae", "balanced_accuracy")  # of each block's figures


def measure(
    protocol: str,
    encoder: Encoder,
    pictures: Pictures,
    val: Pictures | None,
    *,
    name: str,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    by: str = "linear",
    pooling: str = "auto",
    **how: Any,
) -> dict[str, Any]:
    """The figures of the block that is chosen on a held-out part of the teaching pictures, and `layers`: those of every block.

    `by`: knn (k, temperature), linear (epochs) or both, of which linear chooses.
    """
    start = time.perf_counter()
    pictures, teach, judging, judge, chosen = parts(pictures, val, name, seed)
    labels = pictures.labels
    assert labels is not None  # `parts` has refused it
    print("\n".join([*labels.rows(teach).said(), f"judged by {len(judge):,} pictures: {chosen}"]))
    model = encoder.model.eval().to(device)
    train, test = (
        tabulate(lambda x: pool_blocks(model, x.to(device)), seen, ids, batch_size, workers, title)
        for seen, ids, title in ((pictures, teach, "pictures to learn from"), (judging, judge, "pictures to judge by"))
    )
    wanted = [key for key in train.parts if pooling in ("auto", key.split("@")[0])]
    if not wanted:
        raise Refused(f"this encoder has no pooling '{pooling}': there are {', '.join(sorted({key.split('@')[0] for key in train.parts}))}")
    rows, found = [], {}
    for probe in ("knn", "linear") if by == "both" else (by,):
        for key in wanted:
            held, answers, said = _probed(probe, train, test, key, len(labels.names), seed, how)
            figure = figures(answers, test, labels, seed)
            place = {"block": int(key.split("@")[1]), "pooling": key.split("@")[0], "by": probe}
            rows.append({**place, "held_out": round(held, 4), **{name: figure[name] for name in KEPT if name in figure}})
            found[probe, key] = figure | said | place | {"held_out": round(held, 4)}
            print(_line(rows[-1], len(rows) == 1), flush=True)
    best = max((key for key in found if key[0] == rows[-1]["by"]), key=lambda key: found[key]["held_out"])
    row = {"protocol": "layers"} | found[best] | circumstances(encoder, train, test, chosen, seed, train.of(best[1])) | labels.rows(teach).balance()
    print(_sentence(row, [one for one in rows if one["by"] == row["by"]]))
    return row | {"layers": rows, "seconds": round(time.perf_counter() - start, 2)}


def _probed(probe: str, train: FeatureTable, test: FeatureTable, key: str, outputs: int, seed: int, how: dict[str, Any]):
    """(the figure on held-out teaching pictures, answers to the judging pictures, the settings that led to them)."""
    if probe == "linear":
        head = fitted(train, outputs, key, seed, epochs=how["epochs"])
        held = max(one[f"held_out_{METRIC[train.kind]}"] for one in head.sweep)
        said = {"l2": head.l2, "epochs": 0} if train.kind == "numbers" else {"lr": head.lr, "batch_size": head.batch_size, "epochs": head.epochs}
        return held, head(test.of(key)), said
    near = {"k": how["k"], "temperature": how["temperature"]}
    scores = []
    for fit, held in shares(train, HELD_OUT, seed):
        asked = train.rows(held)
        scores.append(worth(train.kind, by_knn(train.rows(fit), asked, outputs, key, **near)[0], asked.truth()))
    scores = [value for value in scores if not math.isnan(value)]
    return sum(scores) / len(scores) if scores else 0.0, by_knn(train, test, outputs, key, **near)[0], near | {"epochs": 0}


def _line(row: dict[str, Any], head: bool) -> str:
    """A line of the table."""
    title = f"{'block':>5}  {'pooling':<8}{'probe':<8}{'held out':>9}  judged\n" if head else ""
    form = "{:9.1f}" if row["metric"] == "top1" else "{:9.3f}"
    return f"{title}{row['block']:>5}  {row['pooling']:<8}{row['by']:<8}{form.format(row['held_out'])}  {shown(row)}"


def _sentence(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """What was chosen, and why not the largest figure of the table."""
    last = max(one["block"] for one in rows)
    ends = [one for one in rows if one["block"] == last]
    most = max((one for one in rows if one[one["metric"]] is not None), key=lambda one: one[one["metric"]], default=row)
    lines = [f"chosen on held-out teaching pictures: block {row['block']} of {last}, {row['pooling']}: {shown(row)}"]
    if row["block"] != last:
        end = max(ends, key=lambda one: one["held_out"])
        lines.append(f"the last block, {end['pooling']}: {shown(end)}")
    if (most["block"], most["pooling"]) != (row["block"], row["pooling"]):
        lines.append(f"block {most['block']}, {most['pooling']}, has the largest figure on the judging pictures; to choose by it would flatter")
    return "\n".join(lines)
