"""How good the answers are on pictures that do not teach: while a run trains, and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unmask import seeds
from unmask.errors import Refused
from unmask.evaluation.metrics import METRIC, score, worth
from unmask.model import Signal
from unmask.settings import Train
from unmask.training.progress import Progress
from unmask.transfer.classifier import Classifier
from unmask.transfer.supervised import Supervised

MOST, FEWEST = 2000, 150  # pictures that judge while a run trains; at its end all of them do
SHARE = 0.02  # of the pictures that a run trains on: ten measurements then cost less than a tenth of the run


@torch.no_grad()
def answered(
    learner: Classifier, feed: Supervised, rows: Sequence[int], device: torch.device, workers: int = 0, average: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The outputs (n, count) for pictures that judge, the truth, and their groups where they have some; what cannot be read has no row."""
    training = learner.training
    learner.eval()
    outputs, kept = [], list[int]()
    for x, numbers in feed.judging.numbered_batches(64, workers, rows):
        outputs.append(learner.outputs(x.to(device), average).float().cpu())
        kept += numbers
    learner.train(training)
    if not kept:
        raise Refused("none of the pictures to judge by can be read: unmask inspect names what is wrong with each")
    labels = feed.judging.labels
    assert labels is not None  # `judge` names labelled pictures only
    groups = None if labels.groups is None else torch.from_numpy(labels.groups[kept])
    return torch.cat(outputs), torch.from_numpy(labels.values[kept]), groups


def figures(learner: Classifier, feed: Supervised, device: torch.device, workers: int, average: bool, seed: int) -> tuple[dict[str, Any], int]:
    """What the learner is worth on all pictures that judge (see `metrics.score`), and how many could be read."""
    outputs, truth, groups = answered(learner, feed, feed.judge, device, workers, average)
    answers = learner.answers.read(outputs.to(device)).cpu() if feed.asked.kind == "numbers" else outputs
    return {"kind": feed.asked.kind} | score(feed.asked.kind, answers, truth, seed, groups, feed.asked.names), len(truth)


class Validation:
    """Measures at chosen steps, on pictures that stay the same over the run: the metric and the loss, of the average of the weights too."""

    def __init__(self, learner: Classifier, feed: Supervised, settings: Train, device: torch.device, progress: Progress):
        self.learner, self.feed, self.device, self.progress = learner, feed, device, progress
        count = max(FEWEST, min(MOST, int(SHARE * (settings.steps or 1) * (settings.batch_size or 1))))
        order = torch.rand(len(feed.judge), generator=torch.Generator().manual_seed(seeds.key(settings.seed, "validation"))).argsort()
        self.rows = [feed.judge[i] for i in sorted(order[:count].tolist())]

    def __call__(self, step: int, x: Signal | None = None, noise: Tensor | None = None, rows: Tensor | None = None) -> dict[str, Any]:
        row: dict[str, Any] = {"step": step}
        kind, answers = self.feed.asked.kind, self.learner.answers
        for name, average in (("", False), ("_average", True)):
            if average and self.learner.average is None:
                continue
            outputs, truth, _ = answered(self.learner, self.feed, self.rows, self.device, average=average)
            outputs, truth = outputs.to(self.device), truth.to(self.device)
            value = worth(kind, answers.read(outputs) if kind == "numbers" else outputs, truth)
            row |= {METRIC[kind] + name: value} if value == value else {}  # NaN: a tag with one value only
            row |= {"val_loss" + name: answers.loss(outputs, answers.targets(truth)).item(), "val_n": len(truth)}
            if kind == "classes":
                row["majority"] = round(100 * int(torch.bincount(truth).max()) / len(truth), 4)
        return row
