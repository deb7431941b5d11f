"""Export to transformers: a folder that `AutoModel.from_pretrained` opens, with the class whose function is exactly the trunk's.

Names are those of transformers 4.x, which 5.x reads too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from unmask.interchange.card import CARD, MODES, Facts, ordinary, refuse_edited, tensor_line
from unmask.interchange.huggingface_fit import Fit, fit, refused
from unmask.interchange.huggingface_relative import fit_beit, fit_swin
from unmask.interchange.preprocessor import preprocessor
from unmask.interchange.timm import Encoder, whole_folder, write
from unmask.interchange.witness import Exported, Witness, look

OWN = frozenset({"config.json", "model.safetensors", "preprocessor_config.json", CARD})
USE = """\
{first}
from transformers import {classes}

model = AutoModel.from_pretrained("{name}").eval()
{picture}
tokens = model({argument}).last_hidden_state  # (1, tokens, {width})
"""


def export_huggingface(encoder: Encoder, out: str | Path, witness: Witness | None = None, facts: Facts | None = None, exact: bool = False) -> Exported:
    """Write a folder that `AutoModel.from_pretrained(OUT)` opens, with its processor and a model card.

    `exact`: the pictures have the input's own size, so that the processor does not zoom. Refused with the reason where no class fits.
    """
    witness, facts = witness or Witness.of(encoder), facts or Facts()
    fitted, out = fitting(encoder, facts.method or ""), Path(out)
    refuse_edited(out)
    with whole_folder(out, OWN) as folder:
        write(folder / "model.safetensors", save(contiguous(fitted.weights), metadata={"format": "pt"}))
        write(folder / "config.json", text_of(fitted.config))
        processor, said = preprocessor(encoder, exact)
        if processor:
            write(folder / "preprocessor_config.json", text_of(processor))
        opened, missing = open_folder(folder)
        if missing:
            raise refused(f"{type(opened).__name__} wants {missing[0]}")
        seen = look(lambda x: opened(pixel_values=x).last_hidden_state, witness.pictures)  # (B, tokens, D)
        difference = witness.difference(seen.reshape(witness.features.shape), f"the folder, opened by transformers' {type(opened).__name__},")
        write(folder / CARD, facts.card(encoder, "transformers", use_of(encoder, out.name, bool(processor)), difference, out.name, said).encode())
    return Exported(out, fitted.form, difference, (f"{out}: transformers opens it as {fitted.form}", *said, witness.say(out, difference)))


def fitting(encoder: Encoder, method: str = "") -> Fit:
    """The class that fits, of whatever family; Refused with the reason where there is none. Beit that data2vec trained has a class of that name."""
    if isinstance(encoder.model, Beit):
        method = method or (encoder.report.method if encoder.report else "")
        return fit_beit(encoder, "data2vec-vision" if method.lower() == "data2vec" else "beit")
    return fit_swin(encoder) if isinstance(encoder.model, SwinTransformer) else fit(encoder)


def contiguous(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in weights.items()}


def open_folder(folder: Path, name: str = "AutoModel") -> tuple[Any, list[str]]:
    """The network as that class of transformers opens it, and the names of weights that it lacked. Its own chatter is held back."""
    import transformers

    before, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        opened, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()
    return opened.eval(), sorted(info["missing_keys"])


def text_of(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(config), indent=2) + "\n").encode()


def use_of(encoder: Encoder, name: str, processor: bool) -> str:
    """Lines of Python that open the folder and look at a picture; where Pillow holds no such pictures, at numbers."""
    if not processor or not ordinary(encoder):
        use = {"first": "import torch", "classes": "AutoModel", "picture": tensor_line(encoder), "argument": "pixel_values=x"}
    else:
        picture = f'inputs = AutoImageProcessor.from_pretrained("{name}")(Image.open("picture.jpg").convert("{MODES[encoder.in_chans]}"), return_tensors="pt")'
        use = {"first": "from PIL import Image", "classes": "AutoImageProcessor, AutoModel", "picture": picture, "argument": "**inputs"}
    return USE.format(name=name, width=encoder.model.num_features, **use)
