"""What a network imagines behind the mask: original, masked, prediction pasted into the visible, error.

A network trained on per-patch normalised pixels does not say how bright or how contrasted a hidden patch is, so its
answer alone "looks wrong" (facebookresearch/mae, issue 12). The true mean and deviation of the hidden patches would give
part of the picture away; by default both are estimated from the visible patches nearby, and the picture says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from unmask import seeds
from unmask.encoders.adapter import Adapter
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import Prefix
from unmask.model import MaskedModel, Predict
from unmask.patches import patchify, unpatchify
from unmask.targets.pixels import Pixels
from unmask.visualize.pictures import Colours, Row, cover, heat, save, sheet, short_name

Statistics = Literal["visible", "truth"]
FALLOFF = 3.0  # weight = distance^-3: least error of the estimated mean among powers 1-6 and Gaussians (22 photographs, 4 grids)
TRUST = 0.1  # weight of that estimate beside one border of a patch: least error among .1, .3, 1, 3 (one network, 22 photographs and their mirrors)
ROUNDS, EXACT = 200, 1e-6  # of conjugate gradients: at most so many, until the rest is this small beside the right side
ERROR_TOP = 0.4  # the error shown as the brightest colour, where 1 is the whole range from black to white
SAID = {
    "raw": "The network predicts pixels as they are.",
    "visible": "The network predicts normalised patches: mean and std of each hidden patch are estimated from the visible patches nearby, "
    "the mean also so that borders meet (nothing hidden is used).",
    "channels": "The network predicts patches normalised channel by channel: mean and std of each are estimated from the visible patches nearby (nothing hidden is used).",
    "truth": "This picture uses the true patch mean and std of the hidden patches, which the network did not predict: "
    "brightness, contrast and blocky shapes are given away.",
}
BACK = "Each hidden patch is predicted from the true patches before it, in reading order: nothing is painted further. "


@dataclass(frozen=True)
class Reconstruction:
    """One answer of the network, as pictures in the network's own (normalised) numbers, all (B, C, H, W).

    `pasted` holds the original where it was seen and the prediction where it was hidden; `filled` holds, where it was
    hidden, a smooth blend of the mean colours of the visible patches: what needs no network. `seen` and `hidden`
    (B, H, W) are True there; a place may be neither (I-JEPA, CrossMAE). `said` is the sentence about the statistics.
    """

    pasted: Tensor
    filled: Tensor
    seen: Tensor
    hidden: Tensor
    said: str


def spread(values: Tensor, mask: Mask) -> Tensor:
    """What the visible patches say about the hidden places: `values (B, V, K)` to `(B, M, K)`, the near ones weighing most.

    Inverse distance weighting (Shepard, 1968) on the grid of patches.
    """
    axes = torch.meshgrid(*(torch.arange(side, device=values.device) for side in mask.grid), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes], dim=1).float()  # (N, axes)
    distance = torch.cdist(places[mask.masked_ids], places[mask.visible_ids]).clamp_min(0.5)  # (B, M, V)
    weight = distance**-FALLOFF
    return (weight / weight.sum(-1, keepdim=True)) @ values.float()


def levels(values: Tensor, mean: Tensor, visible: Tensor, mask: Mask, patch: tuple[int, ...]) -> Tensor:
    """The mean `(B, M, 1)` of each hidden patch for which predicted patches and their neighbours meet best at their borders.

    `values (B, M, C·p·p)` are the predicted patches without their mean, `mean` the estimate they are drawn to, `visible
    (B, V, C·p·p)` the patches that are known. Least squares over all borders, as in gradient-domain editing (Perez et al.,
    2003), with one unknown a patch; nothing hidden enters.
    """
    N, side = math.prod(mask.grid), mask.grid[1]
    whole = mask.join(visible, values).unflatten(-1, (-1, *patch))  # (B, N, C, p, p)
    hidden = mask.map  # (B, N)
    known = hidden | torch.zeros_like(hidden).scatter(1, mask.visible_ids, True)
    ids = torch.arange(N, device=values.device)
    across = (ids[ids % side < side - 1], 1, whole[..., -1].mean((2, 3)), whole[..., 0].mean((2, 3)))  # border means (B, N)
    down = (ids[ids < N - side], side, whole[..., -1, :].mean((2, 3)), whole[..., 0, :].mean((2, 3)))
    right = TRUST * mask.join(torch.zeros_like(visible[..., :1]), mean)[..., 0]  # (B, N)
    borders = []  # (patches, their neighbours, 1 where both are known or predicted)
    for i, step, end, start in (across, down):
        j = i + step
        meet = (known[:, i] & known[:, j]).float()  # (B, borders)
        gap = meet * (start[:, j] - end[:, i])
        right[:, i] += gap
        right[:, j] -= gap
        borders.append((i, j, meet))

    def rule(level: Tensor) -> Tensor:
        """What the equations make of levels `(B, N)`, which are 0 where a patch is known."""
        answer = TRUST * level
        for i, j, meet in borders:
            jump = meet * (level[:, i] - level[:, j])
            answer[:, i] += jump
            answer[:, j] -= jump
        return answer * hidden

    return mask.masked(conjugate_gradients(rule, right * hidden).unsqueeze(-1))


def conjugate_gradients(rule: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """The `x` for which `rule(x) == right`, each row `(B, N)` its own system; `rule` is linear, symmetric and positive.

    Hestenes and Stiefel (1952). The condition of `levels` is at most (8 + TRUST) / TRUST = 81, whatever the number of patches: about 70
    rounds, each of cost N, where the matrix would have N² numbers.
    """
    x, rest, way = torch.zeros_like(right), right.clone(), right.clone()
    size = first = rest.square().sum(1, keepdim=True)  # (B, 1)
    for _ in range(ROUNDS):
        if bool((size <= first * EXACT**2).all()):
            break
        bent = rule(way)
        pace = size / (way * bent).sum(1, keepdim=True).clamp_min(1e-30)
        x, rest = x + pace * way, rest - pace * bent
        size, before = rest.square().sum(1, keepdim=True), size
        way = rest + size / before.clamp_min(1e-30) * way
    return x


def pixel_objective(learner: nn.Module) -> tuple[str, Pixels]:
    """The name and target of the objective that predicts pixels; a learner that predicts none is refused."""
    if not isinstance(learner, MaskedModel):
        raise Refused(f"a {type(learner).__name__} masks no pictures, so there is nothing to reconstruct")
    for name, objective in learner.objectives.items():
        if isinstance(objective, Predict) and isinstance(objective.target, Pixels):
            return name, objective.target
    targets = ", ".join(name for name, objective in learner.objectives.items() if isinstance(objective, Predict))
    if not targets:
        why = "nothing is hidden from this network while it learns" if learner.masking is None else "what this network says of hidden patches is a teacher's answer, and no picture"
        raise Refused(f"there is nothing to reconstruct: {why}; see `unmask show features`")
    raise Refused(f"reconstruct draws predicted pixels; this network predicts {targets} instead: see `unmask show features` for what it learned")


def first_half(grid: tuple[int, ...], x: Tensor) -> Mask:
    """The mask that shows the first half of every picture, in reading order."""
    seen, hidden = torch.arange(math.prod(grid), device=x.device).expand(len(x), -1).tensor_split([math.prod(grid) // 2], dim=1)
    return Mask(seen, hidden, grid)


def draw_mask(learner: MaskedModel, x: Tensor, seed: int = 0) -> Mask:
    """One mask a picture from the network's own strategy: the same for the same seed, on every machine."""
    if isinstance(learner.masking, Prefix):
        return first_half(learner.encoder.grid(x), x)
    mask = learner.draw_mask(x, seeds.uniform((len(x), learner.draws(x)), seed, "reconstruct").to(x.device))
    if mask is None:
        raise Refused("this network masks nothing, so there is nothing to reconstruct")
    if len(mask.grid) != 2:
        raise Refused(f"reconstruct draws pictures; this network's input has {len(mask.grid)} axes")
    return mask.rows(torch.arange(len(x), device=x.device) * (len(mask.masked_ids) // len(x)))  # the first of several masks


@torch.no_grad()
def reconstruct(learner: nn.Module, x: Tensor, mask: Mask | None = None, statistics: Statistics = "visible", seed: int = 0) -> Reconstruction:
    """Let the network predict what `mask` hides of the normalised pictures `x (B, C, H, W)`.

    Without `mask` one is drawn from `seed`. `statistics` counts only where the target is normalised patch by patch.
    The network's training mode is put back as it was.
    """
    name, target = pixel_objective(learner)
    assert isinstance(learner, MaskedModel)
    x = x.to(next(learner.parameters()).device, torch.float32)
    training = learner.training
    learner.eval()
    try:
        mask = draw_mask(learner, x, seed) if mask is None else mask
        prediction = learner.predict(x, mask, name)["prediction"].float()  # (B, M, C·prod(patch))
    finally:
        learner.train(training)
    patches = patchify(x, target.patch)  # (B, N, C·prod(patch))
    source = mask.masked(patches) if statistics == "truth" else mask.visible(patches)
    mean, std = target.statistics(source)  # (B, M or V, 1)
    if statistics == "visible":
        mean, std = spread(torch.cat([mean, std], -1), mask).chunk(2, dim=-1)  # (B, M, 1) each, or by channel
        whole = target.normalize and not target.by_channel
        mean = levels(prediction * std, mean, mask.visible(patches), mask, target.patch) if whole else mean
    values = target.restore(prediction, mean, std)
    channels, area = x.shape[1], math.prod(target.patch)
    colour = mask.visible(patches).unflatten(-1, (channels, area)).mean(-1)  # (B, V, C)
    smooth = spread(colour, mask).repeat_interleave(area, dim=-1)  # (B, M, C·prod(patch))
    pictures = [torch.where(mask.map.unsqueeze(-1), mask.join(mask.visible(patches), v), patches) for v in (values, smooth)]
    pasted, filled = (unpatchify(picture, mask.grid, target.patch).cpu() for picture in pictures)
    maps = maps_of(mask, target.patch)
    back = BACK if isinstance(learner.encoder, Adapter) and learner.encoder.hides == "causal" else ""
    how = "raw" if not target.normalize else "channels" if target.by_channel and statistics == "visible" else statistics
    return Reconstruction(pasted, filled, maps[0], maps[1], back + SAID[how])


def maps_of(mask: Mask, patch: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Where the network looked, and what it was asked about: (B, H, W) True there. A place may be neither."""
    hidden = mask.map  # (B, N)
    seen = torch.zeros_like(hidden).scatter(1, mask.visible_ids, True) & ~hidden
    seen = seen | (~hidden if mask.weight is not None else seen)  # padded lists hide by token: what is not masked is seen
    area = math.prod(patch)
    both = [unpatchify(some.unsqueeze(-1).expand(-1, -1, area).float(), mask.grid, patch)[:, 0].bool().cpu() for some in (seen, hidden)]
    return both[0], both[1]


def error(first: Tensor, second: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute difference of pictures in 0..1, mean over channels, (B, H, W); and its mean over what is hidden, (B,)."""
    difference = (first - second).abs().mean(1) * hidden  # (B, H, W)
    return difference, difference.sum((1, 2)) / hidden.sum((1, 2)).clamp_min(1)


def grid(
    learner: nn.Module,
    x: Tensor,
    names: Sequence[str],
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    statistics: Statistics = "visible",
    seed: int = 0,
    bands: Sequence[int] | None = None,
    title: str = "",
    out: Path | str | None = None,
) -> Image.Image:
    """The labelled sheet, one row a picture of normalised `x (B, C, H, W)`; written to `out` where given.

    `mean` and `std` are the run's, a number a channel: they undo the normalisation. `bands`: the channels that are drawn, from 0,
    one or three; not given, of more than three the first three.
    """
    colours = Colours.of(x, mean, std, bands)
    answer = reconstruct(learner, x, statistics=statistics, seed=seed)
    truth = colours.unit(x)
    maps, errors = error(colours.unit(answer.pasted), truth, answer.hidden)
    fills = error(colours.unit(answer.filled), truth, answer.hidden)[1]
    originals, pasted = colours.images(x), colours.images(answer.pasted)
    rows = []
    for i, name in enumerate(names):
        known = answer.seen[i] | answer.hidden[i]
        panels = [originals[i], cover(originals[i], answer.seen[i]), cover(pasted[i], known), heat(maps[i], ERROR_TOP)]
        rows.append(Row(panels, f"{short_name(name)}   error {errors[i]:.3f}, smooth fill {fills[i]:.3f}", name=short_name(name)))
    share = 1 - float(answer.seen.float().mean())
    told = statistics == "truth" and "true patch mean" in answer.said
    header = ["original" + colours.label, f"masked ({share:.0%} hidden)", "prediction" + (" + true mean, std" if told else ""), "error"]
    better = int((errors < fills).sum())
    legend = [
        answer.said + " Visible patches are pasted from the original; seams between patches are normal.",
        f"Error: mean absolute difference in the hidden patches, where 1 is from black to white; black 0, pale yellow {ERROR_TOP:g} and more.",
        "Smooth fill: the same number with the hidden patches filled with blended mean colours of the visible ones, without a network. "
        + (
            "It is not told the true mean and std, so here the two cannot be compared."
            if told
            else f"The prediction is closer than that in {better} of {len(names)} pictures; mean {errors.mean():.3f} against {fills.mean():.3f}."
        ),
        *([colours.note] if colours.note else []),
    ]
    heading = title or "Reconstruction"
    return save(sheet(rows, header, heading + (" (uses the true patch mean and std)" if told else ""), legend), out)
