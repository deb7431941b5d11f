"""What a network says about hidden places, whatever it predicts: pixels as pixels, edges as strokes, codes as what is painted from them,
features as the patches that have the nearest ones.

A feature has no picture. It is shown by patches that do: of all patches that were not hidden from the network in the same picture, the one whose
features, as the target tells them, are nearest to the predicted ones. Beside it stands the same for the true features: the best that can be shown so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import Refused
from unmask.mask import Mask
from unmask.model import Learner, MaskedModel, Predict, VocabularyLearner
from unmask.patches import patchify, unpatchify
from unmask.targets.codes import Codes
from unmask.targets.hog import HOG
from unmask.targets.pixels import Pixels
from unmask.targets.target import Target
from unmask.visualize import given, reconstruction
from unmask.visualize.pictures import HIDDEN, Colours, Row, cover, save, sheet, short_name

SIDE, STROKE = 192, 12  # pixels a side of a panel of drawn histograms, and of one of them at least
FINER = 3  # strokes are drawn this much larger and shrunk, so that they are smooth


def grid(learner: nn.Module, x: Tensor, names: Sequence[str], **words: Any) -> Image.Image:
    """The labelled sheet, one row a picture of normalised `x (B, C, H, W)`; `words` as in `reconstruction.grid`, of which others than pixels need fewer."""
    if isinstance(learner, VocabularyLearner):
        words.pop("statistics", None)
        return _worded(learner, x, names, **words)
    if isinstance(learner, Learner) and not isinstance(learner, MaskedModel):
        return given.grid(learner, x, names, **words)
    part = predicted(learner)
    if part is None or isinstance(part[1], Pixels):
        return reconstruction.grid(learner, x, names, **words)  # where nothing can be drawn, this says so
    assert isinstance(learner, MaskedModel)
    words.pop("statistics", None)
    return _sheet(learner, *part, x, names, **words)


@dataclass(frozen=True)
class Answer:
    """What was asked of some pictures, and what was said."""

    learner: MaskedModel
    target: Target
    x: Tensor  # (B, C, H, W), normalised
    mask: Mask
    prediction: Tensor  # (B, M, …)
    truth: Tensor  # (B, N, …)

    def mean(self, of_rows: Tensor) -> Tensor:
        """The mean of (B, M) numbers over the places that count, one a picture."""
        weight = torch.ones_like(of_rows) if self.mask.weight is None else (self.mask.weight > 0).float()
        return (of_rows * weight).sum(1) / weight.sum(1).clamp(min=1)


@dataclass(frozen=True)
class Drawing:
    """What stands to the right of the original and the masked picture: columns with their heads, a figure for each row, and what both mean."""

    columns: Sequence[Sequence[Image.Image]]
    heads: Sequence[str]
    figures: Sequence[str]
    legend: Sequence[str]
    title: str = "What the network says about hidden places"


def _sheet(
    learner: MaskedModel,
    name: str,
    target: Target,
    x: Tensor,
    names: Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    seed: int = 0,
    bands: Sequence[int] | None = None,
    title: str = "",
    out: Path | str | None = None,
) -> Image.Image:
    """The sheet of an answer, drawn as its target wants."""
    colours, answer = Colours.of(x, mean, std, bands), answered(learner, name, target, x, seed)
    draw: Callable[[Answer, Colours], Drawing] = _strokes if isinstance(target, HOG) else _coded if isinstance(target, Codes) else _nearest
    drawing, (seen, _) = draw(answer, colours), reconstruction.maps_of(answer.mask, learner.encoder.patch)
    rows = [
        Row([original, cover(original, looked), *panels], f"{short_name(word)}   {figure}", name=short_name(word))
        for original, looked, word, figure, *panels in zip(colours.images(x), seen, names, drawing.figures, *drawing.columns)
    ]
    heads = ["original" + colours.label, f"masked ({1 - float(seen.float().mean()):.0%} hidden)", *drawing.heads]
    return save(sheet(rows, heads, title or drawing.title, [*drawing.legend, *([colours.note] if colours.note else [])]), out)


def predicted(learner: nn.Module) -> tuple[str, Target] | None:
    """The name and the target of what is predicted; None where that is no vector at a hidden place."""
    parts = learner.objectives.items() if isinstance(learner, MaskedModel) and learner.masking is not None else ()
    return next(((name, part.target) for name, part in parts if isinstance(part, Predict)), None)


@torch.no_grad()
def answered(learner: MaskedModel, name: str, target: Target, x: Tensor, seed: int) -> Answer:
    """What a network says about a mask of some pictures."""
    x = x.to(next(learner.parameters()).device, torch.float32)
    training = learner.training
    learner.eval()
    try:
        mask = reconstruction.draw_mask(learner, x, seed)
        return Answer(learner, target, x, mask, learner.predict(x, mask, name)["prediction"].float(), target(x))
    finally:
        learner.train(training)


def _strokes(answer: Answer, colours: Colours) -> Drawing:
    """Histograms of gradients as strokes along the edges: true ones where the network looked, its own where it did not."""
    mask, truth, target = answer.mask, answer.truth, answer.target
    assert isinstance(target, HOG)
    hidden = mask.map  # (B, N)
    told = torch.where(hidden.unsqueeze(-1), mask.join(mask.visible(truth), answer.prediction), truth)  # (B, N, values)
    errors = answer.mean(_mse(answer.prediction, mask.masked(truth)))
    columns = [
        [glyphs(one, target, mask.grid, answer.x.shape[1], None if known is None else known[i]) for i, one in enumerate(values)]
        for values, known in ((told, None), (told, ~hidden), (truth, None))
    ]
    legend = [
        f"Each square of strokes is one cell of {target.cell}x{target.cell} pixels: its histogram over {target.bins} directions, mean of the channels; strokes lie along "
        "the edges, the brighter the stronger. Where the network looked, the true ones are drawn.",
        f"Squared error: mean over the numbers of hidden patches; of the best answer that is the same everywhere {float(target.baseline(mask.masked(truth), _mse)):.4f}.",
    ]
    figures = [f"squared error {error:.4f}" for error in errors.tolist()]
    return Drawing(columns, ["prediction, in its surroundings", "what was seen", "true edges"], figures, legend, "What the network says about hidden edges")


def _mse(prediction: Tensor, truth: Tensor) -> Tensor:
    return F.mse_loss(prediction, truth, reduction="none").mean(-1)


def _coded(answer: Answer, colours: Colours) -> Drawing:
    """Codes as the pictures that their tokenizer paints from them: with the likeliest codes in hidden places, and with the true ones.

    Where nothing can be painted, hidden places show patches whose code fits best.
    """
    mask, truth, target = answer.mask, answer.truth, answer.target
    assert isinstance(target, Codes)
    said = answer.prediction.argmax(-1)  # (B, M)
    told = torch.where(mask.map, mask.join(torch.zeros_like(mask.visible_ids), said), truth)
    pictures = [target.pictures(codes, mask.grid) for codes in (told, truth)]
    if pictures[0] is None:
        patches, every = patchify(answer.x.cpu(), target.patch), truth.flatten()  # codes of all patches (B·N,)
        fits = (answer.prediction, mask.masked(target.fits(answer.x)))  # (B, M, K)
        pictures = [unpatchify(_filled(mask, patches, [rows[:, every] for rows in fit]), mask.grid, target.patch) for fit in fits]
        how, heads = "shown is the patch, of these pictures but not hidden in the same one, whose code fits best", ("prediction, as patches", "truth, as patches")
    else:
        how, heads = "the tokenizer paints pictures from codes; where the network looked, the true ones are taken", ("prediction, painted from codes", "truth, painted from codes")
    right = answer.mean((said == mask.masked(truth)).float())
    legend = [
        (reconstruction.BACK if answer.learner.encoder.hides == "causal" else "")
        + f"The network predicts one of {target.tokenizer.vocabulary:,} codes for each hidden place; {how}. "
        + "On the right all codes are true: no prediction can look better than that.",
        "Few codes are named right even by a good network, since many words say nearly the same.",
    ]
    figures = [f"{share:.1%} of the codes named" for share in right.tolist()]
    return Drawing([colours.images(some.cpu()) for some in pictures if some is not None], heads, figures, legend)


@torch.no_grad()
def _worded(
    learner: VocabularyLearner,
    x: Tensor,
    names: Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    seed: int = 0,
    bands: Sequence[int] | None = None,
    title: str = "",
    out: Path | str | None = None,
) -> Image.Image:
    """Pictures beside what a tokenizer makes of their codes: painted, or spelled by squares of the other pictures that have the same ones."""
    stride = learner.tokenizer.stride
    if any(side % stride for side in x.shape[2:]):
        raise Refused(f"--img_size {x.shape[2]} {x.shape[3]} is no multiple of the {stride} pixels that a code stands for")
    training = learner.training
    fits = learner.eval().fits(x.to(next(learner.parameters()).device, torch.float32))  # (B, K, h, w)
    again = learner.painted(fits.argmax(1))
    learner.train(training)
    again, drawn = (spelled(x.cpu(), fits.cpu()), "spelled by patches of the others") if again is None else (again.cpu(), "painted from its codes")
    x, colours = x.cpu(), Colours.of(x.cpu(), mean, std, bands)
    differences = (colours.unit(x) - colours.unit(again)).abs().mean((1, 2, 3))
    pairs = zip(colours.images(x), colours.images(again), names, differences.tolist())
    rows = [Row(both, f"{short_name(word)}   mean difference {far:.3f}", name=short_name(word)) for *both, word, far in pairs]
    used = len(fits.argmax(1).unique())
    legend = [f"Mean difference: of pixels, where 1 is from black to white. {used:,} of {learner.tokenizer.vocabulary:,} codes are in use in these pictures.", *([colours.note] if colours.note else [])]
    return save(sheet(rows, ["original" + colours.label, drawn], title or "A vocabulary of picture squares", legend), out)


def spelled(x: Tensor, fits: Tensor) -> Tensor:
    """Pictures (B, C, H, W) with each square replaced by the one, of the other pictures, whose code fits it best: what codes say that cannot be painted.

    `fits` (B, K, h, w): how well each code fits each square.
    """
    grid = tuple(fits.shape[2:])
    patch = tuple(side // squares for side, squares in zip(x.shape[2:], grid))
    patches, scores = patchify(x.float(), patch), fits.flatten(2).transpose(1, 2)  # (B, N, values), (B, N, K)
    every = scores.argmax(-1).flatten()  # codes of all squares (B·N,)
    found = []
    for i in range(len(x)):
        own = torch.zeros(patches.shape[:2], dtype=torch.bool)
        own[i] = len(x) > 1
        found.append(scores[i][:, every].masked_fill(own.flatten(), -torch.inf).argmax(-1))
    return unpatchify(patches.flatten(0, 1)[torch.stack(found)], grid, patch)


def glyphs(values: Tensor, target: HOG, grid: tuple[int, ...], in_chans: int, known: Tensor | None = None) -> Image.Image:
    """The histograms (N, C·bins·cells) of one picture as strokes; where `known (N,)` is False the grey of hidden places."""
    maps = unpatchify(values.cpu().unsqueeze(0).clamp(min=0), grid, target.cells)[0]  # (C·bins, rows, columns)
    strength = maps.unflatten(0, (in_chans, target.bins)).mean(0)  # (bins, rows, columns)
    strength = strength / strength.amax().clamp(min=1e-6)
    _, rows, columns = strength.shape
    stroke = max(STROKE, SIDE // rows)
    size = stroke * FINER
    canvas = Image.new("RGB", (columns * size, rows * size))
    draw = ImageDraw.Draw(canvas)
    for row in range(rows):
        for column in range(columns):
            centre = ((column + 0.5) * size, (row + 0.5) * size)
            if known is not None and not known[(row // target.cells[0]) * grid[1] + column // target.cells[1]]:
                draw.rectangle((column * size, row * size, (column + 1) * size, (row + 1) * size), HIDDEN)
                continue
            for bin in strength[:, row, column].argsort().tolist():  # the strongest last, on top
                angle = (bin + 0.5) * math.pi / target.bins  # of the gradient, from the vertical; the edge lies across it
                dx, dy = 0.45 * size * math.cos(angle), -0.45 * size * math.sin(angle)
                grey = round(255 * float(strength[bin, row, column]))
                draw.line((centre[0] - dx, centre[1] - dy, centre[0] + dx, centre[1] + dy), (grey, grey, grey), FINER * 2)
    return canvas.resize((columns * stroke, rows * stroke), Image.Resampling.LANCZOS)


def _nearest(answer: Answer, colours: Colours) -> Drawing:
    """Hidden places filled with the patches whose features are nearest to the predicted, and to the true ones."""
    mask, truth, prediction, patch = answer.mask, answer.truth, answer.prediction, answer.learner.encoder.patch
    if prediction.dim() != 3 or prediction.shape[-1] != truth.shape[-1]:
        raise Refused("reconstruct draws predicted pixels, edges and features; what this network predicts has no picture")
    seen, hidden = reconstruction.maps_of(mask, patch)
    patches, wanted = patchify(answer.x.cpu(), patch), mask.masked(truth)
    middle = truth.flatten(0, 1).mean(0)
    gallery = F.normalize((truth - middle).flatten(0, 1), dim=-1)  # (B·N, D)
    filled = [_filled(mask, patches, list(F.normalize(said - middle, dim=-1) @ gallery.T)) for said in (prediction, wanted)]
    alike = answer.mean(F.cosine_similarity(prediction - middle, wanted - middle, dim=-1))  # (B,)
    columns = [[cover(picture, known) for picture, known in zip(colours.images(unpatchify(values, mask.grid, patch)), seen | hidden)] for values in filled]
    apart = " Grey that stays grey was neither looked at nor asked about." if bool((~(seen | hidden)).any()) else ""
    legend = [
        f"The network predicts features of {truth.shape[-1]} numbers, which have no picture. Each hidden place shows, of all patches of these {len(patches)} pictures but those hidden "
        "in the same one, the patch whose features are nearest (cosine, the mean taken off); on the right nearest to the true features." + apart,
        "Likeness: mean cosine of predicted and true features in hidden places, the mean of all patches taken off: 0 is an answer that is the same everywhere, 1 is right.",
    ]
    figures = [f"likeness {likeness:.2f}" for likeness in alike.tolist()]
    return Drawing(columns, ["prediction, as the nearest patches", "truth, as the nearest patches"], figures, legend)


def _filled(mask: Mask, patches: Tensor, alike: Sequence[Tensor]) -> Tensor:
    """The patch vectors of each picture (B, N, …), the masked ones replaced by those of most likeness: `alike`, one a picture, is (M, B·N)."""
    B, N = patches.shape[:2]
    hidden, found = mask.map, []
    for i in range(B):
        own = torch.zeros(B, N, dtype=torch.bool, device=hidden.device)
        own[i] = hidden[i]
        found.append(alike[i].masked_fill(own.flatten(), -torch.inf).argmax(-1).cpu())
    chosen = patches.flatten(0, 1)[torch.stack(found)]  # (B, M, values)
    ours = Mask(mask.visible_ids.cpu(), mask.masked_ids.cpu(), mask.grid, None if mask.weight is None else mask.weight.cpu())
    return torch.where(ours.map.unsqueeze(-1), ours.join(ours.visible(patches), chosen), patches)
