"""Linear probes: can a linear map read the classes off the frozen features? Features are computed once and kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask import seeds
from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable
from unmask.optim.lars import Lars
from unmask.optim.schedule import cosine, warmup_cosine

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # learning rates per 256 samples, on standardised features
PAPER_LR = 6.4  # MAE's: .1 per 256 at its batch of 16,384


@dataclass(frozen=True)
class Probe:
    """A trained head and how it came to be; called with features `(m, D)` of its pooling it gives logits `(m, classes)`."""

    weight: Tensor  # (D, classes)
    bias: Tensor  # (classes,)
    mean: Tensor  # (D,) of the features it was trained on
    std: Tensor  # (D,)
    pooling: str
    lr: float  # the absolute peak learning rate
    batch_size: int
    epochs: int
    sweep: tuple[dict, ...] = ()  # what was tried, with its accuracy in percent on the held-out part of the training set

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (m, classes) of features (m, D)."""
        return (features.float() - self.mean) / self.std @ self.weight + self.bias


def linear(
    table: FeatureTable,
    classes: int,
    poolings: tuple[str, ...] | None = None,
    epochs: int = 100,
    batch_size: int | None = None,
    seed: int = 0,
    rates: tuple[float, ...] = RATES,
    held_out: float = 0.2,
) -> Probe:
    """The fast probe: every learning rate at once on standardised features, the best rate and pooling kept.

    The choice is made on a stratified `held_out` share of the training set, never on the validation set (five shares,
    averaged, below 2,000 pictures, where one is too noisy); the chosen head is then trained on the whole training set. SGD with momentum .9, no weight decay, cosine to 0, weights from
    N(0, .01), as DINO's linear evaluation; a sweep over rates and poolings, as DINOv2's.
    """
    labels = table.classes_of()
    batch_size = batch_size or _batch(len(labels))
    absolute = torch.tensor(rates) * batch_size / 256
    parts = [table.held_out(held_out, seed + 1000 * part) for part in range(5 if len(labels) < 2000 else 1)]
    if not len(parts[0][1]):
        raise Refused("a linear probe needs at least two labelled pictures of a class: give more pictures")
    tried = []
    for pooling in poolings or table.poolings:
        x, right, loss = table.of(pooling), torch.zeros(len(rates)), torch.zeros(len(rates))  # (n, D), (H,), (H,)
        for fit, held in parts:
            mean, std = _moments(x[fit])
            weight, bias = descend((x[fit] - mean) / std, labels[fit], absolute, classes, epochs, batch_size, seed)
            logits = torch.einsum("nd,hdk->hkn", (x[held] - mean) / std, weight) + bias[:, :, None]  # (H, classes, held)
            right += (logits.argmax(dim=1) == labels[held]).float().mean(dim=1).cpu() / len(parts)
            loss += F.cross_entropy(logits, labels[held].expand(len(rates), -1), reduction="none").mean(dim=1).cpu() / len(parts)
        for i, lr in enumerate(absolute.tolist()):
            tried.append({"pooling": pooling, "lr": lr, "held_out_top1": 100 * float(right[i]), "held_out_loss": float(loss[i])})
    best = max(tried, key=lambda row: (row["held_out_top1"], -row["held_out_loss"]))
    x = table.of(best["pooling"])
    mean, std = _moments(x)
    weight, bias = descend((x - mean) / std, labels, torch.tensor([best["lr"]]), classes, epochs, batch_size, seed)
    return Probe(weight[0], bias[0], mean, std, best["pooling"], best["lr"], batch_size, epochs, tuple(tried))


