"""MAE-CT: Contrastive Tuning: A Little Help to Make Masked Autoencoders Forget (Lehner et al., 2023, arXiv:2304.10520)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask import losses
from unmask.contrast import gathered, info_nce, perceptron, processes
from unmask.contrasting import Contrasting, Watched
from unmask.decoders import Transformer, default_size, patch_values
from unmask.encoders.build import build
from unmask.encoders.depth import layer_of
from unmask.encoders.features import Features
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.masking import Random
from unmask.model import Objective, Predict
from unmask.settings import Crops, Ratio, Train, within
from unmask.targets.pixels import Pixels
from unmask.targets.teacher import average

Pooling = Literal["cls", "avg"]
REMEDY = "or a lower --method.temperature, or a longer --method.queue"


@dataclass(frozen=True)
class MAECT:
    """Go on from a pre-trained MAE: let the upper half of it sort pictures by what is in them, by the nearest neighbours of their features.

    A neighbour of one view, out of a queue of earlier pictures, must be found again from the other view. First the head alone learns, on the encoder as it is; then, in a second stage with a warm-up of its own, the upper
    half of the encoder, each layer slower than the one above it. `joint`: the simpler form, MAE and head at once, from the start and in all layers.
    Loss: InfoNCE, both ways; joint, the mean squared error of masked patches beside it.
    """

    sentence = "from a pre-trained MAE, tune the upper half so that views of a picture find each other's nearest neighbours"
    source = "Lehner et al. 2023, arXiv:2304.10520"
    standing = "experimental"
    # two stages of 20 epochs of 1,024 pictures; 1e-4 for 256 views, and a picture has two
    paper = Train(epochs=40, batch_size=1024, base_lr=2e-4, min_lr=0.0, warmup_epochs=4, weight_decay=0.05, betas=(0.9, 0.95), encoder_rate=1.0)
    # MAE-CT's; those of MAE-CT(aug) are MoCo v3's: --views.jitter .8 --views.grey .2 --views.blur 1 .1 0 --views.solarise 0 .2 0
    views = Crops(global_scale=(0.08, 1.0), jitter=0.0, grey=0.0, blur=(0.0, 0.0, 0.0), solarise=(0.0, 0.0, 0.0))
    short_rate = 1e-3  # per 256 pictures, of runs of under 20,000 steps: about the paper's own 8e-4 at a CPU's 128; not measured
    compares = True  # pictures of one batch
    row = ("views", "none (joint: random .75)", "–", "projector, predictor", "nearest neighbour of the other view → InfoNCE")

    joint: bool = False  # train MAE and the head at once, from the start
    head_share: float = 0.5  # share of the run in which the head alone learns, unless joint
    frozen: float = 0.5  # share of the blocks, from below, that stay what they are, unless joint
    head_rate: float = 1.0  # the head's rate beside the encoder's, once both learn, unless joint; MAE-CT(aug): 5
    layer_decay: float = 0.65  # rate of a layer beside the one above it, unless joint
    pooling: Literal["auto", "cls", "avg"] = "auto"  # class token or mean of the patches; auto: the mean, for ViT-L and larger the class token
    temperature: float = 0.15  # paper: .15 for ViT-B, .2 for L, .3 for H
    topk: int = 20  # a neighbour is drawn from so many; while the head learns alone it is the nearest
    queue: int | None = None  # earlier pictures that are remembered; paper: 65,536; not given: that, below ViT-B 8,192
    momentum: float = 0.99  # of the projector that looks for neighbours, a step; ViT-H: .995
    hidden: int = 2048  # columns inside the projector; the predictor has twice as many
    out: int = 256  # columns of what is compared
    weight: float = 1.0  # of the contrast beside MAE's loss, joint
    mask_ratio: Ratio = Ratio(0.75, 0.75)  # joint: share of patches hidden
    norm_pix: bool = True  # joint: normalise each target patch by its own mean and standard deviation

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "head_share frozen layer_decay momentum", 0, 1)
        within(self, "temperature weight head_rate", 0, above=True)
        within(self, "topk queue hidden out", 1)

    @property
    def continues(self) -> bool:
        """Whether a run wants `--init`."""
        return not self.joint

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> Contrasting:
        """A fresh learner over a timm VisionTransformer or Eva."""
        encoder: Any = build(model, img_size, in_chans, patch_size, masked="drop", **sizes)
        mae_init(encoder)
        fix_places(encoder.trunk)
        large = encoder.width >= 1024 and encoder.trunk.cls_token is not None
        pooling: Pooling = ("cls" if large else "avg") if self.pooling == "auto" else self.pooling
        if pooling == "cls" and encoder.trunk.cls_token is None:
            raise Refused("--method.pooling cls: this network has no class token")
        contrast = Neighbours(encoder.width, self, self.queue or (65536 if encoder.width >= 768 else 8192), pooling)
        if not self.joint:
            freeze(encoder.trunk, round(self.frozen * len(encoder.trunk.blocks)))
            groups = partial(slower_below, method=self)
            return Contrasting(encoder, None, {"contrast": contrast}, views=2, pooling=pooling, groups=groups, remedy=REMEDY, again=self.head_share)
        width, depth, heads = default_size(encoder.width)
        decoder = Transformer(encoder.width, patch_values(encoder.patch, encoder.in_chans), encoder.own_grid, width, depth, heads)
        mae_init(decoder)
        parts: dict[str, Objective] = {"pixels": Predict(decoder, Pixels(encoder.patch, self.norm_pix), losses.mse), "contrast": contrast}
        return Contrasting(encoder, Random(self.mask_ratio), parts, views=2, pooling=pooling, remedy=f"{REMEDY}; or a lower --method.weight")


def freeze(trunk: Any, blocks: int) -> None:
    """The lowest blocks stay what they are, and what stands before them (freezers/vit_block_freezer.py)."""
    if blocks:
        for name, weight in trunk.named_parameters():
            if layer_of(name, len(trunk.blocks)) <= blocks:
                weight.requires_grad_(False)


def slower_below(learner: nn.Module, train: Train, method: MAECT) -> list[dict[str, Any]]:
    """The head's weights decay by 1e-5; the encoder rests while the head learns alone, and then each of its layers is slower than the one above."""
    encoder: Any = learner.encoder
    depth = len(encoder.trunk.blocks)
    parts: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, weight in learner.named_parameters():
        if weight.requires_grad:
            inside = name.startswith("encoder.")
            scale = method.layer_decay ** (depth + 1 - layer_of(name.removeprefix("encoder.trunk."), depth)) if inside else 0.0  # 0: the head's
            parts.setdefault((scale, weight.dim() > 1), []).append(weight)
    groups: list[dict[str, Any]] = []
    for (scale, decays), weights in parts.items():
        rests = partial(after, share=method.head_share, scale=scale or method.head_rate, before=0.0 if scale else 1.0)
        groups.append({"params": weights, "weight_decay": (train.weight_decay if scale else 1e-5) if decays else 0.0, "lr": rests})
    return groups


