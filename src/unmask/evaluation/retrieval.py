"""What a run with a text tower knows without further training: which caption is whose, and which class name fits (zero-shot).

A picture is looked at whole. Formulas as in big_vision (evaluators/proj/image_text/retrieval.py, discriminative_classifier.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.contrast import unit
from unmask.data.loader import Pictures
from unmask.data.pairs import captions_of, parts_of
from unmask.data.splits import parts
from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable, tabulate
from unmask.evaluation.metrics import estimated, resamples, score
from unmask.interchange.timm import Encoder
from unmask.load import load, untrained
from unmask.text import Paired

RANKS = (1, 5, 10)  # of recall@k
WAYS = ("image_to_text", "text_to_image")


def measure(
    protocol: str,
    encoder: Encoder,
    pictures: Pictures,
    val: Pictures | None,
    *,
    name: str,
    run: str,
    random: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    **more: Any,
) -> dict[str, Any]:
    """The figures of `retrieval` (captions) or `zeroshot` (names, templates) of a run's pictures and texts; `random`: of the same network before its first step."""
    start = time.perf_counter()
    learner: Any = (untrained(run, seed) if random else load(run)).to(device).eval()
    paired = next((part for part in learner.modules() if isinstance(part, Paired)), None)
    if paired is None:
        raise Refused(f"{run} has no text tower: {protocol} wants a run of modern_mae that read captions (--method.text own)")

    def look(pictures: Pictures, ids: Sequence[int]) -> FeatureTable:
        with torch.inference_mode():
            table = tabulate(lambda x: {"text": unit(paired.pictures(learner.encoder(x.to(device))))}, pictures, ids, batch_size, workers, "pictures to judge by")
        if table.skipped:
            print(f"{table.skipped:,} pictures cannot be read and are left out")
        return table

    said: dict[str, Any]
    if protocol == "retrieval":
        said = by_captions(look, paired, val or pictures, seed, **more)
    else:
        said = by_names(look, paired, pictures, val, name, seed, **more)
    sizes = {"pooling": "text", "img_size": list(encoder.img_size), "seed": seed, "n_train": 0, "model": encoder.name}
    return {"protocol": protocol} | said | sizes | {"seconds": round(time.perf_counter() - start, 2)}


def by_captions(look: Any, paired: Paired, pictures: Pictures, seed: int, captions: str | None) -> dict[str, Any]:
    """Recall of pictures' captions, and of captions' pictures, among those that judge."""
    known, said = captions_of(pictures.source, captions)
    part = next((part for part in ("val", "test") if known.splits is not None and (known.splits == part).any()), None)
    ids = parts_of(known, (part,) if part else ("", "train"), said)
    chosen = f"the split column: {part} judges" if part else "all pictures with captions: nothing says which ones the run has not learned from"
    print("\n".join([*said, f"judged by {len(ids):,} pictures: {chosen}"]))
    table = look(pictures, ids)
    images, known = table.parts["text"], known.rows(table.ids.tolist())
    texts = paired.embed([known.words[number] for number in range(len(known.words))]).cpu()
    owner = torch.repeat_interleave(torch.arange(len(table)), torch.from_numpy(known.counts))  # (T,)
    return recalls(images @ texts.T, owner, seed) | {"n_val": len(table), "captions": len(owner), "val": chosen}


