"""Checkpoints that are complete or absent, written beside the loop, read without unpickling.

A checkpoint is a folder `step-00000100` with model.safetensors, optimizer.safetensors and state.json (step, checksums).
It is written under a hidden name, synced, then renamed; it is renamed again before it is deleted. So a kill at any moment
leaves only complete folders under their names, and hidden leftovers that the next start sweeps away.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.errors import Failed, Refused
from unmask.run import tensors
from unmask.settings import FORMAT

PARTS = ("model", "optimizer")


class Checkpoint(NamedTuple):
    """What a complete checkpoint holds, read and verified."""

    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors named `parameter/quantity`; its learning rates are functions of the step."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {f"{names[p]}/{key}": value for p, state in optimizer.state.items() for key, value in state.items() if isinstance(value, Tensor)}


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, flat: Mapping[str, Tensor]) -> None:
    """Put what `optimizer_tensors` gave back into the optimiser; what it held before is gone."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    quantities: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        name, _, quantity = key.rpartition("/")
        quantities.setdefault(name, {})[quantity] = value
    state = {i: quantities[names[parameter]] for i, parameter in enumerate(order) if names[parameter] in quantities}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Writer:
    """Writes checkpoints in one thread, at most one at a time, from buffers that are kept for the run.

    `save` copies the tensors (the only part that the loop waits for) and returns. An error of the thread, such as a full
    disk, is raised by the next `save` or `join`, as one line.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self.folder, self.keep = folder, keep
        self._buffers: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        sweep(folder)

    def save(self, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Begin to write the checkpoint of `step`; `metadata` goes into model.safetensors."""
        self.join()
        for part, now in zip(PARTS, (model, optimizer)):
            self._copy(self._buffers[part], now)
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        row = {"format": FORMAT, "step": step} | dict(state)
        self._thread = threading.Thread(target=self._write, args=(step, row, dict(metadata)), name="checkpoint", daemon=True)
        self._thread.start()

    @staticmethod
    def _copy(buffers: dict[str, Tensor], now: Mapping[str, Tensor]) -> None:
        for name in buffers.keys() - now.keys():  # an optimiser that was emptied
            del buffers[name]
        for name, tensor in now.items():
            if name not in buffers:
                pinned = tensor.device.type == "cuda"
                buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            buffers[name].copy_(tensor.detach(), non_blocking=True)

    def join(self) -> None:
        """Wait for the write in flight, and raise what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            said = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
            raise Failed(f"a checkpoint could not be written to {self.folder}: {said}; the complete ones before it are kept")

    def _write(self, step: int, state: dict[str, Any], metadata: dict[str, str]) -> None:
        try:
            write(self.folder, step, self._buffers, state, metadata)
            for old in complete(self.folder)[: -self.keep]:
                remove(old)
        except BaseException as error:  # carried to the loop, which raises it
            self._error = error


def write(folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], metadata: Mapping[str, str]) -> Path:
    """Write one checkpoint, complete or not at all; its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{step:08d}"
    hidden, final = folder / f".{name}.writing", folder / name
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        hidden.mkdir()
        sums = {}
        for part in PARTS:
            words = {"format": str(FORMAT)} | (dict(metadata) if part == "model" else {})
            sums[part] = tensors.write(hidden / f"{part}.safetensors", parts[part], words)
        with open(hidden / "state.json", "w", encoding="utf-8") as file:
            json.dump(dict(state) | {"checksums": sums}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        synced(hidden)
        if final.exists():  # the same step again, after a resume from before it
            remove(final)
        os.rename(hidden, final)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)  # gives a full disk its room back
        raise
    point(folder, name)
    synced(folder)
    return final


def point(folder: Path, name: str) -> None:
    """Have `last` name the newest checkpoint: a link, or a text file where the disk knows no links. Readers do not depend on it."""
    fresh = folder / ".last"
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(name, target_is_directory=True)
    except OSError:
        fresh.write_text(name)
    os.replace(fresh, folder / "last")


def synced(folder: Path) -> None:
    """Have the disk hold the names in a folder; where folders cannot be opened (Windows) there is nothing to do."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit()), key=lambda path: int(path.name[5:]))


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: first its name, so that a kill leaves no half of it."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.deleted")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(checkpoint, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what a killed process left half done."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def read(checkpoint: Path) -> Checkpoint:
    """A checkpoint, verified; ValueError says what is damaged."""
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if state["format"] > FORMAT:
            raise Refused(f"{checkpoint} has format {state['format']}, this version reads up to {FORMAT}: update unmask")
        for part in PARTS:
            if tensors.checksum(checkpoint / f"{part}.safetensors") != state["checksums"][part]:
                raise ValueError(f"{part}.safetensors is not what was written")
        model, optimizer = (load_file(checkpoint / f"{part}.safetensors") for part in PARTS)
    except FileNotFoundError as error:
        raise ValueError(f"{Path(error.filename).name} is missing") from None
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return Checkpoint(state, model, optimizer)


def newest(folder: Path, before: float = math.inf) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of a step under `before` that is whole, or None, and a line for each damaged one that was passed over."""
    said: list[str] = []
    for path in reversed([path for path in complete(folder) if int(path.name[5:]) < before]):
        try:
            return read(path), said
        except ValueError as error:
            said.append(f"warning: {path} is damaged ({error}); the one before it is used")
    return None, said
