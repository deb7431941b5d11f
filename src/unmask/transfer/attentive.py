"""The attentive probe: the encoder stays frozen, a head that learns where to look is trained on its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unmask.settings import Train, Views, within
from unmask.transfer.classifier import Classifier


@dataclass(frozen=True)
class Attentive:
    """Freeze the encoder, and train one query that asks all its tokens, and a linear head on the answer.

    What a class token or a mean of patches hides may still be in the tokens: encoders that were never trained to put a picture into
    one vector (MAE, I-JEPA) are judged more fairly so. The numbers are those of V-JEPA's evaluation (configs/evals/vitl16_in1k.yaml,
    evals/image_classification_frozen/eval.py), whose AutoAugment and random erasing are left out: crop and flip only.
    """

    sentence = "freeze the encoder; one learned query asks all tokens, a linear head answers"
    source = "Bardes et al. 2024, arXiv:2404.08471"
    paper = Train(epochs=20, batch_size=1024, lr=1e-3, min_lr=0.0, warmup_epochs=0, weight_decay=1e-3, weight_decay_end=1e-6, betas=(0.9, 0.999), clip=1.0)
    views = Views(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")

    pool_heads: int | None = None  # attention heads of the query; not given: the encoder's own
    pool_depth: int = 1  # 1: the query asks once; each further one is an ordinary block on its answer
    ema: float | None = None  # also keep a moving average of the weights that forgets this slowly: .9999; not given: none

    def __post_init__(self):
        within(self, "pool_heads pool_depth", 1)
        within(self, "ema", 0, 1)
        if self.ema == 1:
            raise ValueError("ema must be less than 1, got 1")

    def build(
        self,
        model: str,
        kwargs: Mapping[str, Any],
        img_size: tuple[int, int],
        names: Sequence[str],
        kind: Literal["classes", "tags", "numbers"] = "classes",
        moments: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> Classifier:
        """A fresh learner over the timm network `model` built with `kwargs`; `names`: of the classes, tags or numbers (with their `moments`)."""
        pool = {"depth": self.pool_depth} | ({"heads": self.pool_heads} if self.pool_heads else {})
        form: dict[str, Any] = {"pooling": "attentive", "pool": pool, "last_blocks": 0, "head_std": 0.02, "ema": self.ema}
        return Classifier(model, {**kwargs, "img_size": tuple(img_size)}, kind=kind, count=len(names), names=names, moments=moments, **form)
