"""Linear probes: can a linear map read the labels off the frozen features? Features are computed once and kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask import seeds
from unmask.errors import Refused
from unmask.evaluation.features import FeatureTable
from unmask.evaluation.metrics import Curve
from unmask.optim.lars import Lars
from unmask.optim.schedule import cosine, warmup_cosine

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # learning rates per 256 samples, on standardised features
HELD_OUT = 0.2  # of the training set: what rates, penalties, poolings and layers are chosen by
PENALTIES = tuple(10.0**power for power in range(-4, 5))  # of ridge regression, beside the features' mean variance of 1
PAPER_LR = 6.4  # MAE's: .1 per 256 at its batch of 16,384


@dataclass(frozen=True)
class Probe:
    """A trained head and how it came to be; called with features `(m, D)` of its pooling it gives its answers.

    `(m, K)`: the logits of the classes or tags, or the numbers themselves.
    """

    weight: Tensor  # (D, K)
    bias: Tensor  # (K,)
    mean: Tensor  # (D,) of the features it was trained on
    std: Tensor  # (D,)
    pooling: str
    lr: float  # the absolute peak learning rate; of a closed form 0
    batch_size: int
    epochs: int
    sweep: tuple[dict, ...] = ()  # what was tried, with its figure on the held-out part of the training set
    l2: float = 0.0  # the penalty of ridge regression

    def __call__(self, features: Tensor) -> Tensor:
        """Answers (m, K) to features (m, D)."""
        return (features.float() - self.mean) / self.std @ self.weight + self.bias


def linear(
    table: FeatureTable,
    outputs: int,
    poolings: Sequence[str] | None = None,
    epochs: int = 100,
    batch_size: int | None = None,
    seed: int = 0,
    rates: tuple[float, ...] = RATES,
    held_out: float = HELD_OUT,
) -> Probe:
    """The fast probe of `outputs` classes or tags: every learning rate at once on standardised features, the best rate and pooling kept.

    Cross entropy over classes, binary cross entropy for each tag. The choice is made on a stratified `held_out` share of the
    training set (by accuracy, or the mean area under the ROC curves), never on the validation set (five shares, averaged, below
    2,000 pictures, where one is too noisy); the chosen head is then trained on the whole training set. SGD with momentum .9, no
    weight decay, cosine to 0, weights from N(0, .01), as DINO's linear evaluation; a sweep over rates and poolings, as DINOv2's.
    """
    labels = table.truth()
    judged = "held_out_top1" if labels.ndim == 1 else "held_out_auroc"
    batch_size = batch_size or _batch(len(labels))
    absolute = torch.tensor(rates) * batch_size / 256
    parts = shares(table, held_out, seed)
    tried = list[dict[str, Any]]()
    for pooling in poolings or table.poolings:
        x, good, loss = table.of(pooling), torch.zeros(len(rates)), torch.zeros(len(rates))  # (n, D), (H,), (H,)
        for fit, held in parts:
            mean, std = _moments(x[fit])
            weight, bias = descend((x[fit] - mean) / std, labels[fit], absolute, outputs, epochs, batch_size, seed)
            logits = torch.einsum("nd,hdk->hnk", (x[held] - mean) / std, weight) + bias[:, None]  # (H, held, K)
            more = _judge(logits, labels[held])  # (2, H)
            good, loss = good + more[0] / len(parts), loss + more[1] / len(parts)
        for i, lr in enumerate(absolute.tolist()):
            tried.append({"pooling": pooling, "lr": lr, judged: float(good[i]), "held_out_loss": float(loss[i])})
    best = max(tried, key=lambda row: (row[judged], -row["held_out_loss"]))
    x = table.of(best["pooling"])
    mean, std = _moments(x)
    weight, bias = descend((x - mean) / std, labels, torch.tensor([best["lr"]]), outputs, epochs, batch_size, seed)
    return Probe(weight[0], bias[0], mean, std, best["pooling"], best["lr"], batch_size, epochs, tuple(tried))


def shares(table: FeatureTable, held_out: float, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(rows to fit, rows to choose by): five times below 2,000 pictures. Whole groups, where there are two or more."""
    if table.groups is not None and len(table.groups.unique()) < 2:
        table = replace(table, groups=None)
    parts = [table.held_out(held_out, seed + 1000 * part) for part in range(5 if len(table) < 2000 else 1)]
    if not len(parts[0][1]):
        raise Refused("a linear probe needs at least two labelled pictures of a class: give more pictures")
    return parts


def _judge(logits: Tensor, labels: Tensor) -> Tensor:
    """(2, H): accuracy, or the mean area under the ROC curves of the tags, and the loss, of H heads with logits (H, held, K)."""
    heads = len(logits)
    if labels.ndim == 1:
        right = 100 * (logits.argmax(dim=2) == labels).float().mean(dim=1)
        loss = F.cross_entropy(logits.transpose(1, 2), labels.expand(heads, -1), reduction="none").mean(dim=1)
        return torch.stack([right, loss]).cpu()
    known = ~labels.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num().expand_as(logits), reduction="none")[:, known].mean(dim=1)
    areas = torch.full((heads, labels.shape[1]), math.nan)
    for k in range(labels.shape[1]):
        rows = known[:, k]
        truth = labels[rows, k].cpu()
        if 0 < truth.sum() < len(truth):
            for head in range(heads):
                areas[head, k] = Curve(logits[head, rows, k].cpu(), truth)(torch.ones(1, len(truth)))[0]
    return torch.stack([areas.nanmean(dim=1).nan_to_num(0.5), loss.cpu()])