def hits(likeness: Tensor, owner: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """((P,) whether one of a picture's captions is among the k best, (T,) whether a caption's picture is) of `likeness` (P, T); `owner` (T,): whose caption it is."""
    best = likeness.topk(min(k, likeness.shape[1]), dim=1).indices  # (P, k)
    found = (owner[best] == torch.arange(len(likeness)).unsqueeze(1)).any(1)
    back = likeness.topk(min(k, len(likeness)), dim=0).indices  # (k, T)
    return found.float(), (back == owner).any(0).float()


def recalls(likeness: Tensor, owner: Tensor, seed: int = 0) -> dict[str, Any]:
    """recall@1, @5 and @10 both ways in percent with their 95 % intervals over pictures, what guessing reaches, and the mean of the six."""
    P, T = likeness.shape
    counts = owner.bincount(minlength=P).float()  # captions of each picture
    each = {k: hits(likeness, owner, k) for k in RANKS}

    def figures(weights: Tensor) -> dict[str, Tensor]:
        found = {}
        for k, (pictures, captions) in each.items():
            found[f"image_to_text@{k}"] = 100 * (weights @ pictures) / weights.sum(1)
            found[f"text_to_image@{k}"] = 100 * (weights @ torch.zeros(P).index_add(0, owner, captions)) / (weights @ counts)
        return {"mean_recall": torch.stack(list(found.values())).mean(0)} | found

    values, intervals = estimated(figures, resamples(P, None, seed))
    guessed = guessing(counts, T)
    row = {"kind": "pairs", "metric": "mean_recall", "mean_recall": values["mean_recall"], "interval": intervals["mean_recall"], "interval_over": "pictures"}
    for way in WAYS:
        row[way] = {f"recall@{k}": values[f"{way}@{k}"] for k in RANKS}
        row[f"{way}_interval"] = {f"recall@{k}": intervals[f"{way}@{k}"] for k in RANKS}
        row[f"{way}_chance"] = {f"recall@{k}": round(guessed[way, k], 4) for k in RANKS}
    return row | {"chance": round(sum(guessed.values()) / len(guessed), 4)}


def guessing(counts: Tensor, texts: int) -> dict[tuple[str, int], float]:
    """What random order reaches on average, in percent, by way and rank; `counts` (P,): captions of each picture."""
    found = {}
    for k in RANKS:
        miss = torch.ones(len(counts), dtype=torch.float64)  # that none of k drawn captions is one's own
        for drawn in range(min(k, texts)):
            miss *= ((texts - counts.double() - drawn) / (texts - drawn)).clamp(min=0)
        found["image_to_text", k] = 100 * (1 - miss.mean().item())
        found["text_to_image", k] = 100 * min(k, len(counts)) / len(counts)
    return found


def class_vectors(prompts: Tensor) -> Tensor:
    """One vector a class (C, K) of the vectors of its prompts (C, T, K): the mean of those at length one, at length one."""
    return unit(unit(prompts).mean(1))


def by_names(
    look: Any, paired: Paired, pictures: Pictures, val: Pictures | None, name: str, seed: int, names: str | None, templates: tuple[str, ...]
) -> dict[str, Any]:
    """Accuracy where each picture's class is the one whose prompts are nearest."""
    pictures, _, judging, judge, chosen = parts(pictures, val, name, seed)
    labels = judging.labels
    assert labels is not None  # `parts` has refused it
    if labels.kind != "classes":
        raise Refused(f"zeroshot wants one class a picture, and these labels are {labels.kind}")
    spoken = names_of(labels.names, names)
    print(f"judged by {len(judge):,} pictures: {chosen}; {len(spoken):,} classes, such as '{templates[0].format(spoken[0])}'")
    prompts = torch.stack([paired.embed([template.format(word) for template in templates]).cpu() for word in spoken])  # (C, T, K)
    table = look(judging, judge)
    answers = table.parts["text"] @ class_vectors(prompts).T  # (n, C)
    found = score("classes", answers, table.truth(), seed, table.groups, labels.names)
    return {"kind": "classes"} | found | {"n_val": len(table), "val": chosen, "templates": list(templates), "unknown_words": unknown(paired, spoken)}


def unknown(paired: Paired, spoken: Sequence[str]) -> list[str]:
    """Class names of which the text tower knows no word at all."""
    return [word for word in spoken if not any(number for row in paired.reader.tokens([word]) for number in row)]


def names_of(classes: Sequence[str], file: str | None) -> list[str]:
    """What classes are called in captions: as they are, with spaces for _ and -, or as a file says, a class, a tab and its name a line. Refused."""
    told: Mapping[str, str] = {}
    if file is not None:
        if not Path(file).is_file():
            raise Refused(f"--names: there is no file {file}")
        rows = [line.split("\t") for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        wrong = next((line for line in rows if len(line) != 2), None)
        if wrong is not None:
            raise Refused(f"--names {file}: a line is a class, a tab and its name, and not '{' '.join(wrong)[:80]}'")
        told = {name.strip(): said.strip() for name, said in rows}
        missing = [name for name in classes if name not in told]
        if missing:
            raise Refused(f"--names {file} has no line for {', '.join(missing[:5])}")
    return [told.get(name, name.replace("_", " ").replace("-", " ")) for name in classes]
