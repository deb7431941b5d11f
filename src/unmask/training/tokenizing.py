"""A tokenizer from pictures: the vocabulary that BEiT predicts, trained by the same loop into the same kind of folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask import seeds
from unmask.data.loader import Pictures
from unmask.errors import Refused
from unmask.model import Learner, VocabularyLearner
from unmask.recipe import Recipe
from unmask.run.folder import RunFolder
from unmask.targets.codes import described as said_of
from unmask.training import plan
from unmask.training.finish import conclude
from unmask.training.pretraining import Pretraining, described, measured, opened, pictures_of
from unmask.training.progress import Progress
from unmask.training.task import Prepared

STILLS = 256  # pictures on which the use of codes is judged
DRAWN = 6  # pictures in the drawing


class Tokenizing(Pretraining):
    """A tokenizer from pictures without labels."""

    def prepare(self, recipe: Recipe) -> Prepared:
        source = opened(recipe)
        format = measured(recipe, source)
        recipe, said = plan.choose(recipe, len(source), format, encoder=bool(vars(type(recipe.method)).get("network")))
        kept = described(recipe, source, format)
        learner = self.build(recipe, kept)
        pace = plan.pace(learner, pictures_of(recipe, source, kept, None), recipe.train, recipe.input.workers or 0)
        recipe, more = plan.paced(recipe, pace)
        recipe, rate = plan.quickened(recipe)
        said = [f"{len(source):,} pictures in {recipe.data}", *source.said, *format.said, *said, *more, *rate, *learner.notes()]
        return Prepared(recipe, kept, learner, [*said, plan.announced(recipe, pace, len(source))])

    def metadata(self, recipe: Recipe, kept: Mapping[str, Any], learner: Learner) -> dict[str, str]:
        assert isinstance(learner, VocabularyLearner)
        return super().metadata(recipe, kept, learner) | {"tokenizer": said_of(learner.tokenizer)}

    def watch(self, recipe: Recipe, learner: Learner, feed: Any, folder: RunFolder, device: torch.device, progress: Progress) -> Vocabulary:
        assert isinstance(learner, VocabularyLearner)
        return Vocabulary(learner, feed, folder.pictures, recipe.train.seed, device, progress)

    def finish(self, recipe: Recipe, kept: Mapping[str, Any], learner: Learner, feed: Any, folder: RunFolder, metadata: Mapping[str, str], step: int) -> None:
        here, there = shlex.quote(str(folder.path)), shlex.quote(recipe.data) if isinstance(recipe.data, str) else "DATA"
        taught = "beit2" if recipe.name == "vqkd" else "beit"
        said = f"unmask pretrain {taught} {there} --out RUN --method.tokenizer {here}      # predict its codes behind the mask"
        conclude(folder, learner, metadata, step, [said])


class Vocabulary:
    """Watches how many codes are in use, and draws pictures beside what is painted from their codes, on pictures that stay the same.

    A share of the vocabulary near 0 is a collapse: every square is the same word, and predicting words teaches nothing.
    """

    def __init__(self, learner: VocabularyLearner, pictures: Pictures, folder: Path, seed: int, device: torch.device, progress: Progress):
        self.learner, self.pictures, self.folder, self.device, self.progress = learner, pictures, folder, device, progress
        order = torch.rand(len(pictures), generator=torch.Generator().manual_seed(seeds.key(seed, "monitor"))).argsort()
        self.order: list[int] = order[:STILLS].tolist()
        self.kept: list[Tensor] = []

    def __call__(self, step: int, x: Any = None, noise: Tensor | None = None, rows: Tensor | None = None) -> dict[str, Any]:
        training = self.learner.training
        self.learner.eval()
        try:
            codes = torch.cat([self.learner.fits(part.to(self.device)).argmax(1).flatten().cpu() for part in self.stills()])
            constant = self.learner.best_constant(self.stills()[0].to(self.device)).item()
            self.draw(step)
        finally:
            self.learner.train(training)
        shares = torch.bincount(codes, minlength=self.learner.tokenizer.vocabulary).float() / len(codes)
        entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum()
        used = {"codes_used": int((shares > 0).sum()), "codes_as_many_as": round(float(entropy.exp()), 1)}
        return {"step": step, "best_constant": constant, **used}

    def stills(self) -> list[Tensor]:
        """Pictures chosen once."""
        if not self.kept:
            self.kept = [part[0] for part in self.pictures.still_batches(32, indices=self.order)]
        return self.kept

    def draw(self, step: int) -> None:
        """pictures/step-*.png."""
        try:
            from unmask.visualize.answers import grid

            ((x, _, names),) = self.pictures.still_batches(DRAWN, indices=self.order[:DRAWN])
            shown = self.pictures.format
            grid(self.learner, x, names, mean=shown.mean, std=shown.std, title=f"step {step:,}", out=self.folder / f"step-{step:07d}.png")
        except Refused:
            return
        except Exception as error:  # a full disk, a missing package: no reason to lose hours of training
            self.progress.say(f"warning: no picture of step {step:,}: {type(error).__name__}: {error}")
