"""Hand an encoder on: to other libraries, to files, to Python."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from unmask.api.asked import settings_of
from unmask.errors import Refused, UnmaskError
from unmask.interchange.naming import identify
from unmask.options import load
from unmask.settings import within

BEGUN = ("sam", "vitdet", "dit")  # networks of others that begin with an encoder's weights
SEEN = 4  # pictures that an export is compared on
PACKAGES = {"hf": ("transformers",), "onnx": ("onnx", "onnxruntime", "onnxscript")}  # what writes and opens a format, and is an extra of its name


@dataclass(frozen=True)
class Export:
    """Where an encoder goes, and for which library."""

    to: Literal["timm", "hf", "onnx", "safetensors", "paper", "sam", "vitdet", "dit"] = "timm"  # timm, hf: a folder for that library; onnx, safetensors: one file; paper: as the method's own code has it; sam, vitdet, dit: a beginning for those
    out: str | None = None  # the folder or file to write
    img_size: tuple[int, int] | None = None  # height and width of its input (places are interpolated); not given: the encoder's own
    with_decoder: bool = False  # for hf: a run's MAE decoder too, as ViTMAEForPreTraining, to go on pre-training there
    license: str | None = None  # for timm and hf: the licence that the model card names, such as apache-2.0; it is never guessed

    def __post_init__(self):
        within(self, "img_size", 1)


def load_encoder(name: str | Path, **settings: Any) -> Any:
    """A timm model that never masks, of any ENCODER; `settings`: img_size, in_chans, patch_size, random, seed."""
    from unmask.interchange import encoder

    return encoder.load_encoder(name, **settings).model


def load_transform(name: str | Path, **settings: Any) -> Any:
    """The preprocessing that belongs to an ENCODER: one picture (path, Pillow image, array in stored units) to the input (C, H, W).

    Exactly what `unmask evaluate` and `unmask embed` do. `settings`: those of `load_encoder`.
    """
    from unmask.data.transform import Transform
    from unmask.interchange.encoder import load_encoder

    return Transform(load_encoder(name, **settings))


def export(encoder: str | Path, out: str | Path | None = None, to: str = "timm", **settings: Any) -> dict[str, Any]:
    """Write an encoder for another library; the result says the largest difference of its features to the trained encoder's.

    `settings`: img_size, with_decoder, license. What is written is opened by its own library and looks at pictures of the
    run, where its data is still there.
    """
    identify(encoder)
    (asked,) = settings_of((Export,), {"to": to} | settings)
    if out is None:
        raise Refused(f"--out is missing: unmask export {encoder} --to {to} --out {Path(encoder).name}-{to}")
    if asked.with_decoder and asked.to != "hf":
        raise Refused(f"--with_decoder is for --to hf: --to {asked.to} takes the encoder only")
    if asked.to == "paper" and asked.img_size is not None:
        raise Refused("--to paper keeps the run's own size: leave --img_size out")
    if asked.with_decoder and asked.img_size is not None:
        raise Refused("--with_decoder keeps the run's own size: leave --img_size out")
    if asked.license is not None and asked.to not in ("timm", "hf"):
        raise Refused(f"--license is for the model card that --to timm and --to hf write; --to {asked.to} writes none")
    missing = [package for package in PACKAGES.get(asked.to, ()) if find_spec(package) is None]
    if missing:
        raise Refused(f'--to {asked.to} needs {", ".join(missing)}: pip install "unmask[{asked.to}]"')
    done = written(encoder, Path(out), asked)
    for line in done.said:
        print(line)
    return {"to": asked.to, **done.as_dict()}


def written(name: str | Path, out: Path, asked: Export) -> Any:
    """The export, by the library that is asked for."""
    from unmask.interchange import huggingface_export, onnx, papers_export, timm_export, vitmae_export
    from unmask.interchange.card import Facts
    from unmask.interchange.encoder import load_encoder
    from unmask.load import load as load_learner

    facts = Facts.of(name, asked.license)
    opened = load_encoder(name, img_size=asked.img_size)
    if asked.with_decoder:
        return vitmae_export.export_vitmae(whole_of(name), opened, out, *own_pictures(name, opened), facts)
    witness = witness_of(name, opened)
    if asked.to == "paper":
        method, learner = method_of(name), load_learner(name)
        return papers_export.export_paper(learner.state_dict(), learner.encoder, method, opened, out, witness)
    if asked.to == "hf":
        return huggingface_export.export_huggingface(opened, out, witness, facts, exact=facts.size == opened.img_size)
    if asked.to in BEGUN:
        from unmask.interchange import warm_start

        begin = {"sam": warm_start.export_sam, "vitdet": warm_start.export_vitdet, "dit": warm_start.export_dit}
        return begin[asked.to](opened, out, witness)
    if asked.to == "onnx":
        return onnx.export_onnx(opened, out, witness)
    writers = {"timm": timm_export.export_timm, "safetensors": timm_export.export_safetensors}
    return writers[asked.to](opened, out, witness, facts)


def method_of(name: str | Path) -> str:
    """The method of a run, one whose own code's names are known."""
    from unmask.interchange.papers_export import WRITERS

    config = Path(name) / "config.yaml"
    method = load(config).get("method") if config.is_file() else None
    if method not in WRITERS:
        raise Refused(f"--to paper writes runs of {', '.join(WRITERS)}; {name} is {f'a run of {method}' if method else 'no run'}: --to timm takes any encoder")
    return str(method)