def after(progress: float, share: float, scale: float, before: float) -> float:
    """`scale` after a share of the run, and something else before it."""
    return scale if progress >= share else before


class Neighbours(Objective):
    """A queue of what was made of earlier pictures; a neighbour of each view in it must be found from the other (losses/nnclr_loss.py, nnclr_ema_queue_head.py).

    The projector that looks for neighbours follows the one that is trained; while the head learns alone it is the same. Views go one by one, for the batch norm.
    A picture's own rows in the queue, known by its number, are no neighbours of it.
    """

    note = "each view looks for a neighbour of the other in a queue that fills as the run goes: the loss begins to say something once it is full, and kNN says more"

    def __init__(self, width: int, method: MAECT, slots: int, pooling: Pooling):
        super().__init__()
        self.watched = Watched()
        self.method, self.pooling = method, pooling
        self.projector = perceptron((width, method.hidden, method.hidden, method.out), last="shift")
        self.predictor = perceptron((method.out, 2 * method.hidden, method.out))
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(slots, method.out), dim=-1))
        self.register_buffer("queue_id", torch.full((slots,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))  # the slot that is written next
        self.topk = min(method.topk, slots)
        self.register_buffer("among", torch.ones(()) if self.rests(0.0) else torch.full((), float(self.topk)))  # neighbours that one is drawn from

    def rests(self, progress: float) -> bool:
        """Whether the head learns alone."""
        return not self.method.joint and progress < self.method.head_share

    def forward(self, features, mask, x, encoder):
        whole = features if mask is None else encoder(encoder.take(x))  # joint: contrast sees whole pictures
        views = pooled(whole, self.pooling).chunk(2)
        ids = x["sample"] if isinstance(x, dict) and "sample" in x else torch.full((len(views[0]),), -1, device=views[0].device)
        loss = self.contrast(views, ids, [(self.dice(ids, view) * self.among).long() for view in range(2)])
        return loss * self.method.weight if self.method.joint else loss

    def contrast(self, views: Any, ids: Tensor, ranks: list[Tensor]) -> Tensor:
        """The loss of two views' pooled features (b, D) of pictures `ids` (b,); `ranks` (b,) each: which neighbour is taken, the nearest being 0."""
        said, found = [], []
        for view in views:
            projected = self.projector(view)
            said.append(self.predictor(projected))
            with torch.no_grad():
                found.append(F.normalize(self.target_projector(view), dim=-1))
        near = [self.queue[self.nearest(projected, ids, rank)] for projected, rank in zip(found, ranks)]
        if self.training:
            self.remember(found[0], ids)
        likeness = self.method.temperature
        loss = (info_nce(near[1], said[0], likeness) + info_nce(near[0], said[1], likeness)) / 2
        self.watched.look(views[0], loss, len(views[0]) * processes()[1])
        return loss

    @torch.no_grad()
    def nearest(self, projected: Tensor, ids: Tensor, rank: Tensor) -> Tensor:
        """The slot (b,) of the `rank`-nearest row of the queue."""
        own = (ids.unsqueeze(1) == self.queue_id) & (ids.unsqueeze(1) >= 0)  # (b, slots)
        alike = (projected @ self.queue.T).masked_fill(own, -1.0)
        return alike.topk(self.topk, dim=1).indices.gather(1, rank.unsqueeze(1)).squeeze(1)

    @torch.no_grad()
    def remember(self, projected: Tensor, ids: Tensor) -> None:
        """Write rows of all processes over the oldest ones."""
        rows, numbers = gathered(projected)[-len(self.queue) :], gathered(ids)[-len(self.queue) :]
        slots = (self.place + torch.arange(len(rows), device=rows.device)) % len(self.queue)
        self.queue[slots] = rows.to(self.queue.dtype)
        self.queue_id[slots] = numbers
        self.place.copy_((self.place + len(rows)) % len(self.queue))

    def dice(self, ids: Tensor, view: int) -> Tensor:
        """A uniform number a picture (b,): a function of its number, its view and the queue's place, mixed bit by bit, so that processes agree."""
        mixed = (ids * 0x9E3779B1 + self.place * 0x85EBCA77 + view * 0x27D4EB2F) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 12)) * 0x297A2D39) & 0xFFFFFFFF
        return (mixed ^ (mixed >> 15)).float() / 2**32 * (1 - 1e-6)

    def begin(self, encoder):
        self.move(0.0)

    def follow(self, encoder, progress):
        rests = self.rests(progress)
        self.among.fill_(1.0 if rests else float(self.topk))
        self.move(0.0 if rests else self.method.momentum)
        if rests:  # nothing of the encoder can collapse, and the features of an MAE may be much alike
            self.watched.told.zero_()

    @torch.no_grad()
    def move(self, keep: float) -> None:
        """The projector that looks for neighbours moves towards the one that is trained; the counts of its batch norm are taken over (utils/model_utils.py)."""
        average(self.target_projector.parameters(), self.projector.parameters(), keep)
        for mine, theirs in zip(self.target_projector.buffers(), self.projector.buffers(), strict=True):
            mine.copy_(theirs)


def pooled(features: Features, pooling: Pooling) -> Tensor:
    """One vector a view: (B, D)."""
    return features.prefix[:, 0] if pooling == "cls" else features.patches.mean(1)
