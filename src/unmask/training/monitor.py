"""What is measured while a run trains: is the loss good, do the features tell anything, what does it imagine?

Nothing here draws from torch's default generators or leaves a trace in the learner: a monitored run's weights are the same.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask import seeds
from unmask.data.loader import Pictures
from unmask.encoders.adapter import Adapter
from unmask.errors import Refused
from unmask.evaluation.features import pool
from unmask.evaluation.knn import knn
from unmask.evaluation.metrics import feature_std, rank_me, right
from unmask.mask import Mask
from unmask.model import Learner, MaskedModel, Predict, Signal, first
from unmask.run.records import COLLAPSED, FALL
from unmask.settings import Train
from unmask.targets.pixels import Pixels
from unmask.training.finish import trunk_of
from unmask.training.pace import stills
from unmask.training.progress import Progress

PAIRS = 10_000_000  # pairs of a hidden and a visible patch whose distances are computed at once
MEMORY = 200e6  # bytes of pictures kept
DRAWN = 6  # pictures in the drawing
TOLD = 16  # pictures from which an effective rank tells something: of fewer it is small whatever the encoder does


def baselines(learner: Learner, x: Signal, mask: Mask) -> dict[str, float]:
    """The loss of answers that need no network, on these pictures under this mask: of each target that is predicted, those behind the first with its name before them."""
    found: dict[str, float] = {}
    for name, objective in learner.objectives.items() if isinstance(learner, MaskedModel) else ():
        part = next((part for part in objective.modules() if isinstance(part, Predict)), None)
        if part is not None:
            found |= {f"{name}." * bool(found) + key: value for key, value in answers(learner, name, part, x, mask).items()}
    return found


def answers(learner: MaskedModel, name: str, part: Predict, x: Signal, mask: Mask) -> dict[str, float]:
    """Those of one target.

    Of normalised pixels `patch_mean`: every number of a hidden patch is the patch's own mean, which normalising takes away, so the
    answer is 0. Of any other target `best_constant`: the best answer that is the same everywhere. Of pixels also `copy_nearest`: a
    hidden patch looks like the nearest visible one (of an encoder that looks back, the nearest before it).
    Where the loss holds more than this answer, or counts places unevenly, `predicted` is what the answer itself costs: that stands beside them.
    """
    back = isinstance(learner.encoder, Adapter) and learner.encoder.hides == "causal"
    if len(first(x)) == len(mask.masked_ids):  # as many pictures as their distances take little memory
        few = max(1, PAIRS // (mask.masked_ids.shape[1] * (math.prod(mask.grid) if back else max(mask.visible_ids.shape[1], 1))))
        x, mask = first(x)[:few], mask.rows(torch.arange(min(few, len(mask.masked_ids)), device=mask.masked_ids.device))
    every = part.target(first(x))  # (B, N, …)
    truth = mask.masked(every)  # (B, M, …)
    weight = torch.ones_like(mask.masked_ids, dtype=torch.float32) if mask.weight is None else mask.weight
    total = weight.sum().clamp(min=1e-12)  # of this process alone: the others do not measure
    found: dict[str, float] = {}
    if len(learner.objectives) > 1 or part.also is not None or part.weigh is not None:
        found["predicted"] = ((part.loss(learner.predict(x, mask, name)["prediction"], truth) * weight).sum() / total).item()
    if isinstance(part.target, Pixels) and part.target.normalize:
        found["patch_mean"] = ((part.loss(torch.zeros_like(truth), truth) * weight).sum() / total).item()
    elif bool((weight > 0).any()):
        found["best_constant"] = part.target.baseline(truth[weight > 0].unsqueeze(0), part.loss).item()
    if isinstance(part.target, Pixels):
        places = torch.cartesian_prod(*(torch.arange(side, device=truth.device, dtype=torch.float32) for side in mask.grid))  # (N, axes)
        known = torch.arange(len(places), device=truth.device).expand(len(mask.masked_ids), -1) if back else mask.visible_ids  # (B, N or V)
        distance = torch.cdist(places[mask.masked_ids], places[known])  # (B, M, N or V)
        if back:
            distance = distance.masked_fill(known.unsqueeze(1) >= mask.masked_ids.unsqueeze(2), torch.inf)
        nearest = known.gather(1, distance.argmin(-1))  # (B, M)
        copies = mask.fold(every).gather(1, nearest.unsqueeze(-1).expand_as(truth))
        found["copy_nearest"] = ((part.loss(copies, truth) * weight).sum() / total).item()
    return found


class Monitor:
    """Measures a learner at chosen steps, on pictures that stay the same over the run.

    kNN needs labels, rank and kNN an encoder that timm knows, the drawing a pixel target: what a learner lacks is left out.
    `untrained`: the weights are random at step 0, so the kNN measured there is the random encoder's.
    """

    def __init__(self, learner: Learner, pictures: Pictures, folder: Path, settings: Train, device: torch.device, progress: Progress, untrained: bool = True):
        self.learner, self.pictures, self.folder, self.device, self.progress = learner, pictures, folder, device, progress
        self.trunk, self.untrained = trunk_of(learner.handed()), untrained
        self.highest, self.widest, self.alarmed = 0.0, 0.0, False
        self.order = torch.rand(len(pictures), generator=torch.Generator().manual_seed(seeds.key(settings.seed, "monitor"))).argsort()
        self.most = stills(settings)
        self.kept: tuple[Tensor, Tensor | None] | None = None  # still pictures, and their labels

    def __call__(self, step: int, x: Signal | None = None, noise: Tensor | None = None, rows: Tensor | None = None) -> dict[str, Any]:
        """The row of one step; `x`, `noise`, `rows`: what was just trained on."""
        row: dict[str, Any] = {"step": step}
        training = self.learner.training
        self.learner.eval()
        try:
            with torch.no_grad():
                if x is not None and isinstance(self.learner, MaskedModel) and (mask := self.learner.draw_mask(x, noise, rows)) is not None:
                    row |= baselines(self.learner, x, mask)
                elif x is not None and noise is not None:
                    row |= self.learner.baselines(x, noise, rows)
                if self.trunk is not None:
                    row |= self.judge(step == 0 and self.untrained)
                self.draw(step)
        finally:
            self.learner.train(training)
        if step > 0:
            row |= self.learner.signs()
        self.warn(row)
        return row

    def stills(self) -> tuple[Tensor, Tensor | None]:
        """Pictures chosen once: labelled ones where there are labels, as many as the length of the run and memory allow."""
        if self.kept is None:
            order = self.order
            known = self.pictures.labels
            if known is not None and known.kind == "classes" and known.known.any():
                order = order[torch.from_numpy(known.known)[order]]
            height, width = self.pictures.img_size
            fit = int(MEMORY / (4 * self.pictures.format.in_chans * height * width))
            parts = list(self.pictures.still_batches(64, indices=order[: max(DRAWN, min(self.most, fit))].tolist()))
            classes = known is not None and known.kind == "classes"  # of tags and numbers there is no kNN while it trains
            labels = torch.cat([part[1] for part in parts if part[1] is not None]) if classes else None
            self.kept = torch.cat([part[0] for part in parts]), labels
        return self.kept

    def judge(self, random: bool) -> dict[str, Any]:
        """Effective rank, spread and kNN of the pooled features of the still pictures."""
        x, labels = self.stills()
        pooled = [pool(self.trunk, part.to(self.device)) for part in x.split(64)]
        name = self.learner.pooling if self.learner.pooling in pooled[0] else "avg"
        features = torch.cat([part[name] for part in pooled]).float().cpu()
        row: dict[str, Any] = {"rank": rank_me(features), "feature_std": feature_std(features)} if len(features) >= TOLD else {}
        if labels is None or labels.min() < 0 or len(labels.unique()) < 2 or len(labels) < 30:
            return row
        tests = len(labels) // 3
        votes = knn(features[tests:], labels[tests:], features[:tests], int(labels.max()) + 1)
        row |= {"knn": 100 * right(votes, labels[:tests]) / tests, "knn_n": tests}
        return row | ({"knn_random": row["knn"]} if random else {})

    def draw(self, step: int) -> None:
        """pictures/step-*.png: what it imagines behind the mask, of pictures that stay the same."""
        try:
            from unmask.visualize.answers import grid

            ((x, _, names),) = self.pictures.still_batches(DRAWN, indices=self.order[:DRAWN].tolist())
            shown = self.pictures.format
            grid(self.learner, x.to(self.device), names, mean=shown.mean, std=shown.std, title=f"step {step:,}", out=self.folder / f"step-{step:07d}.png")
        except Refused:
            return  # no pixels are predicted: nothing to draw
        except Exception as error:  # a full disk, a missing package: no reason to lose hours of training
            self.progress.say(f"warning: no picture of step {step:,}: {type(error).__name__}: {error}")

    def warn(self, row: dict[str, Any]) -> None:
        """The collapse alarm, once a run: of what the learner itself knows about, whose remedy is the better one, else of the features' rank or their spread."""
        rank, spread, said = row.get("rank"), row.get("feature_std"), self.learner.collapsed()
        if said is None and rank is not None and (rank < COLLAPSED or rank < FALL * self.highest):
            said = f"the features collapse: their effective rank is {rank:.1f} (highest {max(self.highest, rank):.1f})", self.learner.remedy
        if said is None and spread is not None and spread < FALL * self.widest:
            said = f"the features collapse: their spread is {spread:.3f} (highest {self.widest:.3f})", self.learner.remedy
        if said is not None and row["step"] > 0 and not self.alarmed:
            self.alarmed = True
            self.progress.say(f"warning: at step {row['step']:,} {said[0]}, pictures look alike to the encoder. {said[1]}")
        self.highest, self.widest = max(self.highest, rank or 0.0), max(self.widest, spread or 0.0)
