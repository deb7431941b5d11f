"""One step: look at the visible, predict the masked, move the weights. Every random number in it is a function of (seed, step)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unmask import seeds
from unmask.data.loader import Batch
from unmask.model import Learner, Signal
from unmask.optim.groups import parameter_groups
from unmask.optim.schedule import LONGEST, cosine, scaled_rate, stage, warmup_cosine, warmup_steps
from unmask.settings import Train
from unmask.training.progress import Meter
from unmask.training.task import Feed


class Taken(NamedTuple):
    """What a step leaves to those who look at it afterwards."""

    x: Signal  # of its last part, with the noise of the whole batch and the rows of it that are `x`
    noise: Tensor
    rows: Tensor | None
    rate: float
    losses: dict[str, Tensor]  # the loss, and its parts where it has several
    norm: Tensor  # of the gradients, before clipping


class Mover:
    """A learner on its device, and what moves its weights."""

    def __init__(self, fabric: Any, learner: Learner, settings: Train):
        self.fabric, self.learner, self.settings = fabric, learner, settings
        learner.to(fabric.device).train()
        groups, self.factors = parameter_groups(learner, settings)
        self.decays = [group["weight_decay"] for group in groups]
        self.fused, self.scaled = fabric.device.type in ("cpu", "cuda"), settings.precision == "16-mixed"
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=self.fused)

    def begin(self, per_epoch: float) -> None:
        """Compile and share among processes, once the weights are those to begin with. `per_epoch`: steps in a pass over the data."""
        settings = self.settings
        if settings.compile == "yes" or (settings.compile == "auto" and self.fabric.device.type == "cuda"):
            self.learner.compile()
        self.model, self.stepper = self.fabric.setup(self.learner, self.optimizer)
        self.warmup = warmup_steps(settings.warmup_epochs, per_epoch, settings.steps or 1)
        self.peak = scaled_rate(settings.lr, settings.base_lr, settings.batch_size or 1, settings.lr_by)

    def step(self, step: int, pictures: Feed, batches: Iterator[Batch], meter: Meter, move: bool = True) -> Taken:
        """Make one; without `move` the weights stay, and all else goes on."""
        rate = self.schedule(step)
        x, noise, rows, losses = self.look(step, pictures, batches, meter)
        norm = self.move(move)
        self.learner.after_step((step + 1) / (self.settings.steps or 1))
        return Taken(x, noise, rows, rate, losses, norm)

    def schedule(self, step: int) -> float:
        """What a step needs to know beforehand, as pure functions of (seed, step); its learning rate."""
        settings, steps = self.settings, self.settings.steps or 1
        at = step / steps
        self.learner.before_step(at, seeds.uniform((1,), settings.seed, "step", step).item())
        here, length = stage(step, steps, self.learner.again)
        rate = warmup_cosine(here, length, min(self.warmup, LONGEST * length), self.peak, settings.min_lr)
        ends = settings.weight_decay if settings.weight_decay_end is None else settings.weight_decay_end
        decay = cosine(step, steps, settings.weight_decay, ends) / settings.weight_decay if settings.weight_decay else 1.0
        for group, factor, own in zip(self.optimizer.param_groups, self.factors, self.decays):
            group["lr"] = rate if factor is None else rate * factor(at)
            group["weight_decay"] = own * decay
        return rate

    def look(self, step: int, pictures: Feed, batches: Iterator[Batch], meter: Meter) -> tuple[Signal, Tensor, Tensor | None, dict[str, Tensor]]:
        """Look at the visible, predict the masked, part by part: the last part as in `Taken`, and the losses of all; gradients are left behind."""
        fabric, learner, device = self.fabric, self.learner, self.fabric.device
        world, rank, parts, batch, seed = fabric.world_size, fabric.global_rank, self.settings.accumulate, self.settings.batch_size or 1, self.settings.seed
        zero, total = torch.zeros((), device=device), dict[str, Tensor]()
        for part in range(parts):
            with meter.waiting():
                read = next(batches)
            x = pictures.finish(read, device)
            noise = seeds.uniform((batch, learner.draws(x)), seed, "noise", step).to(device, non_blocking=True)
            rows = None if world * parts == 1 else share_of(batch, parts, part, world, rank).to(device)
            seeds.reseed(seed, "dropout", step, rank, part)  # here: reading draws numbers of its own at its start, and a mask may ask a network with dropout
            drawn = {name: given for name, given in (("rows", rows), ("mask", learner.draw_mask(x, noise, rows))) if given is not None}
            with fabric.no_backward_sync(self.model, enabled=part + 1 < parts):
                losses = self.model(x, noise, **drawn)
                fabric.backward(losses["loss"] / parts)
            total |= {name: total.get(name, zero) + loss.detach() / parts for name, loss in losses.items()}
        return x, noise, rows, total if len(total) > 2 else {"loss": total["loss"]}  # one part alone is the loss

    def move(self, wanted: bool) -> Tensor:
        """Move the weights, unless a gradient is not finite: decided on the device (16-mixed: by the scaler of its gradients); the gradients' norm."""
        norm = clip(self.fabric, self.model, self.stepper, self.learner, self.settings)
        if self.fused and not self.scaled:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~torch.isfinite(norm)).float()
        if wanted and (self.fused or self.scaled or bool(torch.isfinite(norm))):
            self.stepper.step()
        self.stepper.zero_grad()
        return norm


def share_of(batch: int, parts: int, part: int, world: int, rank: int) -> Tensor:
    """Which rows of a step's batch one process computes in one part."""
    each = batch // (parts * world)
    first = part * (batch // parts) + rank * each
    return torch.arange(first, first + each)


def clip(fabric: Any, model: nn.Module, stepper: Any, learner: Learner, settings: Train) -> Tensor:
    """Clip the gradients as the settings say; their norm before that, all together."""
    apart = settings.clip is not None and settings.clip_per != "all"
    limit = math.inf if apart or settings.clip is None else settings.clip
    norm = fabric.clip_gradients(model, stepper, max_norm=limit, error_if_nonfinite=False)
    if apart:
        each = [list(one.parameters()) for one in learner.children()] if settings.clip_per == "module" else [[one] for one in learner.parameters()]
        for some in each:
            if some:
                torch.nn.utils.clip_grad_norm_(some, settings.clip)
    return norm