def descend(
    x: Tensor,
    labels: Tensor,
    rates: Tensor,
    classes: int,
    epochs: int,
    batch_size: int,
    seed: int,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """SGD with momentum .9 and cosine of H linear heads at once, one for each of `rates (H,)`: weights (H, D, classes), biases (H, classes).

    The heads share one matrix product; the gradient of the mean cross entropy is (softmax - one-hot) / batch.
    All begin at `start` (weights (D, classes), biases (classes,)); not given, at N(0, .01) and 0.
    """
    (n, D), H, device = x.shape, len(rates), x.device
    if start is None:
        first = torch.Generator().manual_seed(seeds.key(seed, "probe weights"))
        start = 0.01 * torch.randn(D, classes, generator=first), torch.zeros(classes)
    W, b = start[0].to(device).repeat(1, H), start[1].to(device).repeat(H)  # (D, H·classes), (H·classes,)
    W_speed, b_speed = torch.zeros_like(W), torch.zeros_like(b)
    pace = rates.to(device, x.dtype).repeat_interleave(classes)  # (H·classes,)
    order = torch.Generator().manual_seed(seeds.key(seed, "probe order"))
    steps, step = epochs * math.ceil(n / batch_size), 0
    for _ in range(epochs):
        for rows in torch.randperm(n, generator=order).to(device).split(batch_size):
            slope = torch.addmm(b, x[rows], W).view(len(rows), H, classes).softmax(dim=2)  # (batch, H, classes)
            slope[torch.arange(len(rows), device=device), :, labels[rows]] -= 1
            slope = slope.flatten(1) / len(rows)  # (batch, H·classes)
            W_speed.mul_(0.9).addmm_(x[rows].T, slope)
            b_speed.mul_(0.9).add_(slope.sum(dim=0))
            now = pace * cosine(step, steps, 1.0, 0.0)
            W.sub_(now * W_speed)
            b.sub_(now * b_speed)
            step += 1
    return W.view(D, H, classes).transpose(0, 1), b.view(H, classes)


def lars(table: FeatureTable, classes: int, pooling: str | None = None, epochs: int = 90, batch_size: int | None = None, seed: int = 0) -> Probe:
    """MAE's own protocol on kept features: BatchNorm without affine, a linear layer, LARS; the crops of the paper are left out.

    MAE, main_linprobe.py and util/lars.py: weights from a normal of .01, momentum .9, no weight decay, 10 epochs of
    warm-up, cosine to 0, 90 epochs, class token. The paper's batch is 16,384 of 1.28 million: 78 steps an epoch. A smaller
    set takes the power of two that keeps about as many, and keeps the paper's rate of 6.4: a LARS step is a share of the
    weights' own size, so that the rule of .1 per 256 hardly moves them at small batches (5,000 CIFAR-10 pictures on a
    random ViT: 24.4 % by the rule, 42.0 % at 6.4). The paper draws a new random crop each epoch; here every epoch sees
    the features of the centre crop.
    """
    pooling, labels = pooling or table.poolings[0], table.classes_of()
    x = table.of(pooling)
    n = len(labels)
    batch_size = min(batch_size or min(16384, _batch(n, steps=78)), n)
    if n < 2:
        raise Refused("a linear probe needs at least two labelled pictures to train on")
    norm = nn.BatchNorm1d(x.shape[1], affine=False, eps=1e-6).to(x.device)
    last = nn.Linear(x.shape[1], classes).to(x.device)
    start = torch.Generator().manual_seed(seeds.key(seed, "probe weights"))
    last.weight.data.copy_(nn.init.trunc_normal_(torch.empty(classes, x.shape[1]), std=0.01, generator=start))
    nn.init.zeros_(last.bias)
    optimizer = Lars(last.parameters(), lr=PAPER_LR, momentum=0.9, weight_decay=0.0)
    order, steps_an_epoch = torch.Generator().manual_seed(seeds.key(seed, "probe order")), n // batch_size
    warmup = (10 if epochs > 10 else epochs / 10) * steps_an_epoch
    for epoch in range(epochs):
        shuffled = torch.randperm(n, generator=order).to(x.device)
        for i in range(steps_an_epoch):  # the last, smaller batch is left out, as in the paper: BatchNorm would shift
            for group in optimizer.param_groups:
                group["lr"] = warmup_cosine(epoch * steps_an_epoch + i, epochs * steps_an_epoch, warmup, PAPER_LR)
            rows = shuffled[i * batch_size : (i + 1) * batch_size]
            optimizer.zero_grad()
            F.cross_entropy(last(norm(x[rows])), labels[rows]).backward()
            optimizer.step()
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    std = (variance + norm.eps).sqrt()
    return Probe(last.weight.detach().T.contiguous(), last.bias.detach(), mean, std, pooling, PAPER_LR, batch_size, epochs)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature; a constant feature keeps the scale 1."""
    std = x.std(dim=0, correction=0)
    return x.mean(dim=0), torch.where(std > 1e-6, std, torch.ones_like(std))


def _batch(n: int, steps: int = 16) -> int:
    """A power of two between 32 and 1,024 (for the paper's protocol: 16,384) that makes about `steps` steps an epoch."""
    largest = 1024 if steps == 16 else 16384
    return min(largest, max(32, 2 ** int(math.log2(max(n / steps, 1)))))
