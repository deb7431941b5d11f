"""What a finished run leaves: the whole learner, its encoder, the report, and what to do next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any

from torch import nn

from unmask.interchange.encoder import save_encoder
from unmask.model import Learner
from unmask.run import tensors
from unmask.run.folder import RunFolder


def trunk_of(learner: nn.Module) -> Any:
    """The timm model in a learner; None for learners without an encoder (tokenizers)."""
    encoder = dict(learner.named_children()).get("encoder")
    return None if encoder is None else encoder.trunk


def finish(folder: RunFolder, learner: Learner, words: Mapping[str, str], statistics: Mapping[str, Any], step: int, data: Any) -> None:
    """Write model.safetensors (`words`: its metadata), encoder.safetensors, the status and report.html, each complete or absent."""
    hidden = folder.path / f".model.safetensors.{os.getpid()}"
    try:
        tensors.write(hidden, {name: tensor.detach().cpu().contiguous() for name, tensor in learner.state_dict().items()}, words)
        os.replace(hidden, folder.path / "model.safetensors")
    finally:
        hidden.unlink(missing_ok=True)
    trunk = trunk_of(learner)
    if trunk is not None:
        save_encoder(folder.path / "encoder.safetensors", trunk, statistics)
    folder.status("finished", step)
    write_report(folder)
    here, there = shlex.quote(str(folder.path)), shlex.quote(data) if isinstance(data, str) else "DATA"
    lines = [f"finished: {folder.path} (open report.html in it)"]
    if trunk is not None:
        lines += [
            f"  unmask evaluate knn {here} LABELLED      # are its features useful? --random measures the untrained network beside it",
            f"  unmask reconstruct {here} {there} --out grid.png      # what it imagines behind the mask",
            f"  unmask export {here} --to timm --out {here}-timm      # for timm.create_model",
        ]
    for line in lines:
        print(line, flush=True)
        folder.log(line)


def write_report(folder: RunFolder) -> None:
    """report.html; where it cannot be drawn, one line says why and the run is finished all the same."""
    try:
        from unmask.visualize.report import write

        write([folder.path])
    except Exception as error:  # a missing package, a full disk: the run is finished all the same
        line = f"warning: no report.html, {type(error).__name__}: {error}"
        print(line, flush=True)
        folder.log(line)
