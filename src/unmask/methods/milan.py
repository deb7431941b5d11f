"""MILAN: Masked Image Pretraining on Language Assisted Representation (Hou et al., 2022, arXiv:2208.06049)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmask import losses
from unmask.decoders import Cross, Decoder, decoder_size, default_size
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build
from unmask.encoders.features import Features
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import Attended
from unmask.model import MaskedModel, Predict, Step
from unmask.patches import sincos
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.features import Frozen, frozen


@dataclass(frozen=True)
class MILAN:
    """See the quarter of the picture that a frozen teacher looks at, and say what the teacher makes of all of it.

    Visible patches are drawn with the teacher's attention as their chances, so that what is hidden is mostly background. In the decoder their
    features stay as they are and are only asked: hidden places alone change. The answers for visible patches and the class token are judged as well.
    The paper's teacher is CLIP's image tower; any vision transformer will do, and without a class token the attention that all patches pay
    guides the mask. Loss: squared distance of answer and truth, both of length one.
    """

    sentence = "show the quarter of the patches that a frozen teacher looks at; predict the teacher's features of all"
    source = "Hou et al. 2022, arXiv:2208.06049"
    standing = "proven: CIFAR-10, 100,000 pictures seen, kNN 39.4 (30.5) and linear 52.1 (44.8) %; in brackets random weights (docs/evidence.md)"
    paper = Train(epochs=400, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.0)
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # MAE's
    row = ("patches", "attention-guided .75", "dropped", "prompting 512×8", "frozen teacher's features, all patches → squared distance at length one")
    needs = ("teacher",)

    teacher: str | None = None  # ENCODER whose features are predicted and whose attention guides the mask: a run, an encoder file, timm:NAME
    mask_ratio: Ratio = Ratio(0.75, 0.75)  # share of patches hidden: number, range .6-.9 or schedule .5:.75
    decoder_width: int | None = None  # paper: 512; not given: two thirds of the encoder's width below ViT-B
    decoder_depth: int | None = None  # paper: 8 blocks; not given: 4 below ViT-B
    decoder_heads: int | None = None  # paper: 16; not given: 32 columns a head

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "decoder_width decoder_depth decoder_heads", 1)

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Attended:
        """Which patches are hidden."""
        return Attended(self.mask_ratio)

    def decoder_size(self, encoder: Adapter) -> tuple[int, int, int]:
        """Width, blocks and heads of the decoder over that encoder."""
        return decoder_size(self, *default_size(encoder.width)[:2])

    def build(
        self,
        model: str | nn.Module = "vit_base_patch16_224",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over any timm network that can drop patches."""
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", **sizes)
        target = frozen(self.teacher, encoder.img_size, encoder.patch, encoder.in_chans, "milan")
        if not isinstance(target.outside[0], VisionTransformer | Eva | Beit):
            raise Refused(f"milan asks its teacher where it looks, and {self.teacher} is a {type(target.outside[0]).__name__}: choose a vision transformer")
        width, depth, heads = self.decoder_size(encoder)
        grid = encoder.own_grid
        decoder = Prompting(encoder.width, target.width, grid, width, depth, heads)
        mae_init(encoder)
        mae_init(decoder)
        fix_places(encoder.trunk)
        seen = Seen(target, encoder.trunk.cls_token is not None and target.classed)
        predict = Predict(decoder, target, apart, also=seen, weigh=seen.share_of_hidden, named="visible")
        return MaskedModel(encoder, self.strategy(grid, encoder.patch), {"features": predict}, scores=target.attention)


def apart(prediction: Tensor, truth: Tensor) -> Tensor:
    """Squared distance of each row of the two at length one, from 0, right, over 2, at a right angle (models_milan.py, forward_loss)."""
    return 2 + 2 * losses.negative_cosine(prediction, truth)


class Prompting(Decoder):
    """What is visible stays as it is; tokens for hidden places ask it, and each other, block after block (MILAN, section 3.2)."""

    def __init__(self, encoder_width: int, out: int, grid: tuple[int, ...], width: int = 512, depth: int = 8, heads: int = 16, mlp_ratio: float = 4.0):
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(PromptedBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, out)
        self.grid = tuple(grid)
        self.register_buffer("places", sincos(self.grid, width).unsqueeze(0), persistent=False)  # (1, N, width)

    def placed(self, mask: Mask) -> Tensor:
        """The places of a mask's grid, (B, N, width)."""
        places = self.places if mask.grid == self.grid else sincos(mask.grid, self.places.shape[-1]).unsqueeze(0).to(self.places)
        return places.expand(len(mask.masked_ids), -1, -1)

    def prompts(self, features: Features, mask: Mask) -> Tensor:
        """What is visible, prefix first: (B, P + V, width)."""
        return torch.cat([self.embed(features.prefix), self.embed(features.patches) + mask.visible(self.placed(mask))], dim=1)

    def forward(self, features, mask):
        prompts = self.prompts(features, mask)
        x = self.mask_token + mask.masked(self.placed(mask))  # (B, M, width)
        for block in self.blocks:
            x = block(x, prompts)
        return self.predict(self.norm(x))  # (B, M, out)

    def restated(self, features: Features, mask: Mask) -> Tensor:
        """What is said of the visible itself, prefix first: (B, P + V, out)."""
        return self.predict(self.norm(self.prompts(features, mask)))


class PromptedBlock(nn.Module):
    """Rows look at each other and at prompts, which are not normed and do not change."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = Cross(width, width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn(normed, torch.cat([prompts, normed], dim=1))
        return x + self.mlp(self.norm2(x))


class Seen(nn.Module):
    """The share of the loss that visible patches have, and the class token where both networks have one: every place counts alike."""

    def __init__(self, teacher: Frozen, whole: bool):
        super().__init__()
        self.outside, self.whole = (teacher,), whole  # in a tuple: the target is a part of its objective already

    def places(self, mask: Mask) -> int:
        """How many answers a picture wants."""
        return mask.masked_ids.shape[1] + mask.visible_ids.shape[1] + self.whole

    def share_of_hidden(self, mask: Mask) -> Tensor:
        return torch.full((), mask.masked_ids.shape[1] / self.places(mask), device=mask.masked_ids.device)

    def forward(self, step: Step) -> Tensor:
        decoder: Any = step.decoder
        said, P = decoder.restated(step.features, step.mask), step.features.prefix.shape[1]
        loss = apart(said[:, P:], step.mask.visible(step.truth)).sum(1)  # (B,)
        if self.whole:
            loss = loss + apart(said[:, 0], self.outside[0].told(step.x).prefix[:, 0].float())
        return loss.mean() / self.places(step.mask)
