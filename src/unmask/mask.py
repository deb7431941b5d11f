"""Which patches are seen and which are predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)  # not frozen, for Fabric takes what goes into a step apart and puts it together again; nothing changes one
class Mask:
    """Two lists of patch ids a row: what the encoder sees, and what is predicted.

    `visible_ids` (B, V) and `masked_ids` (B, M) index the patches of `grid` in raster order; they keep the order in
    which they were drawn and need not complement each other (I-JEPA drops context, CrossMAE predicts a part).
    `weight` (B, M) is for rows that are no full list: 0 is padding (seen by nobody, counted nowhere), other values weigh
    the mean. A mask may have K·B rows for tensors of B: row b·K + k is the k-th mask of picture b, and the verbs
    repeat the tensor's rows. One polarity in the whole library: **True means masked**.
    """

    visible_ids: Tensor
    masked_ids: Tensor
    grid: tuple[int, ...]
    weight: Tensor | None = None

    @classmethod
    def all(cls, rows: int, grid: tuple[int, ...], device: torch.device | str = "cpu") -> Mask:
        """Every patch seen and every patch predicted (denoising)."""
        ids = torch.arange(math.prod(grid), device=device).expand(rows, -1)
        return cls(ids, ids, grid)

    def visible(self, x: Tensor) -> Tensor:
        """The seen rows of `x` (B, N, …): (B, V, …)."""
        return self._take(x, self.visible_ids)

    def masked(self, x: Tensor) -> Tensor:
        """The rows of `x` (B, N, …) that are predicted: (B, M, …)."""
        return self._take(x, self.masked_ids)

    def cover(self, x: Tensor, token: Tensor) -> Tensor:
        """`x` (B, N, D) with `token` (…, D) wherever a patch is masked."""
        return torch.where(self.map.unsqueeze(-1), token.to(x.dtype), self.fold(x))

    def join(self, visible: Tensor, masked: Tensor) -> Tensor:
        """Seen rows (B, V, …) and predicted rows (B, M, …) back in raster order (B, N, …); the rest is zero."""
        N, ids = math.prod(self.grid), self.masked_ids
        if self.weight is not None:  # padding goes to a row of its own, so that it overwrites nothing
            ids = torch.where(self.weight > 0, ids, N)
        whole = visible.new_zeros(visible.shape[0], N + 1, *visible.shape[2:])
        whole = whole.scatter(1, self._wide(self.visible_ids, visible), visible)
        return whole.scatter(1, self._wide(ids, masked), masked.to(whole.dtype))[:, :N]

    def mean(self, loss: Tensor) -> Tensor:
        """The mean of `loss` (B, M) over what is predicted.

        With weights the sum is divided by the sum of the weights, averaged over the processes, so that several
        processes give the gradient of the joint batch. Where nothing is predicted at all it is 0.
        """
        if self.weight is None:
            return loss.mean()
        count = self.weight.sum()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            count = count.clone()
            torch.distributed.all_reduce(count)
            count = count / torch.distributed.get_world_size()
        return (loss * self.weight).sum() / torch.where(count > 0, count, 1)

    @property
    def map(self) -> Tensor:
        """(B, N) bool, True = masked."""
        hits = torch.ones_like(self.masked_ids, dtype=torch.uint8) if self.weight is None else (self.weight > 0).to(torch.uint8)
        empty = torch.zeros(len(self.masked_ids), math.prod(self.grid), dtype=torch.uint8, device=self.masked_ids.device)
        return empty.scatter_reduce(1, self.masked_ids, hits, "amax").bool()

    def fold(self, x: Tensor) -> Tensor:
        """`x` (B, …) with each row repeated for each of its picture's masks (K·B, …)."""
        masks = len(self.masked_ids) // len(x)
        return x if masks == 1 else x.repeat_interleave(masks, dim=0)

    def rows(self, ids: Tensor) -> Mask:
        """The mask of some rows only."""
        weight = None if self.weight is None else self.weight[ids]
        return Mask(self.visible_ids[ids], self.masked_ids[ids], self.grid, weight)

    @staticmethod
    def _wide(ids: Tensor, like: Tensor) -> Tensor:
        return ids.reshape(*ids.shape, *[1] * (like.dim() - 2)).expand(-1, -1, *like.shape[2:])

    def _take(self, x: Tensor, ids: Tensor) -> Tensor:
        x = self.fold(x)
        return x.gather(1, self._wide(ids, x))