def whole_of(name: str | Path) -> Any:
    """The parts of a run that is an MAE, or of an official file with its decoder."""
    from unmask.decoders import Transformer
    from unmask.interchange.vitmae_export import Whole
    from unmask.load import load as load_learner
    from unmask.model import MaskedModel, Predict
    from unmask.targets.pixels import Pixels

    learner = load_learner(name)
    part = learner.objectives["pixels"] if isinstance(learner, MaskedModel) and list(learner.objectives) == ["pixels"] else None
    if not isinstance(part, Predict) or not isinstance(part.decoder, Transformer) or part.decoder.learned is not None or not isinstance(part.target, Pixels):
        raise Refused(f"--with_decoder: {name} is no MAE (one decoder that predicts pixels): leave it out")
    ratio = learner.masking.ratio.last

    def loss(x: Any, mask: Any) -> Any:
        return learner(x, mask=mask)["loss"]

    return Whole(learner.encoder, part.decoder, learner.state_dict(), loss, part.target.normalize, ratio)


def witness_of(name: str | Path, opened: Any) -> Any:
    """Pictures, and what the trained encoder sees in them: the learner of a run, where there is one, else the encoder itself."""
    import torch

    from unmask.interchange.witness import Witness

    pictures, said = own_pictures(name, opened)
    trained = trained_of(name, opened)
    if trained is None:
        return Witness.of(opened, pictures, said)
    with torch.inference_mode():
        return Witness(pictures, trained(pictures), said)


def trained_of(name: str | Path, opened: Any) -> Callable[[Any], Any] | None:
    """The encoder as the run trained it, from model.safetensors and through the masking adapter; None where there is none of this size."""

    from unmask.encoders.adapter import Adapter
    from unmask.load import load as load_learner

    if not (Path(name) / "model.safetensors").is_file() or not (Path(name) / "config.yaml").is_file():
        return None
    try:
        learner = load_learner(name)
    except UnmaskError:
        return None
    encoder = learner.handed()  # a teacher's, or a moving average's, where that is what goes out
    if not isinstance(encoder, Adapter) or encoder.img_size != tuple(opened.img_size):
        return None

    def see(x: Any) -> Any:
        return encoder.as_timm(encoder(x), encoder.grid(x))

    return see


def own_pictures(name: str | Path, opened: Any) -> tuple[Any, str]:
    """(pictures (B, C, H, W) as the encoder wants them, which they are): of the run's data where it is still here, else of a photograph."""
    from unmask.interchange.timm import photograph

    other = photograph(opened), "crops of a photograph that comes with matplotlib"
    if not (Path(name) / "config.yaml").is_file():
        return other
    data = load(Path(name) / "config.yaml").get("data")
    try:
        return pictures_of(str(data), opened), "pictures of the run's data"
    except (UnmaskError, OSError, ValueError):
        return other[0], f"{other[1]}: the run's data is not here"


def pictures_of(data: str, opened: Any) -> Any:
    """A few pictures of DATA; of a folder only the first names are read, however many it has."""
    import torch

    from unmask.data.forms import is_picture, walk
    from unmask.data.loader import Pictures
    from unmask.data.sources import open_source
    from unmask.data.transform import format_of
    from unmask.settings import Views

    if data.startswith("hf:") or not data:
        raise ValueError("not on this machine")
    few: Any = data
    if os.path.isdir(data):
        names = (path for name in walk(data) if is_picture(path := os.path.join(data, name)))
        few = list(itertools.islice(names, 16 * SEEN)) or data
    source = open_source(few)
    seen = Pictures(source, format_of(opened), Views(), opened.img_size, tile=opened.tile)
    count = min(len(source), 2 * SEEN)  # some may be unreadable
    x = seen.still([index * len(source) // count for index in range(count)])[:SEEN]
    if not len(x):
        raise ValueError("none of its pictures can be read")
    return x if isinstance(x, torch.Tensor) else torch.as_tensor(x)
