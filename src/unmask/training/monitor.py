"""What is measured while a run trains: is the loss good, do the features tell anything, what does it imagine?

Nothing here draws from torch's default generators or leaves a trace in the learner: a monitored run's weights are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask import seeds
from unmask.data.loader import Pictures
from unmask.errors import Refused
from unmask.evaluation.features import pool
from unmask.evaluation.knn import knn
from unmask.evaluation.metrics import feature_std, rank_me, right
from unmask.mask import Mask
from unmask.model import Learner, MaskedModel, Predict, Signal, first
from unmask.targets.pixels import Pixels
from unmask.training.progress import Progress

TRAIN, TEST = 1000, 500  # labelled pictures that answer and ask in kNN, where memory allows
MEMORY = 200e6  # bytes of pictures kept
DRAWN = 6  # pictures in the drawing
COLLAPSED = 1.5  # effective rank under which all pictures look the same to the encoder


def baselines(learner: Learner, x: Signal, mask: Mask) -> dict[str, float]:
    """The loss of two answers that need no network, on these pictures under this mask.

    `patch_mean`: every hidden patch is its own mean colour; `copy_nearest`: it looks like the nearest visible patch.
    Empty where the learner predicts no pixels.
    """
    part = learner.objectives["pixels"] if isinstance(learner, MaskedModel) and "pixels" in learner.objectives else None
    if not isinstance(part, Predict) or not isinstance(part.target, Pixels):
        return {}
    every = part.target(first(x))  # (B, N, values)
    truth = mask.masked(every)  # (B, M, values)
    means = torch.zeros_like(truth) if part.target.normalize else truth.mean(-1, keepdim=True).expand_as(truth)
    places = torch.cartesian_prod(*(torch.arange(side, device=truth.device, dtype=torch.float32) for side in mask.grid))  # (N, axes)
    distance = torch.cdist(places[mask.masked_ids], places[mask.visible_ids])  # (B, M, V)
    nearest = mask.visible_ids.gather(1, distance.argmin(-1))  # (B, M)
    copies = every.gather(1, nearest.unsqueeze(-1).expand_as(truth))
    return {name: mask.mean(part.loss(answer, truth)).item() for name, answer in (("patch_mean", means), ("copy_nearest", copies))}


class Monitor:
    """Measures a learner at chosen steps, on pictures that stay the same over the run.

    kNN needs labels, rank and kNN an encoder that timm knows, the drawing a pixel target: what a learner lacks is left out.
    """

    def __init__(self, learner: Learner, pictures: Pictures, folder: Path, seed: int, device: torch.device, progress: Progress):
        self.learner, self.pictures, self.folder, self.seed = learner, pictures, folder, seed
        self.device, self.progress, self.alarmed = device, progress, False
        trunk = getattr(getattr(learner, "encoder", None), "trunk", None)
        self.trunk = trunk
        self.kept: tuple[Tensor, Tensor | None] | None = None  # still pictures, and their labels

    def __call__(self, step: int, x: Signal | None = None, noise: Tensor | None = None, rows: Tensor | None = None, random: bool = False) -> dict[str, Any]:
        """The row of one step; `x`, `noise`, `rows`: what was just trained on. `random`: the encoder is untrained."""
        row: dict[str, Any] = {"step": step}
        training = self.learner.training
        self.learner.eval()
        with torch.no_grad():
            if x is not None and isinstance(self.learner, MaskedModel) and (mask := self.learner.draw_mask(x, noise, rows)) is not None:
                row |= baselines(self.learner, x, mask)
            if self.trunk is not None:
                row |= self.judge(random)
            self.draw(step)
        self.learner.train(training)
        self.warn(row)
        return row

    def stills(self) -> tuple[Tensor, Tensor | None]:
        """Pictures chosen once: labelled ones where there are labels, as many as memory allows."""
        if self.kept is None:
            order = torch.rand(len(self.pictures), generator=torch.Generator().manual_seed(seeds.key(self.seed, "monitor"))).argsort()
            if self.pictures.labels is not None:
                order = order[torch.from_numpy(self.pictures.labels)[order] >= 0]
            height, width = self.pictures.img_size
            most = int(MEMORY / (4 * self.pictures.format.in_chans * height * width))
            chosen = order[: min(TRAIN + TEST, most)].tolist()
            parts = list(self.pictures.still_batches(64, indices=chosen))
            labels = torch.cat([part[1] for part in parts]) if parts and parts[0][1] is not None else None
            self.kept = torch.cat([part[0] for part in parts]), labels
        return self.kept

    def judge(self, random: bool) -> dict[str, Any]:
        """Effective rank, spread and kNN of the pooled features of the still pictures."""
        x, labels = self.stills()
        pooled = [pool(self.trunk, part.to(self.device)) for part in x.split(64)]
        name = "cls" if "cls" in pooled[0] else "avg"
        features = torch.cat([part[name] for part in pooled]).float().cpu()
        row: dict[str, Any] = {"rank": rank_me(features), "feature_std": feature_std(features)}
        if labels is None or len(labels.unique()) < 2 or len(labels) < 30:
            return row
        tests = len(labels) // 3
        votes = knn(features[tests:], labels[tests:], features[:tests], int(labels.max()) + 1)
        row |= {"knn": 100 * right(votes, labels[:tests]) / tests, "knn_n": tests}
        return row | ({"knn_random": row["knn"]} if random else {})

    def draw(self, step: int) -> None:
        """pictures/step-*.png: what it imagines behind the mask, of pictures that stay the same."""
        try:
            from unmask.visualize.reconstruction import grid

            x = self.pictures.still(range(min(DRAWN, len(self.pictures))))
            names = [self.pictures.source.name(index) for index in range(len(x))]
            shown = self.pictures.format
            grid(self.learner, x.to(self.device), names, mean=shown.mean, std=shown.std, title=f"step {step:,}", out=self.folder / f"step-{step:07d}.png")
        except Refused:
            return  # no pixels are predicted: nothing to draw
        except ImportError as error:
            if step == 0:
                self.progress.say(f"no reconstruction pictures: {error}")

    def warn(self, row: dict[str, Any]) -> None:
        """The collapse alarm, once a run."""
        if not self.alarmed and row["step"] > 0 and row.get("rank", COLLAPSED) < COLLAPSED:
            self.alarmed = True
            self.progress.say(
                f"ALARM at step {row['step']:,}: the features collapse (effective rank {row['rank']:.2f}): all pictures look the same to the encoder. "
                "Start again with a lower --lr or a longer --warmup_epochs."
            )
