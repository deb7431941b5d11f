"""Look at the visible, predict the masked, compare with the truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.decoders import Decoder
from unmask.encoders.coded import Coded
from unmask.encoders.features import Features
from unmask.mask import Mask
from unmask.masking import Masking
from unmask.settings import Train
from unmask.targets.target import Target
from unmask.tokenizers.tokenizer import Tokenizer

Signal: TypeAlias = Tensor | dict[str, Tensor]  # a tensor, or named tensors of which the first is masked and encoded


def first(x: Signal) -> Tensor:
    """The signal itself, or the first entry of a dict."""
    return next(iter(x.values())) if isinstance(x, dict) else x


class Learner(nn.Module, ABC):
    """What the loop trains. It knows no files and no devices; where it has an encoder, that is `.encoder`.

    `undecayed`: the last words of the names of parameters that do not decay, beside biases and other vectors. `pooling`: which
    pooled feature tells what it learns, the class token (`"cls"`) or, where that is never asked, the mean of the patches (`"avg"`).
    """

    undecayed: tuple[str, ...] = ()
    pooling: str = "cls"
    again: float = 0.0  # share of the run at which a second stage begins, with a warm-up and a schedule of its own; 0: there is one
    remedy: str = "Start again with a lower --lr or a longer warm-up; `unmask inspect` finds data that is all alike."  # where its features collapse

    def draws(self, x: Signal) -> int:
        """How many uniform numbers a sample of `x` wants as noise."""
        return 0

    def before_step(self, progress: float, u: float) -> None:
        """Set what must be known on the host before a step, from the run's progress in [0, 1] and one uniform number.

        Pure: called again after a resume, so nothing of it needs saving.
        """

    def draw_mask(self, x: Signal, noise: Tensor | None = None, rows: Tensor | None = None) -> Mask | None:
        """The mask of `x`, where it can be drawn before the forward pass and given to it (arguments as there).

        The loop draws it outside the compiled graph: some lengths depend on the noise, and rectangles unroll into long graphs.
        """
        return None

    @abstractmethod
    def forward(self, x: Signal, noise: Tensor | None = None, mask: Mask | None = None, rows: Tensor | None = None) -> dict[str, Tensor]:
        """The loss under `"loss"`, and its parts by their names, which add up to it.

        `noise` (samples, draws) lies in [0, 1); without it fresh numbers are drawn. Where `x` is a part of a step's batch,
        `noise` is that of the whole batch and `rows` (B,) says which of its rows belong to `x`: some masks draw once a batch.
        """

    def after_step(self, progress: float) -> None:
        """What follows the weights once they have moved: teachers, queues, centres."""

    def sees(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """How the pictures were normalised, a number a channel: targets may look at them in numbers of their own."""
        for part in self.modules():
            if isinstance(part, Target | Coded):
                part.sees(mean, std)

    def begin(self) -> None:
        """Before the first step, when the encoder holds the weights that it begins with (`--init`): teachers begin there too."""

    def notes(self) -> list[str]:
        """What a person should know about the loss before a run, in sentences."""
        return []

    def baselines(self, x: Signal, noise: Tensor, rows: Tensor | None = None) -> dict[str, float]:
        """The loss of answers that need no network, by their names, for learners that hide nothing (see `training/monitor.py`)."""
        return {}

    def handed(self) -> Any:
        """The encoder that is judged while it trains and handed on at the end: its own, or a teacher's where papers judge that; None without one."""
        return dict(self.named_children()).get("encoder")

    def imagines(self) -> bool:
        """Whether it says something of what is hidden that can be drawn."""
        return any(isinstance(part, Predict) for part in self.modules())

    def signs(self) -> dict[str, float]:
        """What tells of a collapse beside the features: numbers for metrics.jsonl, by their names, of the last step."""
        return {}

    def collapsed(self) -> tuple[str, str] | None:
        """Where something else than the features has become the same for all pictures: what, and what to do about it."""
        return None

    def redrawn(self, x: Tensor, seed: int) -> tuple[Tensor, Tensor] | None:
        """What it was given of pictures (B, C, H, W) and what it says, both as pictures, for learners that hide nothing behind a mask."""
        return None

    def parameter_groups(self, train: Train) -> list[dict[str, Any]] | None:
        """The optimiser's groups, where a method wants its own."""
        return None


