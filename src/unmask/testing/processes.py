"""Two processes end where one does."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from unmask.testing.cases import Case, steps_of, write


def check_processes(cases: Mapping[str, Case], steps: int = 2, tolerance: float = 1e-4) -> None:
    """Two processes (gloo, `find_unused_parameters=False`) with half of the batch each end where one with all of it does.

    Compared are the losses of all steps, and how far each weight and buffer moved (to the last bits that its values and the largest movement have); what hardly moves at
    all beside the others, as a bias in front of a batch norm does, moves by rounding, and is compared by their measure.
    The descent is plain: AdamW makes much of a gradient that is almost nothing. A case's `build` must be importable by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, args=(folder, dict(cases), steps), nprocs=2)
        for name, case in cases.items():
            alone, both = case.learner(), load_file(Path(folder) / f"{name}.safetensors")
            begin = {key: value.clone() for key, value in alone.state_dict().items()} | {"losses": torch.zeros(steps)}
            end = {"losses": steps_of(alone, case, range(steps), torch.optim.SGD)} | alone.state_dict()
            moves = {key: (value.double() - begin[key].double()).abs().max() for key, value in end.items()}
            most = max(moves[name] for name, weight in alone.named_parameters() if weight.requires_grad)
            for key, value in end.items():
                far, moved = (both[key].double() - value.double()).abs().max(), moves[key]
                bound = tolerance * (most if moved <= tolerance * most else moved) + 5e-6 * most + 1e-6 * value.double().abs().max()
                assert far <= bound, f"{name}: {key} of two processes is off by {far:.2g}: a count, or a contrast, of the own rows only?"


def _process(rank: int, folder: str, cases: dict[str, Case], steps: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    for name, case in cases.items():
        learner, half = case.learner(), case.samples // 2
        rows = torch.arange(rank * half, (rank + 1) * half)

        entries = case.x if isinstance(case.x, dict) else {"": case.x}
        x = {key: value.unflatten(0, (-1, case.samples))[:, rows].flatten(0, 1) for key, value in entries.items()}  # view-major
        x = x if isinstance(case.x, dict) else x[""]
        losses = steps_of(DistributedDataParallel(learner), case, range(steps), torch.optim.SGD, x, rows)
        torch.distributed.all_reduce(losses)
        if rank == 0:
            write(learner, Path(folder) / f"{name}.safetensors", losses=losses / 2)
    torch.distributed.destroy_process_group()
