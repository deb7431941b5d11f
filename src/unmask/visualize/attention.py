"""Where an encoder looks, and what its patches say: attention maps of the last block, and patch features as colours."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmask.encoders.attention import looked
from unmask.errors import Refused
from unmask.visualize.pictures import Colours, Row, enlarge, heat, save, sheet, short_name


@dataclass(frozen=True)
class Attention:
    """How much each patch is looked at in the last block.

    `maps` (B, heads, rows, columns) sum, over the patches, to at most 1 a head: the rest goes to class and register
    tokens. `asks` says whose attention it is.
    """

    maps: Tensor
    asks: str


@contextmanager
def _evaluating(model: nn.Module):
    was = model.training
    model.eval()
    try:
        yield next(model.parameters()).device
    finally:
        model.train(was)


def check(model: nn.Module) -> VisionTransformer | Eva:
    """The model, if its blocks are those of a plain vision transformer; anything else is refused."""
    if not isinstance(model, VisionTransformer | Eva):
        raise Refused(f"attention and patch features are drawn for a timm VisionTransformer or Eva, not for a {type(model).__name__}")
    return model


@torch.no_grad()
def attention(model: nn.Module, x: Tensor) -> Attention:
    """The last block's attention over the patches of normalised pictures `x (B, C, H, W)`.

    Asked by the class token; a model without one shows how much attention each patch receives from all patches, in the mean.
    """
    trunk = check(model)
    with _evaluating(trunk) as device:
        _, weights = looked(trunk, x.to(device))  # (B, heads, P + N, P + N)
    prefix = trunk.num_prefix_tokens
    grid = trunk.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
    if trunk.cls_token is not None:
        rows, asks = weights[:, :, 0, prefix:], "the class token asks"  # (B, heads, N)
    else:
        rows, asks = weights[:, :, prefix:, prefix:].mean(2), "mean over all patches, no class token"
    return Attention(rows.unflatten(-1, grid).cpu(), asks)


@torch.no_grad()
def components(model: nn.Module, x: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """The first principal components of all patches of all pictures together: `(B, count, rows, columns)`, and their share of the variance.

    Features are those after the final norm. The sign of a component is that of its largest absolute weight.
    """
    trunk = check(model)
    with _evaluating(trunk) as device:
        features = trunk.forward_features(x.to(device))[:, trunk.num_prefix_tokens :].float().cpu()  # (B, N, D)
    flat = features.flatten(0, 1).double()  # (B·N, D)
    flat = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(flat.T @ flat)  # ascending
    share = (values.flip(0) / values.sum().clamp_min(1e-12))[:count]
    directions = vectors.flip(1)[:, :count]  # (D, count)
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    grid = trunk.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
    scores = (flat @ directions).reshape(len(x), *grid, -1)  # (B, rows, columns, count)
    return scores.permute(0, 3, 1, 2).float(), share.float()


def _panel(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.NEAREST)  # one colour a patch: nothing is smoothed over


def show_attention(
    model: nn.Module,
    x: Tensor,
    names: Sequence[str],
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    title: str = "Attention of the last block",
    bands: Sequence[int] | None = None,
    out: Path | str | None = None,
) -> Image.Image:
    """A sheet: each picture, the mean over heads, and each head, with the share of attention that falls on patches."""
    answer = attention(model, x)
    colours = Colours.of(x, mean, std, bands)
    rows = []
    for picture, maps, name in zip(colours.images(x), answer.maps, names):
        picture = enlarge(picture)
        every = [maps.mean(0), *maps]
        captions = [f"{100 * float(m.sum()):.0f}% on patches" for m in every]
        rows.append(Row([picture, *(_panel(heat(m), picture.size) for m in every)], short_name(name), ["", *captions]))
    header = ["picture", "mean of heads", *(f"head {i + 1}" for i in range(answer.maps.shape[1]))]
    prefix = check(model).num_prefix_tokens
    legend = [
        f"Whose attention: {answer.asks}. Each map has its own scale: black none, pale yellow its largest value.",
        f"The share is what falls on patches; the rest stays on the model's {prefix} class or register tokens."
        if prefix
        else "This model has no class or register tokens.",
        *([colours.note] if colours.note else []),
    ]
    return save(sheet(rows, header, title, legend), out)


def show_features(
    model: nn.Module,
    x: Tensor,
    names: Sequence[str],
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    title: str = "Patch features, principal components",
    bands: Sequence[int] | None = None,
    out: Path | str | None = None,
) -> Image.Image:
    """A sheet: each picture, its patches coloured by the first three components of one PCA over all pictures, and each component."""
    scores, share = components(model, x)
    low, high = (torch.quantile(scores.transpose(0, 1).flatten(1), q, dim=1).reshape(1, -1, 1, 1) for q in (0.01, 0.99))
    scaled = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)  # (B, 3, rows, columns)
    colours = Colours.of(x, mean, std, bands)
    rows = []
    for picture, parts, name in zip(colours.images(x), scaled, names):
        picture = enlarge(picture)
        rgb = Image.fromarray((parts.permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().numpy())
        singles = [Image.fromarray((part * 255).round().to(torch.uint8).contiguous().numpy()).convert("RGB") for part in parts]
        rows.append(Row([_panel(image, picture.size) if image is not picture else image for image in (picture, rgb, *singles)], short_name(name)))
    header = ["picture", "first three as RGB", *(f"component {i + 1}: {float(s):.0%}" for i, s in enumerate(share))]
    legend = [
        f"One PCA over all patches of these {len(x)} pictures: like colours mean like features, also between pictures; the colours themselves mean nothing.",
        f"Percentages: share of the variance of the features ({float(share.sum()):.0%} together). Scaled between the 1st and 99th percentile.",
        *([colours.note] if colours.note else []),
    ]
    return save(sheet(rows, header, title, legend), out)
