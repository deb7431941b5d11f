"""MAE as it would be built today: registers, rotary places and gated blocks, a ratio that rises, pixels or a teacher's features, and captions beside the mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from unmask import losses
from unmask.decoders import Transformer, decoder_size, default_size, patch_values
from unmask.encoders.adapter import Adapter
from unmask.encoders.build import build
from unmask.encoders.initial import layer_scale
from unmask.encoders.vit import fix_places, mae_init
from unmask.errors import Refused
from unmask.masking import Random
from unmask.model import MaskedModel, Objective, Predict
from unmask.settings import Ratio, Train, Views, within
from unmask.targets.features import frozen
from unmask.targets.pixels import Pixels
from unmask.text import OWN, Foreign, Paired, TextTransformer, Tower, reader_of


@dataclass(frozen=True)
class ModernMAE:
    """MAE on a trunk of today: registers (Darcet et al. 2023), rotary places in two dimensions (Su et al. 2021, as DINOv3 has them), SwiGLU (Shazeer 2020).

    What is hidden grows over the run. Predicted are pixels, the features of a frozen teacher (EVA), or both, each by a decoder of its own (BootMAE). With captions a
    sigmoid loss on pairs of picture and text (SigLIP) stands beside it, on the same pass: a picture is what its visible patches say (FLIP, Li et al. 2022).
    """

    sentence = "MAE with registers, rotary places, SwiGLU and a rising ratio; pixels or a teacher's features, and captions if there are some"
    source = "He et al. 2021, arXiv:2111.06377; with Darcet et al. 2023, arXiv:2309.16588, Zhai et al. 2023, arXiv:2303.15343, Li et al. 2022, arXiv:2212.00794"
    standing = "experimental"
    network = "vit_small_plus_patch16_dinov3"
    paper = Train(epochs=800, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.0)  # MAE's: no paper has this recipe
    views = Views(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")  # MAE's
    row = ("patches", "random, .5 rising to .75", "dropped", "transformer 512×8", "pixels, per-patch normalised → mse; or frozen teacher's features → −cos; captions → sigmoid")
    wants = ("teacher", "text")  # encoders and folders that it may be given

    mask_ratio: Ratio = Ratio(0.5, 0.75, "over the run")  # share of patches hidden: schedule .5:.75, number, range .6-.9, or video audio images medical
    target: Literal["pixels", "features", "both"] = "pixels"  # what is predicted of hidden patches: pixels, a frozen teacher's features, or both
    norm_pix: bool = True  # normalise each target patch by its own mean and standard deviation
    teacher: str | None = None  # ENCODER whose features are predicted: a run, an encoder file, timm:NAME
    pixels_weight: float = 1.0  # of the pixels' squared error, where both are predicted
    features_weight: float = 1.0  # of the features' cosine, where both are predicted
    registers: int | None = None  # tokens beside the class token, without a place in the picture; not given: the network's own, of the default one 4
    layer_scale: float = 1.0  # where the branches of networks with layer scale begin; as DINOv3 has it 1e-5
    text: str | None = None  # who reads captions: own (a small transformer over their words), or a frozen text tower of Hugging Face's, a folder or name; not given: nobody
    text_weight: float = 1.0  # of the sigmoid loss between pictures and captions
    text_length: int = 32  # words (or tokens) of a caption that are read
    text_width: int | None = None  # columns of our own text transformer; not given: the encoder's, 512 at most
    text_depth: int = 4  # its blocks
    embedding: int = 256  # columns in which pictures and captions are compared
    decoder_width: int | None = None  # 512, MAE's; not given: two thirds of the encoder's width below ViT-B
    decoder_depth: int | None = None  # 8 blocks, MAE's; not given: 4 below ViT-B
    decoder_heads: int | None = None  # 16, MAE's; not given: 32 columns a head

    def __post_init__(self):
        object.__setattr__(self, "mask_ratio", Ratio.of(self.mask_ratio))
        within(self, "decoder_width decoder_depth decoder_heads text_length text_width text_depth embedding", 1)
        within(self, "pixels_weight features_weight text_weight layer_scale", 0, above=True)
        within(self, "registers", 0)
        if self.target != "pixels" and self.teacher is None:
            raise ValueError(f"target {self.target} needs a teacher: --method.teacher ENCODER (a run, an encoder file, timm:NAME)")
        if self.target == "pixels" and self.teacher is not None:
            raise ValueError("a teacher is given, and target pixels does not ask it: --method.target features, or both")

    def strategy(self, grid: tuple[int, ...], patch: tuple[int, ...]) -> Random:
        """Which patches are hidden."""
        return Random(self.mask_ratio)

    def decoder_size(self, encoder: Adapter) -> tuple[int, int, int]:
        """Width, blocks and heads of a decoder over that encoder."""
        return decoder_size(self, *default_size(encoder.width)[:2])

    def build(
        self,
        model: str | nn.Module = "vit_small_plus_patch16_dinov3",
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int | None = None,
        vocabulary: Sequence[str] = (),
        **sizes: Any,
    ) -> MaskedModel:
        """A fresh learner over any timm network that can drop patches; `vocabulary`: the words that our own text transformer knows."""
        if self.registers is not None:
            sizes["registers"] = self.registers
        encoder = build(model, img_size, in_chans, patch_size, masked="drop", **sizes)
        mae_init(encoder)
        fix_places(encoder.trunk)
        layer_scale(encoder, self.layer_scale)
        grid, both = encoder.own_grid, self.target == "both"
        width, depth, heads = self.decoder_size(encoder)
        parts: dict[str, Objective] = {}
        if self.target != "features":
            decoder = Transformer(encoder.width, patch_values(encoder.patch, encoder.in_chans), grid, width, depth, heads)
            parts["pixels"] = Predict(decoder, Pixels(encoder.patch, self.norm_pix), Weighted(losses.mse, self.pixels_weight) if both else losses.mse)
        if self.target != "pixels":
            target = frozen(self.teacher, encoder.img_size, encoder.patch, encoder.in_chans, "modern_mae")
            decoder = Transformer(encoder.width, target.width, grid, width, depth, heads)
            parts["features"] = Predict(decoder, target, Weighted(losses.negative_cosine, self.features_weight) if both else losses.negative_cosine)
        for part in parts.values():
            mae_init(part.get_submodule("decoder"))
        if self.text is not None:
            parts["text"] = self.captions(encoder.width, vocabulary)
        return MaskedModel(encoder, self.strategy(grid, encoder.patch), parts, pooling="avg" if self.text is not None else "cls")

    def captions(self, width: int, vocabulary: Sequence[str]) -> Paired:
        """The question which caption is whose."""
        assert self.text is not None
        reader = reader_of(self.text, vocabulary, self.text_length)
        tower: Tower
        if self.text != OWN:
            tower = Foreign(self.text)
        elif not vocabulary:
            raise Refused("--method.text own learns its words from captions: build(vocabulary=[…]), or --captions FILE in a run")
        else:
            columns = self.text_width or min(width, 512)
            tower = TextTransformer(len(vocabulary), self.text_length, columns, self.text_depth, next(columns // some for some in (32, 64, columns) if columns % some == 0))
            mae_init(tower)
        return Paired(width, reader, tower, self.embedding, self.text_weight)


@dataclass(frozen=True)
class Weighted:
    """A loss that counts so much."""

    loss: Callable[[Tensor, Tensor], Tensor]
    weight: float

    def __call__(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return self.weight * self.loss(prediction, truth)
