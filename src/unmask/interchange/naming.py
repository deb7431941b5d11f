"""What the word ENCODER means, told from the word and the disk alone: no torch here, so a wrong word is answered at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from unmask.encoders import names
from unmask.errors import Refused

CHECKPOINTS = (".pth", ".pt", ".bin", ".ckpt", ".pyth")  # what torch.save's files are called
FORMS = "a run folder, an encoder or checkpoint file, a Hugging Face folder, timm:NAME or random:NAME"


class Named(NamedTuple):
    """The kind of thing an ENCODER word names, and its path or timm name."""

    kind: Literal["timm", "random", "encoder file", "checkpoint file", "learner file", "timm folder", "hugging face folder"]
    where: str
    note: str = ""  # what a person should know about the choice; empty when nothing is unusual
    said: dict[str, Any] = {}  # what the word adds to a file that does not tell it: `fork.pth:heads=12`


SAID: dict[str, Callable[[str], Any]] = {  # what may stand behind a file, and how it is read
    "heads": int,
    "decoder_heads": int,
    "model": str,
    "tokenizer": str,
    "norm_pix": {"yes": True, "no": False}.__getitem__,
}


def parted(word: str) -> tuple[str, dict[str, Any]]:
    """A word `FILE:heads=12,model=NAME` as its file and what it says of it; any other word as it is."""
    path, colon, rest = word.rpartition(":")
    if not colon or "=" not in rest or Path(word).exists() or not path:
        return word, {}
    said: dict[str, Any] = {}
    for one in rest.split(","):
        name, _, value = one.partition("=")
        if name not in SAID:
            raise Refused(f"'{word}': after a file may stand {', '.join(SAID)}, such as {path}:heads=12; not '{name}'")
        try:
            said[name] = SAID[name](value)
        except (ValueError, KeyError):
            raise Refused(f"'{word}': {name} is {'yes or no' if name == 'norm_pix' else 'a number'}, not '{value}'") from None
    return path, said


def identify(name: str | Path) -> Named:
    """The kind of `name`; Refused with the name and the possible forms when it is none."""
    word = str(name)
    prefix, _, rest = word.partition(":")
    if prefix in ("timm", "random") and not Path(word).exists():
        if not rest:
            raise Refused(f"ENCODER '{word}' lacks the model's name: {prefix}:vit_small_patch16_224")
        if prefix == "random":
            names.check(rest, "random:")
        return Named(prefix, rest)  # type: ignore[arg-type]
    word, said = parted(word)
    path = Path(word).expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise Refused(f"no ENCODER '{word}': it is neither on disk nor of the form timm:NAME; give {FORMS}")
    if path.name in ("model.safetensors", "pytorch_model.bin"):  # the weights of a folder whose config.json says the sizes
        kind = _configured(path.parent)
        if kind is not None:
            return Named(kind, str(path.parent))
    if path.suffix == ".safetensors":
        return Named("learner file" if path.name == "model.safetensors" else "encoder file", str(path), said=said)
    if path.suffix in CHECKPOINTS or path.name.endswith(".pth.tar"):
        return Named("checkpoint file", str(path), said=said)
    raise Refused(f"ENCODER '{word}' is a {path.suffix or 'nameless'} file: give {FORMS}")


def _configured(folder: Path) -> Literal["timm folder", "hugging face folder"] | None:
    """Whose folder a config.json says it is."""
    config = folder / "config.json"
    if not config.is_file():
        return None
    try:
        words = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        raise Refused(f"{config} is no JSON: {folder} is no encoder") from None
    return "timm folder" if "architecture" in words else "hugging face folder" if "model_type" in words else None


def _folder(path: Path) -> Named:
    encoder, whole = path / "encoder.safetensors", path / "model.safetensors"
    unfinished = (path / "config.yaml").is_file()
    if encoder.is_file():
        return Named("encoder file", str(encoder))
    if unfinished and whole.is_file():  # finished, and without an encoder
        return Named("learner file", str(whole))
    if unfinished or (path / "checkpoints").is_dir():
        steps = sorted((path / "checkpoints").glob("step-*/model.safetensors"), key=_step)
        if steps:
            return Named("learner file", str(steps[-1]), f"{path} is not finished: its newest checkpoint, {steps[-1].parent.name}, is used")
        raise Refused(f"the run {path} has no encoder.safetensors and no checkpoint yet: wait for its first checkpoint, or unmask resume {path}")
    kind = _configured(path)
    if kind is not None:
        return Named(kind, str(path))
    if whole.is_file():
        return Named("learner file", str(whole))
    raise Refused(f"the folder {path} holds no encoder (no encoder.safetensors, no checkpoints, no config.json): give {FORMS}")


def _step(path: Path) -> int:
    digits = path.parent.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1
