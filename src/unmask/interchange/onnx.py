"""Export to ONNX, checked in onnxruntime.

Input `image` (B, C, H, W), any B; outputs `features` (B, P + N, D), timm's `forward_features`, and `pooled` (B, D): the
class token where there is one, else the mean of the patches, which is what `unmask embed` writes.
Source: torch.onnx.export (dynamo), https://onnx.ai/onnx/repo-docs/IR.html for `metadata_props`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.hiera import MaskUnitAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmask import __version__
from unmask.errors import Refused
from unmask.interchange.timm import Encoder, folders_for
from unmask.interchange.witness import Exported, Witness

LARGEST = 2_000_000_000  # bytes: a protobuf message ends at 2 GiB, so larger weights go into a second file
OPSET = 18  # the exporter's own; onnxruntime reads it since 1.14


class Named(nn.Module):
    """The two outputs of the file."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.forward_features(image)  # (B, P + N, D)
        return features, pooled(self.model, features)


def pooled(model: Any, features: Tensor) -> Tensor:
    """(B, D) of the features: what `unmask embed` writes; networks that are no plain transformer give timm's own pooled output."""
    if not isinstance(model, VisionTransformer | Eva | Beit):
        return model.forward_head(features, pre_logits=True)
    return model.fc_norm(features[:, 0] if model.cls_token is not None else features[:, model.num_prefix_tokens :].mean(dim=1))


def export_onnx(encoder: Encoder, out: str | Path, witness: Witness | None = None, largest: int = LARGEST) -> Exported:
    """Write the encoder as an ONNX file (OUT, or OUT/encoder.onnx), run it in onnxruntime on one picture and on several, and compare.

    Weights of more than `largest` bytes go into a second file beside it, and the line that is printed says so.
    """
    out = Path(out)
    file = out if out.suffix == ".onnx" else out / "encoder.onnx"
    if out.suffix != ".onnx" and out.is_file():
        raise Refused(f"--out {out} is a file: give a folder, or a name that ends in .onnx")
    witness = witness or Witness.of(encoder)
    outside = sum(tensor.numel() * tensor.element_size() for tensor in encoder.model.state_dict().values()) > largest
    with beside(file) as folder:
        whole = folder / file.name
        traced(encoder, whole, outside)
        difference = judged(whole, encoder, witness)
    weights = (f"{file}: its weights, more than 2 GB, are in {file.name}.data beside it: keep the two together",) if outside else ()
    return Exported(file, "ONNX", difference, (*weights, witness.say(file, difference)))


@contextlib.contextmanager
def beside(file: Path) -> Iterator[Path]:
    """A hidden folder whose files take their places beside `file` when the block ends, and vanish when an error ends it."""
    import shutil

    folder = file.parent / f".{file.name}.{os.getpid()}"
    with folders_for(folder):
        folder.mkdir()
        try:
            yield folder
            parts = sorted(folder.iterdir(), reverse=True)  # the .data first: the .onnx appears when it is complete
            for part in parts:
                os.replace(part, file.parent / part.name)
            if len(parts) == 1:  # an earlier export's weights, which this file does not use
                file.with_name(f"{file.name}.data").unlink(missing_ok=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def traced(encoder: Encoder, file: Path, outside: bool) -> None:
    """Write the file, with what has to be known to feed it as metadata."""
    x = torch.zeros(2, encoder.in_chans, *encoder.img_size)  # two: a batch of one would be taken for a constant
    network = encoder.model.eval()
    if any(isinstance(module, MaskUnitAttention) for module in network.modules()):  # its queries have five axes, and ONNX's attention knows four
        network = copy.deepcopy(network)
        for module in network.modules():
            if isinstance(module, MaskUnitAttention):
                module.fused_attn = False
    model = Named(network)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (x,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["features", "pooled"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}},
        )
        assert program is not None  # None only where a file is given
        program.model.metadata_props.update(words_of(encoder))
        program.save(file, external_data=outside)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter's progress and warnings of what is as it should be are held back; what goes wrong raises."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


def words_of(encoder: Encoder) -> dict[str, str]:
    """metadata_props: which network, and how stored numbers become its input."""
    known: dict[str, Any] = {
        "model": encoder.name,
        "img_size": list(encoder.img_size),
        "in_chans": encoder.in_chans,
        "low": list(encoder.low),
        "high": list(encoder.high),
        "mean": None if encoder.mean is None else list(encoder.mean),
        "std": None if encoder.std is None else list(encoder.std),
        "window": encoder.window,
        "tile": encoder.tile,
        "input": "image = ((stored - low) / (high - low), cut to [0, 1], - mean) / std, channel by channel",
        "unmask": __version__,
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in known.items()}


def judged(file: Path, encoder: Encoder, witness: Witness) -> float:
    """The largest difference that onnxruntime finds, on one picture and on all the others at once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    x, found = witness.pictures, []
    for part in (slice(0, 1), slice(1, None) if len(x) > 1 else slice(0, 1)):
        features, together = (torch.from_numpy(answer) for answer in session.run(["features", "pooled"], {"image": x[part].numpy()}))
        wanted = witness.features[part]
        with torch.inference_mode():
            found.append(witness.difference(together, "the file's pooled output", pooled(encoder.model, wanted)))
        found.append(witness.difference(features, "the file, run by onnxruntime,", wanted))
    return max(found)