class VocabularyLearner(Learner):
    """Learns a tokenizer: codes for squares of a picture, which other methods predict. It has no encoder to hand on."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.register_buffer("mean", torch.zeros(1, tokenizer.in_chans, 1, 1))
        self.register_buffer("std", torch.ones(1, tokenizer.in_chans, 1, 1))

    def sees(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().sees(mean, std)
        for name, given in (("mean", mean), ("std", std)):
            buffer = self.get_buffer(name)
            buffer.copy_(torch.tensor(tuple(given)).float().expand(buffer.shape[1]).reshape(buffer.shape))

    def pixels(self, x: Tensor) -> Tensor:
        """Pictures in the run's own numbers as the tokenizer sees them, in 0..1."""
        return (x.float() * self.std + self.mean).clamp(0, 1)

    @torch.no_grad()
    def fits(self, x: Tensor) -> Tensor:
        """How well each code fits each square of pictures in the run's own numbers: (B, vocabulary, h, w)."""
        return self.tokenizer.logits(self.pixels(x))

    @torch.no_grad()
    def painted(self, codes: Tensor) -> Tensor | None:
        """The pictures that codes (B, h, w) stand for, in the run's own numbers; None where nothing can be painted."""
        shares = F.one_hot(codes, self.tokenizer.vocabulary).movedim(-1, 1).float()  # (B, K, h, w)
        pictures = self.tokenizer.pictures(shares)
        return None if pictures is None else (pictures - self.mean) / self.std

    @abstractmethod
    def best_constant(self, x: Tensor) -> Tensor:
        """The loss of the best answer that is the same for every square of every picture."""


class Objective(nn.Module, ABC):
    """One term of the loss. `note`: what a person should know about it before a run, in a sentence."""

    note: str = ""

    @abstractmethod
    def forward(self, features: Features, mask: Mask | None, x: Signal, encoder: nn.Module) -> Tensor | dict[str, Tensor]:
        """A scalar, or several by their names, where it has parts ("": its own name). It may call `encoder` on further entries of `x`."""

    def baselines(self, x: Signal) -> dict[str, float]:
        """The loss of answers that need no network, by their names, where nothing is hidden behind a mask."""
        return {}

    def begin(self, encoder: nn.Module) -> None:
        """Before the first step, when the encoder holds the weights that it begins with."""

    def follow(self, encoder: nn.Module, progress: float) -> None:
        """After a step: move what follows the encoder. Its state lives in buffers, so that it is saved with the model."""


class Step(NamedTuple):
    """What one step of `Predict` has found."""

    features: Features  # what the decoder answers from
    mask: Mask
    x: Tensor  # the pictures that are predicted
    truth: Tensor  # of all patches (B, N, …)
    encoder: Any
    decoder: Decoder
    each: Tensor  # the loss of each hidden patch (B, M)


class Predict(Objective):
    """Predict the target of what is masked.

    `through(features, mask)`: what stands between encoder and decoder, where that is more than nothing (CAE's regressor). `also(step)`: a further scalar that needs what
    the step has found, `named` so. `weigh`: what each hidden patch counts (B, M), where not all count alike; the mean is not divided by it.
    """

    def __init__(
        self,
        decoder: Decoder,
        target: Target,
        loss: Callable[[Tensor, Tensor], Tensor],
        also: Callable[[Step], Tensor] | None = None,
        weigh: Callable[[Mask], Tensor] | None = None,
        through: Callable[[Features, Mask], Features] | None = None,
        named: str = "also",
    ):
        super().__init__()
        self.through, self.decoder, self.target, self.loss = through, decoder, target, loss
        self.also, self.weigh, self.named, self.note = also, weigh, named, target.note

    def begin(self, encoder):
        self.target.begin(encoder)

    def follow(self, encoder, progress):
        self.target.follow(encoder, progress)

    def forward(self, features, mask, x, encoder):
        features = features if self.through is None else self.through(features, mask)
        prediction = self.decoder(features, mask)  # (B, M, out)
        truth = self.target(first(x))  # (B, N, out), or codes (B, N)
        each = self.loss(prediction, mask.masked(truth))  # (B, M)
        loss = mask.mean(each if self.weigh is None else each * self.weigh(mask))
        return loss if self.also is None else {"": loss, self.named: self.also(Step(features, mask, first(x), truth, encoder, self.decoder, each))}


