"""Fine-tuning: an encoder and a head on top, trained on labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unmask.settings import Train, Views, within
from unmask.transfer.classifier import Classifier


@dataclass(frozen=True)
class Finetune:
    """Train an encoder further on labels: whole, its last blocks, or only a head on top.

    The upper blocks learn at the full rate, each one below at `layer_decay` of the one above it. The defaults are those of MAE's
    fine-tuning (appendix A.1, Table 9; main_finetune.py), which are BEiT's; what it sets by the width of the network, and what suits
    few pictures or a short run, is chosen in `transfer/choice.py`.
    """

    sentence = "train encoder and head on labels, each block a little slower than the one above it"
    source = "He et al. 2021, arXiv:2111.06377, appendix A.1"
    paper = Train(epochs=100, batch_size=1024, base_lr=5e-4, min_lr=1e-6, warmup_epochs=5, weight_decay=0.05, betas=(0.9, 0.999))
    views = Views(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")

    last_blocks: int | None = None  # train only so many of the last blocks, and the head; 0: the head alone; not given: everything
    pooling: Literal["auto", "cls", "avg", "cls+avg", "attentive"] = "auto"  # what the head sees; auto: the mean of the patches, as in the paper
    layer_decay: float | None = None  # rate of a block as a share of the one above it; not given: .65 up to ViT-B, .75 for larger ones
    drop_path: float | None = None  # chance that the last block is left out for a picture, rising from 0; not given: .1, .2, .3 for B, L, H
    mixup: float = 0.8  # two pictures laid over each other: their shares come from Beta(a, a); 0: never
    cutmix: float = 1.0  # a rectangle of another picture pasted in: its share comes from Beta(a, a); 0: never
    randaugment: float = 9.0  # strength, 0 to 10, of two random distortions of each picture (rand-mM-mstd0.5-inc1); 0: none
    colour: float = 0.0  # random brightness, contrast and saturation, each up to this share
    erasing: float = 0.25  # chance that a rectangle of a picture is replaced by noise
    smoothing: float = 0.1  # share of the answer that is spread evenly over all classes
    ema: float | None = None  # also keep a moving average of the weights that forgets this slowly: .9999; not given: none
    weights: Literal["last", "average"] = "last"  # which weights encoder.safetensors holds: the last step's, or with --ema their average

    def __post_init__(self):
        within(self, "last_blocks mixup cutmix", 0)
        within(self, "drop_path colour erasing smoothing ema", 0, 1)
        within(self, "layer_decay", 0, 1, above=True)
        within(self, "randaugment", 0, 10)
        for name in ("drop_path", "ema", "smoothing"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} must be less than 1, got 1")
        if self.weights == "average" and self.ema is None:
            raise ValueError("weights average wants --ema, such as --ema .999")

    def build(
        self,
        model: str,
        kwargs: Mapping[str, Any],
        img_size: tuple[int, int],
        names: Sequence[str],
        kind: Literal["classes", "tags", "numbers"] = "classes",
        moments: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> Classifier:
        """A fresh learner over the timm network `model` built with `kwargs`; `names`: of the classes, tags or numbers.

        `moments`: mean and deviation of each number (kind "numbers"), by which its loss is scaled.
        """
        return Classifier(
            model,
            {**kwargs, "img_size": tuple(img_size)},
            pooling="avg" if self.pooling == "auto" else self.pooling,
            kind=kind,
            count=len(names),
            names=names,
            moments=moments,
            last_blocks=self.last_blocks,
            layer_decay=1.0 if self.layer_decay is None else self.layer_decay,
            drop_path=self.drop_path or 0.0,
            mixup=self.mixup,
            cutmix=self.cutmix,
            erasing=self.erasing,
            smoothing=self.smoothing,
            ema=self.ema,
            weights=self.weights,
        )
