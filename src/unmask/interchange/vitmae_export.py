"""Export a whole MAE, decoder and all, as transformers' ViTMAEForPreTraining, to go on pre-training there.

Source: transformers 5.23, models/vit_mae/modeling_vit_mae.py. Its loss equals ours on the same noise; its pixels lie channel last
within a patch, as in MAE's own code. Opened by `AutoModel` it is a ViTMAEModel, which hides patches whenever it looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from unmask import seeds
from unmask.decoders import Transformer
from unmask.encoders.vit import ViT
from unmask.errors import Refused
from unmask.interchange import huggingface, official
from unmask.interchange.card import CARD, Facts, refuse_edited
from unmask.interchange.huggingface_export import OWN, open_folder, text_of
from unmask.interchange.huggingface_fit import fit, plain_state
from unmask.interchange.preprocessor import preprocessor
from unmask.interchange.timm import Encoder, whole_folder, write
from unmask.interchange.witness import Exported, Witness, small
from unmask.mask import Mask
from unmask.masking import highest

CLASS = "ViTMAEForPreTraining"
USE = """\
import torch
from transformers import ViTMAEForPreTraining

model = ViTMAEForPreTraining.from_pretrained("{name}")
x = torch.zeros(2, {in_chans}, {side}, {side})  # your pictures, scaled as said below
loss = model(pixel_values=x).loss  # each time other patches are hidden
"""


@dataclass(frozen=True)
class Whole:
    """The parts of a trained MAE. `state`: its learner's state dict; `loss(x, mask)`: the learner's loss."""

    encoder: ViT
    decoder: Transformer
    state: dict[str, Tensor]
    loss: Callable[[Tensor, Mask], Tensor]
    norm_pix: bool
    mask_ratio: float


def export_vitmae(whole: Whole, encoder: Encoder, out: str | Path, pictures: Tensor, said: str, facts: Facts | None = None) -> Exported:
    """Write a folder that `ViTMAEForPreTraining.from_pretrained(OUT)` opens; its answers and its loss are compared on `pictures`.

    `encoder`: the same trunk, with the statistics of its input; `said`: which pictures these are. Refused where the class does not fit.
    """
    out, facts = Path(out), facts or Facts()
    config = config_of(whole, encoder)
    refuse_edited(out)
    grid = tuple(encoder.model.patch_embed.grid_size)
    parts = plain_state(encoder.model) | {key: value for key, value in official.to_mae(whole.state, whole.encoder.patch).items() if is_decoders(key)}
    parts["decoder_pos_embed"] = torch.nn.functional.pad(whole.decoder.places, (0, 0, 1, 0))  # (1, 1 + N, width): the class token has no place there
    theirs = {key: value.contiguous() for key, value in huggingface.to_huggingface(parts, "vit_mae", grid, "vit.").items()}
    with whole_folder(out, OWN) as folder:
        write(folder / "model.safetensors", save(theirs, metadata={"format": "pt"}))
        write(folder / "config.json", text_of(config))
        processor, lines = preprocessor(encoder)
        if processor:
            write(folder / "preprocessor_config.json", text_of(processor))
        opened, missing = open_folder(folder, CLASS)
        if missing:
            raise Refused(f"transformers' {CLASS} finds no {missing[0]} in the folder")
        difference, losses = compare(whole, opened, grid, pictures)
        use = USE.format(name=out.name, in_chans=encoder.in_chans, side=encoder.img_size[0])
        write(folder / CARD, facts.card(encoder, "transformers", use, difference, out.name, lines).encode())
    answer = f"its answers for hidden patches differ by at most {small(difference)} from the run's, its loss is {losses[0]:.6f} where the run's is {losses[1]:.6f}"
    return Exported(out, CLASS, difference, (f"{out}: transformers opens it as {CLASS}", *lines, f"{out}: {answer} ({len(pictures)} {said}, the same noise)"))


def is_decoders(key: str) -> bool:
    return key.startswith("decoder_") or key == "mask_token"


def config_of(whole: Whole, encoder: Encoder) -> dict[str, Any]:
    """config.json; Refused where ViTMAE computes something else."""
    fitted, block = fit(encoder), whole.decoder.blocks[0]
    if fitted.form != "ViTModel":
        raise Refused(f"transformers' {CLASS} fits plain trunks with a class token only; this one is a {fitted.form}: leave --with_decoder out")
    known, patch = dict(fitted.config), encoder.patch_size or ()
    if encoder.img_size[0] != encoder.img_size[1] or len(set(patch)) != 1:
        raise Refused(f"transformers' {CLASS} takes square pictures and patches only: leave --with_decoder out")
    if known["layer_norm_eps"] != whole.decoder.norm.eps or known["hidden_act"] != "gelu":
        raise Refused(f"transformers' {CLASS} has one epsilon and one activation for encoder and decoder, and here they differ: leave --with_decoder out")
    known.pop("pooler_act")
    return known | {
        "architectures": [CLASS],
        "model_type": "vit_mae",
        "decoder_hidden_size": whole.decoder.embed.out_features,
        "decoder_num_hidden_layers": len(whole.decoder.blocks),
        "decoder_num_attention_heads": block.attn.num_heads,
        "decoder_intermediate_size": block.mlp.fc1.out_features,
        "mask_ratio": whole.mask_ratio,
        "norm_pix_loss": whole.norm_pix,
    }


@torch.inference_mode()
def compare(whole: Whole, opened: Any, grid: tuple[int, int], pictures: Tensor) -> tuple[float, tuple[float, float]]:
    """The largest difference of the answers for hidden patches, and both losses, on the same noise."""
    rows, columns = grid
    noise = seeds.uniform((len(pictures), rows * columns), 0, "export")
    mask = highest(noise, int(rows * columns * (1 - whole.mask_ratio)), grid)
    answers = whole.decoder(whole.encoder(pictures, mask), mask)  # (B, M, C·p·p)
    theirs = opened(pixel_values=pictures, noise=noise)
    seen = official.channel_first(mask.masked(theirs.logits).movedim(2, 0), whole.encoder.patch).movedim(0, 2)  # (B, M, C·p·p)
    ours = whole.loss(pictures, mask)
    witness = Witness(pictures, answers)
    witness.difference(theirs.loss.reshape(1), f"the loss of the folder, opened by {CLASS},", ours.reshape(1))
    return witness.difference(seen, f"the folder, opened by {CLASS},"), (float(theirs.loss), float(ours))
