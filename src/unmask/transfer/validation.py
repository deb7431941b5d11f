"""How good the answers are on pictures that do not teach: while a run trains, and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unmask import seeds
from unmask.evaluation.metrics import right, wilson
from unmask.model import Signal
from unmask.settings import Train
from unmask.training.progress import Progress
from unmask.transfer.classifier import Classifier
from unmask.transfer.supervised import Supervised

MOST, FEWEST = 2000, 150  # pictures that judge while a run trains; at its end all of them do
SHARE = 0.02  # of the pictures that a run trains on: ten measurements then cost less than a tenth of the run


@torch.no_grad()
def answered(learner: Classifier, feed: Supervised, rows: Sequence[int], device: torch.device, workers: int = 0, average: bool = False) -> tuple[Tensor, Tensor]:
    """The answers (n, count) to pictures that judge, and the truth; pictures that cannot be read have no row."""
    training = learner.training
    learner.eval()
    found = [(learner.outputs(x.to(device), average).float().cpu(), labels) for x, labels in feed.still(rows, workers=workers)]
    learner.train(training)
    outputs, truth = (torch.cat(part) for part in zip(*found))
    return outputs, truth


def score(kind: str, outputs: Tensor, truth: Tensor) -> dict[str, Any]:
    """The figures of answers: top1 in percent with its 95 % interval, top5, and what always answering the largest class would reach."""
    hits, n = right(outputs, truth), len(truth)
    low, high = wilson(hits, n)
    more = {"top5": round(100 * right(outputs, truth, 5) / n, 4)} if outputs.shape[1] > 5 else {}
    most = int(torch.bincount(truth).max())
    return {"metric": "top1", "top1": round(100 * hits / n, 4), "interval": [round(low, 2), round(high, 2)], **more, "majority": round(100 * most / n, 4)}


class Validation:
    """Measures at chosen steps, on pictures that stay the same over the run: the metric and the loss, of the average of the weights too."""

    def __init__(self, learner: Classifier, feed: Supervised, settings: Train, device: torch.device, progress: Progress):
        self.learner, self.feed, self.device, self.progress = learner, feed, device, progress
        count = max(FEWEST, min(MOST, int(SHARE * (settings.steps or 1) * (settings.batch_size or 1))))
        order = torch.rand(len(feed.judge), generator=torch.Generator().manual_seed(seeds.key(settings.seed, "validation"))).argsort()
        self.rows = [feed.judge[i] for i in sorted(order[:count].tolist())]

    def __call__(self, step: int, x: Signal | None = None, noise: Tensor | None = None, rows: Tensor | None = None) -> dict[str, Any]:
        row: dict[str, Any] = {"step": step}
        for name, average in (("", False), ("_average", True)):
            if average and self.learner.average is None:
                continue
            outputs, truth = answered(self.learner, self.feed, self.rows, self.device, average=average)
            found = score(self.feed.asked.kind, outputs, truth)
            answers = self.learner.answers
            targets = answers.targets(truth.to(answers.mean.device))
            row |= {found["metric"] + name: found[found["metric"]], "val_loss" + name: answers.loss(outputs.to(targets.device), targets).item()}
            row |= {"majority": found["majority"], "val_n": len(truth)} if "majority" in found else {"val_n": len(truth)}
        return row
