"""The learner of transfer: a timm network, what is pooled from it, a head, and how it is trained on labels."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from unmask.encoders.adapter import Adapter
from unmask.encoders.build import FAMILIES, FIXED, adapted, constructor
from unmask.encoders.build import drop_path as leave_out
from unmask.errors import Refused
from unmask.interchange.timm import rebuild
from unmask.model import Learner
from unmask.optim.groups import by_layer, layer_of
from unmask.settings import Train
from unmask.transfer.answers import Answers, Kind
from unmask.transfer.mixing import Erasing, Mixing
from unmask.transfer.pooling import AttentivePool
from unmask.transfer.whole import Whole

HEAD_STD = 2e-5  # of the head's weights at the start: its first answers are all alike (MAE, main_finetune.py)
HEADS = 8  # of the attentive pool where the network has none of its own
FRESH_NORM: dict[type, dict[str, Any]] = {  # the final norm moves behind the mean of the patches and starts afresh (MAE, models_vit.py)
    VisionTransformer: {"global_pool": "avg", "fc_norm": True},
    Eva: {"global_pool": "avg", "use_fc_norm": True, "use_post_transformer_norm": False},
    Beit: {"global_pool": "avg", "use_fc_norm": True},
}
OWN_TABLES = {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}  # each block of a Beit gets a table of relative places of its own


class Classifier(Learner):
    """Pictures to answers. `encoder.trunk` is timm's network, unchanged but for where its last norm stands.

    The network takes `{"images": x (B, C, H, W), "labels": …}`: while it trains, rectangles are erased and pairs of pictures are mixed, by
    the numbers in `noise`. With `ema`, `average` is a second network whose weights follow; `weights` says
    which of the two is handed on.
    """

    def __init__(
        self,
        model: str,
        kwargs: Mapping[str, Any],
        *,
        pooling: str = "avg",
        kind: Kind = "classes",
        count: int,
        names: Sequence[str] = (),
        moments: tuple[Sequence[float], Sequence[float]] | None = None,
        last_blocks: int | None = None,
        layer_decay: float = 1.0,
        drop_path: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        erasing: float = 0.0,
        smoothing: float = 0.0,
        ema: float | None = None,
        weights: Literal["last", "average"] = "last",
        head_std: float = HEAD_STD,
        pool: Mapping[str, Any] | None = None,
    ):
        """`model`, `kwargs`: timm's network; `pool`: arguments of the attentive pooling; the others are those of `Finetune`."""
        super().__init__()
        self.names = list(names)  # of what `predict` gives, column by column
        self.pooling, self.layer_decay, self.last_blocks, self.ema = pooling, layer_decay, last_blocks, ema
        self.weights = weights
        self.encoder = network(model, kwargs, pooling)
        width, whole = self.encoder.width, isinstance(self.encoder, Whole)
        if whole and (drop_path or last_blocks):
            raise Refused(f"--{'drop_path' if drop_path else 'last_blocks'}: {model} has no row of blocks that are all alike (--last_blocks 0 trains the head alone)")
        if not whole:
            leave_out(self.encoder, drop_path)
        if pooling in ("cls", "cls+avg") and (whole or vars(self.encoder.trunk)["_parameters"].get("cls_token") is None):
            raise Refused(f"--pooling {pooling}: {model} has no class token; use avg or attentive")
        if pooling == "attentive":
            heads = math.gcd(width, HEADS) if whole else blocks_of(self.encoder.trunk)[-1].attn.num_heads
            form: dict[str, Any] = {"heads": heads} | dict(pool or {})
            self.pool = AttentivePool(width, **form)
        self.head = nn.Linear(width * (2 if pooling == "cls+avg" else 1), count)
        nn.init.trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)
        self.answers = Answers(kind, count, smoothing, moments)
        self.mixing = Mixing(mixup, cutmix) if mixup or cutmix else None
        self.erasing = Erasing(erasing) if erasing else None
        self.freeze()
        self.average = copy.deepcopy(self.parts()).requires_grad_(False) if ema is not None else None
        self.register_buffer("moved", torch.zeros((), dtype=torch.int64))  # how often the average has followed

    def handed(self):
        """With `weights` "average" that of the moving average."""
        return self.encoder if self.average is None or self.weights == "last" else self.average["encoder"]

    def parts(self) -> nn.ModuleDict:
        """All that has weights."""
        return nn.ModuleDict({name: child for name, child in self.named_children() if name in ("encoder", "pool", "head")})

    def freeze(self) -> None:
        """Only the last blocks, the norm behind them, pooling and head are trained; with `last_blocks` None everything."""
        trunk, behind = self.encoder.trunk, norm_behind(self.encoder)
        trunk.requires_grad_(self.last_blocks is None)
        behind.requires_grad_(self.pooling != "attentive")  # it is the head's, and an attentive pool has none
        if isinstance(self.encoder, Whole):
            self.encoder.leave_unused()
        if self.last_blocks is None or isinstance(self.encoder, Whole):
            return
        blocks = blocks_of(trunk)
        if self.last_blocks > len(blocks):
            raise Refused(f"--last_blocks {self.last_blocks}: the network has {len(blocks)} blocks")
        for block in blocks[len(blocks) - self.last_blocks :]:
            block.requires_grad_(True)
        trunk.norm.requires_grad_(self.last_blocks > 0)

    def train(self, mode: bool = True) -> Classifier:
        """A frozen encoder computes what it does in evaluation, statistics of batches included."""
        super().train(mode)
        if self.last_blocks == 0:
            self.encoder.eval()
        return self

    def pooled(self, images: Tensor, parts: nn.ModuleDict | None = None) -> Tensor:
        """What the head sees (B, D or 2D) of pictures (B, C, H, W)."""
        encoder = self.encoder if parts is None else parts["encoder"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.last_blocks != 0):
            features = encoder(images)
        if self.pooling == "attentive":
            pool = self.pool if parts is None else parts["pool"]
            return pool(torch.cat([features.prefix, features.patches], dim=1))
        norm = norm_behind(encoder)
        found = {"cls": lambda: norm(features.prefix[:, 0]), "avg": lambda: norm(features.patches.mean(dim=1))}
        return torch.cat([found[name]() for name in self.pooling.split("+")], dim=1)

    def outputs(self, images: Tensor, average: bool = False) -> Tensor:
        """(B, count) before softmax or sigmoid; `average`: by the moving average of the weights."""
        if not average:
            return self.head(self.pooled(images))
        if self.average is None:
            raise ValueError("there is no average of the weights: it wants ema")
        return self.average["head"](self.pooled(images, self.average))

    @torch.no_grad()
    def predict(self, images: Tensor, average: bool = False) -> Tensor:
        """Probabilities (B, count) of the classes or tags `names`, or the numbers in their own units, of normalised pictures (B, C, H, W)."""
        training = self.training
        self.eval()
        found = self.answers.read(self.outputs(images, average))
        self.train(training)
        return found

    def draws(self, x):
        return sum(part.draws for part in (self.mixing, self.erasing) if part is not None)

    def forward(self, x, noise=None, mask=None, rows=None):
        images, labels = x["images"], x["labels"]
        targets = self.answers.targets(labels)
        if self.training and self.draws(x):
            if noise is None:
                noise = torch.rand(len(images), self.draws(x), device=images.device)
            if self.erasing is not None:
                own = noise[:, -Erasing.draws :]
                images = self.erasing(images, own if rows is None else own[rows])
            if self.mixing is not None:
                images, targets = self.mixing(images, targets, noise[:, : Mixing.draws], rows)
        return {"loss": self.answers.loss(self.outputs(images), targets)}

    @torch.no_grad()
    def after_step(self, progress):
        """The average follows; over its first steps it forgets faster, or it would still hold the start (timm's ModelEmaV3 and others warm up too)."""
        if self.average is None:
            return
        self.moved += 1
        steps = self.moved.to(torch.float32)
        share = 1 - torch.minimum(torch.full_like(steps, self.ema or 0.0), (1 + steps) / (10 + steps))
        for follows, weight in zip(self.average.parameters(), self.parts().parameters()):
            follows.lerp_(weight, share)
        for follows, value in zip(self.average.buffers(), self.parts().buffers()):  # a BatchNorm's statistics
            follows.copy_(value)

    def parameter_groups(self, train: Train) -> list[dict[str, Any]]:
        """A group for each block and kind of decay: MAE's rule (util/lr_decay.py), in which everything behind the blocks has the full rate."""
        trunk, prefix = self.encoder.trunk, "encoder.trunk."
        if isinstance(self.encoder, Whole):
            behind = [(name, parameter) for name, parameter in self.named_parameters() if not name.startswith(prefix)]
            groups = param_groups_layer_decay(trunk, train.weight_decay, layer_decay=self.layer_decay)  # timm knows each network's layers
            own = [{"params": group["params"], "weight_decay": group["weight_decay"], "lr": group["lr_scale"]} for group in groups]
            return [*own, *by_layer(behind, 0, 1.0, train.weight_decay, {"pool.query"})]
        named = [(name.removeprefix(prefix) if name.startswith(prefix) else f"head.{name}", parameter) for name, parameter in self.named_parameters()]
        spared = {"cls_token", "pos_embed", "head.pool.query", *trunk.no_weight_decay()}
        stages = [len(stage.blocks) for stage in trunk.layers] if isinstance(trunk, SwinTransformer) else []
        layer = (lambda name, depth: layer_of_stages(name, stages)) if stages else layer_of
        return by_layer(named, len(blocks_of(trunk)), self.layer_decay, train.weight_decay, spared, layer)


