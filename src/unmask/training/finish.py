"""What every finished run leaves: the whole learner, the report, and what to do next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from unmask.model import Learner
from unmask.run import tensors
from unmask.run.folder import RunFolder


def trunk_of(encoder: Any) -> Any:
    """The timm model of a learner's encoder; None where there is none (tokenizers)."""
    return None if encoder is None else encoder.trunk


def conclude(folder: RunFolder, learner: Learner, words: Mapping[str, str], step: int, next_steps: Sequence[str]) -> None:
    """Write model.safetensors (`words`: its metadata), the status and report.html, each complete or absent; say what to do next."""
    hidden = folder.path / f".model.safetensors.{os.getpid()}"
    try:
        tensors.write(hidden, {name: tensor.detach().cpu().contiguous() for name, tensor in learner.state_dict().items()}, words)
        os.replace(hidden, folder.path / "model.safetensors")
    finally:
        hidden.unlink(missing_ok=True)
    folder.status("finished", step)
    write_report(folder)
    for line in [f"finished: {folder.path} (open report.html in it)", *(f"  {said}" for said in next_steps)]:
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
