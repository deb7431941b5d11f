"""Export to timm, and to one plain file.

Source: timm's `create_model("local-dir:PATH")`: config.json with `architecture`, `model_args`, `pretrained_cfg` beside
model.safetensors; the same folder on the Hugging Face hub opens as `hf-hub:OWNER/NAME`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load, save
from timm.models.convnext import ConvNeXt
from timm.models.hiera import Hiera

from unmask.encoders.build import KINDS, constructor
from unmask.encoders.stem import stem
from unmask.errors import Failed, Refused
from unmask.interchange.card import CARD, MODES, Facts, ordinary, refuse_edited, tensor_line
from unmask.interchange.timm import Encoder, describe, plain, rebuild, sight_of, whole_folder, write
from unmask.interchange.witness import Exported, Witness, look
from unmask.settings import evaluation_share

OWN = frozenset({"config.json", "model.safetensors", CARD})
ELSEWHERE = ("num_classes", "norm_eps")  # said at the top, where transformers' TimmWrapperModel looks too; and what timm has no word for
USE = """\
import timm
{first}

encoder = timm.create_model("local-dir:{name}", pretrained=True, num_classes=0).eval()
{picture}
tokens = encoder.forward_features(x)  # (1, {shape})
"""
TRANSFORM = """\
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder))
x = transform(Image.open("picture.jpg").convert("{mode}")).unsqueeze(0)"""


def export_timm(encoder: Encoder, out: str | Path, witness: Witness | None = None, facts: Facts | None = None) -> Exported:
    """Write a folder that `timm.create_model("local-dir:OUT", pretrained=True)` opens, with a model card.

    timm opens it before it gets its name, and looks at the witness's pictures.
    """
    if timm.is_model(encoder.name) and timm.model_entrypoint(encoder.name).__module__.startswith("unmask."):
        raise Refused(f"timm has no network '{encoder.name}': the name is unmask's own, and elsewhere nobody could open the folder; --to onnx, or --to safetensors")
    if not isinstance(encoder.model, KINDS):
        raise Refused(f"--to timm writes a VisionTransformer, Eva, Beit, Swin, Hiera or ConvNeXt; a {type(encoder.model).__name__} is in encoder.safetensors of its run, by timm's own names")
    witness, facts, out = witness or Witness.of(encoder), facts or Facts(), Path(out)
    refuse_edited(out)
    with whole_folder(out, OWN) as folder:
        write(folder / "model.safetensors", save(tensors_of(encoder), metadata={"format": "pt"}))
        write(folder / "config.json", (json.dumps(config_of(encoder), indent=2) + "\n").encode())
        opened = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        seen, eps = look(opened.forward_features, witness.pictures), encoder.kwargs.get("norm_eps")
        try:
            difference = witness.difference(seen, "the folder, opened by timm,")
        except Failed:
            if eps is None:
                raise
            raise Refused(f"timm has no word for the epsilon of norms: it would take 1e-06 where these have {eps:g}; --to safetensors keeps it") from None
        write(folder / CARD, facts.card(encoder, "timm", use_of(encoder, out.name), difference, out.name).encode())
    said = () if eps is None else (f"{out}: timm takes 1e-06 as the epsilon of norms where these have {eps:g}",)
    return Exported(out, type(encoder.model).__name__, difference, (*said, witness.say(out, difference)))


def use_of(encoder: Encoder, name: str) -> str:
    """Lines of Python that open the folder and look at a picture; where Pillow holds no such pictures, at numbers."""
    first, picture = ("from PIL import Image", TRANSFORM.format(mode=MODES[encoder.in_chans])) if ordinary(encoder) else ("import torch", tensor_line(encoder))
    width = encoder.model.num_features
    return USE.format(first=first, name=name, picture=picture, shape=f"{width}, rows, columns" if isinstance(encoder.model, ConvNeXt) else f"tokens, {width}")


def config_of(encoder: Encoder) -> dict[str, Any]:
    """timm's config.json."""
    height, width = encoder.img_size
    statistics = {} if encoder.mean is None else {"mean": list(encoder.mean), "std": list(encoder.std or ())}
    return {
        "architecture": encoder.name,
        "num_classes": 0,
        "num_features": encoder.model.num_features,
        "global_pool": vars(encoder.model).get("global_pool", "avg"),  # Hiera and ConvNeXt keep it in their head
        "model_args": plain({key: value for key, value in constructor(encoder.name, encoder.kwargs).items() if key not in ELSEWHERE}),
        "pretrained_cfg": {
            "input_size": [encoder.in_chans, height, width],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": evaluation_share(encoder.img_size),
            "crop_mode": "center",
            "num_classes": 0,
            "pool_size": None,
            "first_conv": stem(encoder.model),
            "classifier": "head.fc" if isinstance(encoder.model, Hiera | ConvNeXt) else "head",
            "tag": "unmask",
        }
        | statistics,
    } | sight_of(encoder)


def export_safetensors(encoder: Encoder, out: str | Path, witness: Witness | None = None, facts: Facts | None = None) -> Exported:
    """Write the encoder as one safetensors file with its metadata (OUT, or OUT/encoder.safetensors), a plain timm state dict."""
    witness, out = witness or Witness.of(encoder), Path(out)
    file = out if out.suffix == ".safetensors" else out / "encoder.safetensors"
    if out.suffix != ".safetensors" and out.is_file():
        raise Refused(f"--out {out} is a file: give a folder, or a name that ends in .safetensors")
    if (file.parent / "config.yaml").is_file():
        raise Refused(f"--out {out} is a run, whose encoder.safetensors is its own: give another folder")
    keep = {name: value for name in ("mean", "std", "low", "high", "window", "tile") if (value := vars(encoder)[name]) is not None}
    content = save(tensors_of(encoder), metadata=describe(encoder.model, keep))
    opened = rebuild(encoder.name, encoder.kwargs).eval()
    opened.load_state_dict(load(content))
    difference = witness.difference(look(opened.forward_features, witness.pictures), "the file")
    write(file, content)
    return Exported(file, "timm state dict", difference, (witness.say(file, difference),))


def tensors_of(encoder: Encoder) -> dict[str, Any]:
    """The network's weights as a file holds them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.model.state_dict().items()}
