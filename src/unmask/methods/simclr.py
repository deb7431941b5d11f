"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020, arXiv:2002.05709 and 2006.10029), on a transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from unmask.contrast import nt_xent, perceptron, processes, summary
from unmask.contrasting import REMEDY, Contrasting, Watched, all_decay
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build
from unmask.encoders.initial import moco_init
from unmask.model import Objective
from unmask.settings import Crops, Train, within


@dataclass(frozen=True)
class SimCLR:
    """Find the other view of a picture among all views of all pictures.

    Nothing is hidden and nobody teaches: other pictures alone keep the features from being all alike, so it wants large batches. Views and head are the paper's
    (version 2: three layers); network, optimiser and the frozen patch embedding are MoCo v3's, which trained it so on transformers (arXiv:2104.02057, table 4).
    Loss: cross-entropy over the cosines of both views, both ways.
    """

    sentence = "find the other view of a picture among all views of all pictures"
    source = "Chen et al. 2020, arXiv:2002.05709, on transformers as in arXiv:2104.02057"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 42.8 (30.9) and linear 47.8 (44.0) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=300, batch_size=4096, base_lr=1.5e-4, min_lr=0.0, warmup_epochs=40, weight_decay=0.1, betas=(0.9, 0.999))  # MoCo v3's
    views = Crops(global_scale=(0.08, 1.0), jitter_by=(0.8, 0.8, 0.8, 0.2), blur=(0.5, 0.5, 0.0), blur_kernel="a tenth", solarise=(0.0, 0.0, 0.0))
    short_rate = 5e-4  # per 256 pictures, of runs of under 20,000 steps: as DINO's, not measured
    compares = True  # pictures of one batch
    row = ("views", "none", "–", "projector", "the other view among all → cross-entropy")

    temperature: float = 0.1  # by which cosines are divided
    hidden: int | None = None  # columns inside the projector; not given: the encoder's
    out: int = 128  # columns of what is compared
    freeze_patches: bool = True  # the layer that embeds patches stays as it was drawn (arXiv:2104.02057, section 4.2)

    def __post_init__(self):
        within(self, "temperature", 0, above=True)
        within(self, "hidden out", 1)

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> Contrasting:
        """A fresh learner over any timm network that the other methods take; everything decays, as in MoCo v3."""
        encoder: Any = build(model, img_size, in_chans, patch_size, **sizes)
        moco_init(encoder)
        if self.freeze_patches:
            encoder.trunk.patch_embed.requires_grad_(False)
        return Contrasting(encoder, None, {"contrast": Contrast(encoder, self)}, views=2, groups=all_decay, remedy=REMEDY)


class Contrast(Objective):
    """All views through one head at once, so that its batch norm sees both (model.py), then NT-Xent."""

    note = "the loss falls from twice the logarithm of twice the batch, and says little of the features: kNN and their rank tell"

    def __init__(self, encoder: Adapter, method: SimCLR):
        super().__init__()
        self.watched = Watched()
        hidden = method.hidden or encoder.width
        self.head, self.temperature = perceptron((encoder.width, hidden, hidden, method.out), last="scale"), method.temperature

    def forward(self, features, mask, x, encoder):
        seen = summary(features)
        loss = nt_xent(self.head(seen), self.temperature)
        self.watched.look(seen.chunk(2)[0], loss / 2, len(seen) * processes()[1] - 1)
        return loss