def network(model: str, kwargs: Mapping[str, Any], pooling: str) -> Adapter | Whole:
    """The encoder around timm's model. Pooled by `avg`, its final norm stands behind the pool; a Beit's table of relative places, if all blocks share one, is one a block."""
    if not maskable(model):
        arguments = constructor(model, kwargs)
        other = rebuild(model, arguments)
        return Whole(other, kwargs["img_size"], arguments.get("in_chans", 3), places=pooling == "attentive")
    trunk = rebuild(model, kwargs)
    own: dict[str, Any] = {}
    if pooling == "avg" and not isinstance(trunk, SwinTransformer) and isinstance(trunk.fc_norm, nn.Identity):
        own |= next((fresh for family, fresh in FRESH_NORM.items() if isinstance(trunk, family)), {})
    if isinstance(trunk, Beit) and trunk.rel_pos_bias is not None:
        own |= OWN_TABLES
    return adapted(rebuild(model, {**kwargs, **own}) if own else trunk)


def maskable(model: str) -> bool:
    """Whether a timm model's name is of the families that are fine-tuned through their adapter; others are as timm has them."""
    return timm.model_entrypoint(model.split(".")[0]).__module__ in FAMILIES | FIXED


def norm_behind(encoder: Any) -> nn.Module:
    """The norm behind the pool that the classifier applies, where the family has a place for one."""
    return nn.Identity() if isinstance(encoder, Whole) or isinstance(encoder.trunk, SwinTransformer) else encoder.trunk.fc_norm


def blocks_of(trunk: Any) -> list[Any]:
    """All blocks, of all stages, in their order."""
    return [block for stage in trunk.layers for block in stage.blocks] if isinstance(trunk, SwinTransformer) else list(trunk.blocks)


def layer_of_stages(name: str, stages: Sequence[int]) -> int:
    """The layer of a Swin's parameter for layer-wise decay (SimMIM, optimizer.py): blocks count through all stages.

    A merging of patches counts with the stage before it: timm keeps it at the start of the one behind.
    """
    found = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|(downsample))\.", name)
    if found is None:
        return 0 if name.startswith("patch_embed") else sum(stages) + 1
    before = sum(stages[: int(found[1])])
    return before if found[3] else before + int(found[2]) + 1