class MaskedModel(Learner):
    """An encoder that sees what the mask shows, and objectives on its features.

    `views`: how many views of a sample the encoder's input holds, view-major (2 for iBOT's global crops); `masks`: how
    many masks a view (data2vec 2.0). Row (v·B + b)·K + k of a mask is the k-th of view v of sample b. `scores`: what a strategy wants to
    know of each patch of the pictures (B, N), where it is guided; then a row of a mask depends on its own picture and noise only.
    `groups(learner, train)`: the optimiser's groups, where they are the method's own.
    """

    def __init__(
        self,
        encoder: nn.Module,
        masking: Masking | None,
        objectives: dict[str, Objective],
        views: int = 1,
        masks: int = 1,
        undecayed: tuple[str, ...] = (),
        pooling: Literal["cls", "avg"] = "cls",
        scores: Callable[[Tensor], Tensor] | None = None,
        groups: Callable[[nn.Module, Train], list[dict[str, Any]]] | None = None,
    ):
        super().__init__()
        self.encoder, self.masking, self.scores, self.groups = encoder, masking, scores, groups
        self.objectives = nn.ModuleDict(objectives)
        self.views, self.masks, self.undecayed, self.pooling = views, masks, undecayed, pooling

    def draws(self, x):
        return 0 if self.masking is None else self.views * self.masks * self.masking.draws(self.encoder.grid(self.encoder.take(x)))

    def before_step(self, progress, u):
        if self.masking is not None:
            self.masking.prepare(progress, u)

    def draw_mask(self, x, noise=None, rows=None):
        if self.masking is None:
            return None
        seen = self.encoder.take(x)
        if noise is None:
            noise = torch.rand(len(seen) // self.views, self.draws(x), device=seen.device)
        samples = len(noise)
        if noise.shape[1] != self.draws(x):
            raise ValueError(f"noise of {noise.shape[1]} numbers a sample where {self.draws(x)} are wanted")
        noise = noise.reshape(samples, self.views, self.masks, -1).transpose(0, 1).flatten(0, 2)  # (views·samples·masks, draws)
        own = None if rows is None else torch.arange(len(noise), device=noise.device).reshape(self.views, samples, self.masks)[:, rows].flatten()
        if self.scores is not None:
            scores = self.scores(seen).repeat_interleave(self.masks, 0)  # (views·b·masks, N)
            return self.masking(self.encoder.grid(seen), noise if own is None else noise[own], scores)
        mask = self.masking(self.encoder.grid(seen), noise)
        return mask if own is None else mask.rows(own)

    def forward(self, x, noise=None, mask=None, rows=None):
        if mask is None:
            mask = self.draw_mask(x, noise, rows)
        features = self.encoder(self.encoder.take(x), mask)
        losses: dict[str, Tensor] = {}
        for name, objective in self.objectives.items():
            found = objective(features, mask, x, self.encoder)
            for part, value in (found if isinstance(found, dict) else {"": found}).items():
                losses[name if not part else f"{name}.{part}" if part in losses or part in self.objectives else part] = value
        return losses | {"loss": torch.stack(list(losses.values())).sum()}

    def after_step(self, progress):
        for objective in self.objectives.values():
            objective.follow(self.encoder, progress)

    def begin(self):
        for objective in self.objectives.values():
            objective.begin(self.encoder)

    def baselines(self, x, noise, rows=None):
        return {name: value for objective in self.objectives.values() for name, value in objective.baselines(x).items()}

    def parameter_groups(self, train):
        return None if self.groups is None else self.groups(self, train)

    def notes(self):
        return [objective.note for objective in self.objectives.values() if objective.note]

    @torch.no_grad()
    def predict(self, x: Signal, mask: Mask, objective: str = "pixels") -> dict[str, Any]:
        """What one objective predicts and what it should: `features`, `prediction` and `truth` (B, M, …). For viewers."""
        part = next(part for part in self.objectives[objective].modules() if isinstance(part, Predict))
        features = self.encoder(self.encoder.take(x), mask)
        told = features if part.through is None else part.through(features, mask)
        return {"features": features, "prediction": part.decoder(told, mask), "truth": mask.masked(part.target(first(x)))}
