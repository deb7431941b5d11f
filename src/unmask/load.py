"""A run, or an official file, to the learner that made it: encoder, decoder and objectives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask import seeds
from unmask.errors import Refused
from unmask.interchange.naming import identify, parted
from unmask.interchange.weights import read, read_safetensors
from unmask.load_published import filled, from_huggingface_folder, from_published
from unmask.methods import find
from unmask.model import Learner
from unmask.settings import FORMAT, Ratio


def load(path: str | Path, **said: Any) -> Learner:
    """The learner in a run folder, in its `model.safetensors`, in an official file of MAE or BEiT or in a Hugging Face folder of ViTMAE.

    A file that holds only an encoder is refused: reconstructing needs the decoder. `said`: what a file does not tell, `heads`
    and `decoder_heads`, `norm_pix` (whether its targets were normalised patch by patch) and `img_size`, where it is not square,
    of BEiT `tokenizer`, whose codes it predicts; the word itself may say them, too: `fork.pth:heads=12,norm_pix=no`.
    """
    word, told = parted(str(path))
    path, said = Path(word).expanduser(), told | said
    if path.is_dir() and (path / "config.json").is_file() and not (path / "config.yaml").is_file() and identify(path).kind == "hugging face folder":
        return from_huggingface_folder(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        newest = sorted((path / "checkpoints").glob("step-*/model.safetensors"), key=lambda file: int(file.parent.name[5:]))
        if not newest:
            raise Refused(f"{path} is no run with weights: neither model.safetensors nor a complete checkpoint is in it")
        file = newest[-1]
    if not file.is_file():
        raise Refused(f"no run or file {path}")
    if file.suffix == ".safetensors":
        state, metadata = read_safetensors(file)
        if "method" in metadata:
            return from_metadata(metadata, state, file)
    if identify(file).kind == "hugging face folder":
        return from_huggingface_folder(file.parent)
    return from_published(read(file), **said)


def metadata_of(method: Any, name: str, **build: Any) -> dict[str, str]:
    """What `load` needs to build a learner again, as safetensors metadata; `build`: the words given to `method.build`."""
    fields = {key: str(value) if isinstance(value, Ratio) else value for key, value in vars(method).items()}
    return {"format": str(FORMAT), "method": name, "settings": json.dumps(fields), "build": json.dumps(build)}


def untrained(path: str | Path, seed: int = 0) -> Learner:
    """The learner of a run as it was before its first step, with weights drawn from `seed`."""
    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    metadata = read_safetensors(file)[1] if file.is_file() else {}
    if "method" not in metadata:
        raise Refused(f"{path} is no finished run: there is no model.safetensors that says how it was built")
    with torch.random.fork_rng(devices=[]):
        seeds.reseed(seed, "untrained")
        return built(metadata, file)


def from_metadata(metadata: Mapping[str, str], state: Mapping[str, Tensor], file: Path) -> Learner:
    return filled(built(metadata, file), state, [], str(file), "its own settings")


def built(metadata: Mapping[str, str], file: Path) -> Learner:
    """A fresh learner of the method and with the words that a file's metadata hold."""
    if int(metadata.get("format", FORMAT)) > FORMAT:
        raise Refused(f"{file} has format {metadata['format']}, this version reads up to {FORMAT}: update unmask")
    said = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(metadata["settings"]).items()}
    method = find(metadata["method"])(**said)
    build = json.loads(metadata["build"])
    return method.build(**build | {"img_size": tuple(build["img_size"])})
