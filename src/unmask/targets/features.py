"""What a frozen network makes of each patch: any ENCODER, or an image tower of timm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.encoders.adapter import Adapter
from unmask.encoders.attention import looked
from unmask.encoders.build import KINDS, adapted
from unmask.errors import Refused
from unmask.interchange.encoder import load_encoder
from unmask.interchange.timm import Encoder
from unmask.patches import grid_of
from unmask.targets.target import Target, best_constant

PLAIN = (VisionTransformer, Eva, Beit)  # networks whose patches keep one size from end to end


class Answer(NamedTuple):
    """What a teacher tells: class and register tokens `prefix` (B, P, D), and of each of its own patches `map` (B, D, h, w)."""

    prefix: Tensor
    map: Tensor


class Frozen(Target):
    """The features of each patch as a frozen teacher sees them, after its final norm: (B, N, width of the teacher).

    The teacher looks at the same pictures in its own numbers (mean and deviation) and at the size at which its patches are
    ours (pixels a side of a patch of the encoder); where it has no such grid its map of features is interpolated. Class and register tokens are left out. Its weights are no part of the
    learner: they are neither trained nor saved, only a digest of them is, so that a run cannot go on with another teacher.
    """

    def __init__(self, teacher: Encoder, ours: tuple[int, int], own: tuple[int, int] | None = None):
        """`own`: the size of pictures that the teacher was made for, where it is another by now."""
        super().__init__()
        self.own = own or teacher.img_size
        self.outside = (teacher.model.requires_grad_(False).eval(),)  # in a tuple: not among our modules, so not among our weights
        self.ours, self.patch, self.size, self.source = ours, teacher.patch_size, teacher.img_size, teacher.source
        chans = teacher.in_chans
        for name, given, usual in (("mean", teacher.mean, 0.0), ("std", teacher.std, 1.0)):
            self.register_buffer(f"its_{name}", torch.tensor(given or (usual,)).float().expand(chans).reshape(1, -1, 1, 1).clone(), persistent=False)
            self.register_buffer(f"our_{name}", torch.full((1, chans, 1, 1), usual))
        self.known = teacher.mean is not None
        self.reader = (in_order(teacher.model),)  # in a tuple, too
        self.kept: tuple[Tensor, Answer] | None = None  # the pictures that were looked at last, and what was told of them
        self.register_buffer("digest", torch.tensor(digest(teacher.model)))

    @property
    def width(self) -> int:
        """Columns of a feature."""
        return self.outside[0].num_features

    @property
    def classed(self) -> bool:
        """Whether the first thing that it tells is of the whole picture: a class token."""
        return isinstance(self.outside[0], PLAIN) and self.outside[0].cls_token is not None

    def sees(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for name, given in (("our_mean", mean), ("our_std", std)):
            buffer = self.get_buffer(name)
            buffer.copy_(torch.tensor(tuple(given)).float().expand(buffer.shape[1]).reshape(buffer.shape))

    def looks_at(self, img_size: tuple[int, ...]) -> tuple[int, int]:
        """Height and width at which it sees pictures that we see at `img_size`."""
        if self.patch is None or not isinstance(self.outside[0], VisionTransformer | Eva):
            return self.size
        rows, columns = grid_of(img_size, self.ours)  # any size will do: one of its patches for one of ours
        return rows * self.patch[0], columns * self.patch[1]

    def sight(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in our numbers as the teacher sees them: in its own numbers, at its own size."""
        if self.known:
            x = (x.float() * self.our_std + self.our_mean - self.its_mean) / self.its_std
        size = self.looks_at(tuple(x.shape[2:]))
        return x if tuple(x.shape[2:]) == size else F.interpolate(x.float(), size=size, mode="bicubic", antialias=True)

    @torch.no_grad()
    def told(self, x: Tensor) -> Answer:
        """What the teacher answers. Of the pictures of `attention` the answer is there already."""
        if not torch.compiler.is_compiling() and self.kept is not None and self.kept[0] is x:
            return self.kept[1]
        seen, reader = self.sight(x), self.reader[0]
        if reader is None:
            return self.sorted(self.outside[0].forward_features(seen), seen)
        features = reader(seen)
        return Answer(features.prefix, features.patches.transpose(1, 2).unflatten(2, reader.grid(seen)))

    def sorted(self, features: Tensor, seen: Tensor) -> Answer:
        """What timm's `forward_features` gives of pictures as the teacher sees them: tokens (B, P + n, D), or a map."""
        if features.dim() == 3:
            prefix = self.outside[0].num_prefix_tokens
            return Answer(features[:, :prefix], self.mapped(features[:, prefix:], seen))
        maps = features.movedim(-1, 1) if features.shape[-1] == self.width else features  # channels last
        return Answer(maps.flatten(2).transpose(1, 2)[:, :0], maps)

    def mapped(self, patches: Tensor, seen: Tensor) -> Tensor:
        """Something of each of its patches (B, n, D) as a map (B, D, h, w)."""
        down = seen.shape[2] // self.patch[0] if self.patch else math.isqrt(patches.shape[1])
        return patches.transpose(1, 2).unflatten(2, (down, -1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.patches(self.told(x), x)

    def patches(self, answer: Answer, x: Tensor) -> Tensor:
        """What was told, of each of our patches (B, N, D)."""
        return self.gridded(answer.map, x)

    def gridded(self, maps: Tensor, x: Tensor) -> Tensor:
        """A map (B, D, h, w), interpolated to our grid where it has another: (B, N, D)."""
        grid = grid_of(tuple(x.shape[2:]), self.ours)
        if tuple(maps.shape[2:]) != grid:
            maps = F.interpolate(maps.float(), size=grid, mode="bilinear", antialias=True)
        return maps.flatten(2).transpose(1, 2).float()  # (B, N, D)

    @torch.no_grad()
    def attention(self, x: Tensor) -> Tensor:
        """How much the teacher's class token looks at each patch in its last block, mean of the heads (B, N); without one, how much all patches do.

        The answer to the same pictures is kept for whoever asks next: a step that draws its mask by it looks once.
        """
        teacher, seen = self.outside[0], self.sight(x)
        features, weights = looked(teacher, seen)
        self.kept = (x, self.sorted(features, seen))
        prefix = teacher.num_prefix_tokens
        asking = weights[:, :, :1] if self.classed else weights[:, :, prefix:]  # (B, heads, 1 or n, P + n)
        return self.gridded(self.mapped(asking[..., prefix:].mean((1, 2)).unsqueeze(-1), seen), x).squeeze(-1)

    def baseline(self, truth, loss):
        """Searched for: the losses here have no formula for it."""
        return best_constant(truth, loss)

    def _apply(self, fn: Any, recurse: bool = True) -> Frozen:
        self.outside[0]._apply(fn)  # to the device, with us
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        kept = state_dict.get(prefix + "digest")
        if kept is not None and int(kept) != int(self.digest):
            raise Refused(f"the teacher {self.source} is not the one that this run began with: its weights have changed")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def in_order(model: nn.Module) -> Adapter | None:
    """What reads the features of a network with stages place by place (Hiera's tokens come in another order); None where timm's own answer does."""
    if not isinstance(model, KINDS) or isinstance(model, PLAIN):
        return None
    try:
        return adapted(model)
    except Refused:  # a ConvNeXt whose stem overlaps cannot be masked; its map is in order
        return None


def digest(model: nn.Module) -> int:
    """63 bits that tell one set of weights from another: of the beginning of every tensor."""
    found = blake2b(digest_size=8)
    for tensor in model.state_dict().values():
        found.update(tensor.detach().flatten()[:1024].cpu().float().numpy().tobytes())
    return int.from_bytes(found.digest(), "big") >> 1


def frozen(name: str | None, img_size: tuple[int, ...], ours: tuple[int, int], in_chans: int, method: str, word: str = "--method.teacher") -> Frozen:
    """The target of an ENCODER for pictures of this size and an encoder with patches of `ours` pixels; `method`: who asks, by which `word`."""
    if name is None:
        raise Refused(f"{method} needs a teacher: {word} ENCODER (a run, an encoder file, timm:NAME)")
    grid = grid_of(tuple(img_size), ours)
    wanted = {"in_chans": in_chans} if name.startswith("random:") else {}
    teacher = load_encoder(name, **wanted)  # type: ignore[arg-type]
    own = teacher.img_size
    if teacher.in_chans != in_chans:
        raise Refused(f"the teacher {name} looks at {teacher.in_chans} channels, and the pictures have {in_chans}")
    if teacher.patch_size is not None and isinstance(teacher.model, PLAIN):
        size = (grid[0] * teacher.patch_size[0], grid[1] * teacher.patch_size[1])
        if size != tuple(teacher.img_size):
            teacher = load_encoder(name, img_size=size, **wanted)  # type: ignore[arg-type]
    return Frozen(teacher, ours, own)