def descend(
    x: Tensor,
    labels: Tensor,
    rates: Tensor,
    outputs: int,
    epochs: int,
    batch_size: int,
    seed: int,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """SGD with momentum .9 and cosine of H linear heads at once, one for each of `rates (H,)`: weights (H, D, K), biases (H, K).

    The heads share one matrix product. `labels` (n,): the gradient of the mean cross entropy is (softmax - one-hot) / batch;
    (n, K), tags: (sigmoid - tags) / batch, 0 where a tag is unknown. All begin at `start` (weights (D, K), biases (K,)); not
    given, at N(0, .01) and 0.
    """
    (n, D), H, device = x.shape, len(rates), x.device
    if start is None:
        first = torch.Generator().manual_seed(seeds.key(seed, "probe weights"))
        start = 0.01 * torch.randn(D, outputs, generator=first), torch.zeros(outputs)
    W, b = start[0].to(device).repeat(1, H), start[1].to(device).repeat(H)  # (D, H·K), (H·K,)
    W_speed, b_speed = torch.zeros_like(W), torch.zeros_like(b)
    pace = rates.to(device, x.dtype).repeat_interleave(outputs)  # (H·K,)
    order = torch.Generator().manual_seed(seeds.key(seed, "probe order"))
    steps, step = epochs * math.ceil(n / batch_size), 0
    for _ in range(epochs):
        for rows in torch.randperm(n, generator=order).to(device).split(batch_size):
            logits = torch.addmm(b, x[rows], W).view(len(rows), H, outputs)
            if labels.ndim == 1:
                slope = logits.softmax(dim=2)  # (batch, H, K)
                slope[torch.arange(len(rows), device=device), :, labels[rows]] -= 1
            else:
                slope = (logits.sigmoid() - labels[rows, None]).nan_to_num(0.0)
            slope = slope.flatten(1) / len(rows)  # (batch, H·K)
            W_speed.mul_(0.9).addmm_(x[rows].T, slope)
            b_speed.mul_(0.9).add_(slope.sum(dim=0))
            now = pace * cosine(step, steps, 1.0, 0.0)
            W.sub_(now * W_speed)
            b.sub_(now * b_speed)
            step += 1
    return W.view(D, H, outputs).transpose(0, 1), b.view(H, outputs)


def ridge(table: FeatureTable, poolings: Sequence[str] | None = None, seed: int = 0, penalties: tuple[float, ...] = PENALTIES, held_out: float = HELD_OUT) -> Probe:
    """Least squares with a penalty, in closed form, on standardised features: the best penalty and pooling kept.

    Hoerl and Kennard, Technometrics 12 (1970). Chosen by the mean R² of the numbers on held-out shares, as in `linear`.
    """
    y = table.truth()
    parts, tried = shares(table, held_out, seed), list[dict[str, Any]]()
    for pooling in poolings or table.poolings:
        x, good = table.of(pooling), torch.zeros(len(penalties))  # (n, D), (H,)
        for fit, held in parts:
            mean, std = _moments(x[fit])
            weight, bias = least_squares((x[fit] - mean) / std, y[fit], penalties)
            answers = torch.einsum("nd,hdt->hnt", (x[held] - mean) / std, weight) + bias[:, None]  # (H, held, T)
            middle = y[held].nanmean(dim=0)
            error, spread = ((guess - y[held]).square().nansum(dim=-2) for guess in (answers, middle))  # (H, T), (T,)
            good += (1 - error / spread)[:, spread > 0].mean(dim=1).nan_to_num(0.0).cpu() / len(parts)
        tried += [{"pooling": pooling, "l2": l2, "held_out_r2": float(one)} for l2, one in zip(penalties, good)]
    best = max(tried, key=lambda row: row["held_out_r2"])
    x = table.of(best["pooling"])
    mean, std = _moments(x)
    weight, bias = least_squares((x - mean) / std, y, (best["l2"],))
    return Probe(weight[0], bias[0], mean, std, best["pooling"], 0.0, len(table), 0, tuple(tried), best["l2"])


def least_squares(x: Tensor, y: Tensor, penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Weights (H, D, T) and biases (H, T) that minimise mean((x w + b - y)²) + penalty |w|², for each of H penalties.

    A y (n, T) that is NaN is unknown: that number is fitted without the row. The bias is not penalised.
    """
    weights, biases = [], []
    for columns in y.split(1, dim=1) if bool(y.isnan().any()) else [y]:
        known = ~columns.isnan().any(dim=1)
        rows, truth = x[known].double(), columns[known].double()
        if not len(rows):
            weights.append(x.new_zeros(len(penalties), x.shape[1], 1))
            biases.append(x.new_zeros(len(penalties), 1))
            continue
        middle, centre = rows.mean(dim=0), truth.mean(dim=0)
        rows, truth, (n, D) = rows - middle, truth - centre, rows.shape
        wide = n < D
        values, basis = torch.linalg.eigh((rows @ rows.T if wide else rows.T @ rows) / n)  # of the smaller of the two products
        inside = basis.T @ (truth if wide else rows.T @ truth) / n
        basis = rows.T @ basis if wide else basis  # (D, min(n, D))
        found = torch.stack([basis @ (inside / (values.clamp_min(0) + l2)[:, None]) for l2 in penalties])  # (H, D, T)
        weights.append(found.float())
        biases.append((centre - torch.einsum("d,hdt->ht", middle, found)).float())
    return torch.cat(weights, dim=2), torch.cat(biases, dim=1)


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
