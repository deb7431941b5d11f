"""The laws as functions, for parts of your own: each returns nothing, or raises an AssertionError that says what is wrong.

    def test_my_method(): unmask.testing.check_method(MyMethod())

`check_method` runs every law of a method; `check_masking` and `check_target` are the contracts of its parts. All sizes
are tiny: a law takes about a second on one core, that of two processes ten.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo.testing
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unmask import seeds
from unmask.decoders import Decoder
from unmask.encoders.adapter import Adapter
from unmask.mask import Mask
from unmask.masking import Masking
from unmask.model import Learner, Signal, first
from unmask.patches import patchify, unpatchify
from unmask.settings import Ratio
from unmask.targets.target import Target

SMALL = {"model": "vit_tiny_patch16_224", "patch_size": 8, "width": 48, "depth": 2, "heads": 3}  # what laws build


class Case(NamedTuple):
    """A method at a small size: what builds its learner, a batch, and how many samples the batch holds."""

    build: Callable[[], Learner]
    x: Signal
    samples: int

    def learner(self, seed: int = 0) -> Learner:
        """A fresh learner with initial values of this seed; the generators of the caller stay where they are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def noise(self, learner: Learner, place: int = 0) -> Tensor | None:
        """The uniform numbers of one step, as the training loop draws them."""
        draws = learner.draws(self.x)
        return seeds.uniform((self.samples, draws), 0, "testing", place) if draws else None


def pictures(count: int = 4, in_chans: int = 3, img_size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    """Smooth random pictures (B, C, H, W), about normalised: something can be learned about their hidden parts."""
    coarse = seeds.uniform((count, in_chans, 4, 4), seed, "pictures") * 4 - 2
    return nn.functional.interpolate(coarse, size=img_size, mode="bicubic", align_corners=False)


def case_of(method: Any, x: Signal | None = None, samples: int | None = None, **build: Any) -> Case:
    """The case of a method, an object with `build(model=, img_size=, in_chans=, …)`; `build`: what differs from `SMALL`.

    Without `x` it looks at four pictures. Where `x` holds several views of a sample, `samples` says how many samples.
    """
    build = {**SMALL, "img_size": (32, 32), "in_chans": 3, **build}
    x = pictures(4, build["in_chans"], build["img_size"]) if x is None else x
    return Case(functools.partial(method.build, **build), x, samples or len(first(x)))


def check_method(method: Any, x: Signal | None = None, samples: int | None = None, processes: bool = True, **build: Any) -> None:
    """Every law of a method; without `processes` all but the slow one (see `case_of` for the rest)."""
    case = case_of(method, x, samples, **build)
    for law in (check_leak, check_gradients, check_graph, check_saving, check_learning):
        law(case)
    if processes:
        check_processes({type(method).__name__: case})


def check_leak(case: Case) -> None:
    """THE LEAK LAW: changing the masked pixels moves neither features nor prediction by one bit.

    Of a network that looks back (`"causal"`), masked pixels from a place on, and answers about the places up to it. Watched is all that the learner's encoder answers when it is given a mask, and all that decoders answer.
    """
    learner = case.learner().eval()
    encoder, noise = dict(learner.named_children()).get("encoder"), case.noise(learner)
    assert encoder is not None, "the law looks at `learner.encoder`, and there is none"
    masks, before = _answers(learner, encoder, case.x, noise, None)
    assert masks or learner.draw_mask(case.x, noise) is None, "a mask is drawn, but the encoder is never given one"
    if not masks:
        return
    mask, patches = masks[0], patchify(first(case.x), encoder.patch)
    each = len(mask.masked_ids) // len(patches)  # masks a picture
    looks_back = isinstance(encoder, Adapter) and encoder.hides == "causal"  # hidden are later places: changed from `back` on
    back = mask.masked_ids.amax(1, keepdim=True) * 3 // 4 if looks_back else None  # (B, 1)
    for k in range(each):
        hidden = mask.map[k::each].unsqueeze(-1)  # (B, N, 1)
        assert hidden.any(), "the mask hides nothing"
        if back is not None:
            hidden = hidden & (torch.arange(hidden.shape[1]) >= back).unsqueeze(-1)
        other = 20 * seeds.uniform(patches.shape, 0, "testing leak") - 10
        changed = unpatchify(torch.where(hidden, other, patches), mask.grid, encoder.patch)
        x = {**case.x, next(iter(case.x)): changed} if isinstance(case.x, dict) else changed
        _, after = _answers(learner, encoder, x, noise, mask)
        assert len(before) == len(after)
        for old, new in zip(before, after):
            if back is not None:
                old, new = (_until(back, answer, mask) for answer in (old, new))
            same = len(old) != len(mask.masked_ids) or torch.equal(old[k::each], new[k::each])
            assert same, f"LEAK: an answer moves by {(old[k::each] - new[k::each]).abs().max():.2g} when only masked pixels change"


def _until(back: Tensor, answer: Tensor, mask: Mask) -> Tensor:
    """`answer` with what it says about places after `back` (B, 1) left out."""
    if answer.shape[1] == mask.masked_ids.shape[1]:
        return torch.where((mask.masked_ids <= back).unsqueeze(-1), answer, 0)
    return torch.where((torch.arange(answer.shape[1]) <= back).unsqueeze(-1), answer, 0) if answer.shape[1] == math.prod(mask.grid) else answer


def _answers(learner: Learner, encoder: nn.Module, x: Signal, noise: Tensor | None, mask: Mask | None) -> tuple[list[Mask], list[Tensor]]:
    masks: list[Mask] = []
    answers: list[Tensor] = []

    def listen(module, args, kwargs, output):
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Mask)]
        if given:
            masks.extend(given)
            answers.extend(_tensors(output))

    with contextlib.ExitStack() as stack, torch.no_grad():
        for part in (encoder, *(part for part in learner.modules() if isinstance(part, Decoder))):
            stack.callback(part.register_forward_hook(listen, with_kwargs=True).remove)
        learner(x, noise=noise, mask=mask)
    return masks, answers


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, tuple | list) else []


def check_gradients(case: Case) -> None:
    """The loss is one finite number; every trainable parameter gets a gradient and every frozen one none."""
    learner = case.learner().train()
    losses = learner(case.x, noise=case.noise(learner))
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values()), f"losses are single finite numbers: {losses}"
    losses["loss"].backward()
    names = dict(learner.named_parameters())
    idle = [name for name, value in names.items() if value.requires_grad and (value.grad is None or not value.grad.any())]
    assert not idle, f"trainable, but no gradient arrives (freeze or leave them out): {idle}"
    assert any(value.requires_grad for value in names.values()), "nothing is trainable"


def check_graph(case: Case, progress: tuple[float, ...] = (0.1, 0.5, 0.9), graphs: int = 1) -> None:
    """Given its mask, the whole step is one compiled graph, with the loss of the plain one, and stays it as the run goes on.

    `graphs`: how many are allowed over these places of the run; two where counts move (the second has them as variables).
    """
    learner, counter = case.learner().train(), torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(learner, backend=counter, fullgraph=True)
    for place, when in enumerate(progress):
        learner.before_step(when, when)
        noise = case.noise(learner, place)
        how = {"noise": noise, "mask": learner.draw_mask(case.x, noise)}
        plain = copy.deepcopy(learner)(case.x, **how)["loss"]
        torch.testing.assert_close(compiled(case.x, **how)["loss"], plain, rtol=1e-5, atol=1e-6)
        learner.after_step(when)
    torch._dynamo.reset()
    assert counter.frame_count <= graphs, f"{counter.frame_count} graphs were compiled where {graphs} should do"


def check_saving(case: Case) -> None:
    """Save, load into a fresh learner: the next losses are the same to the last bit, so nothing that learns is left out."""
    learner, again = case.learner(), case.learner(seed=1)
    _steps(learner, case, range(2))
    with tempfile.TemporaryDirectory() as folder:
        _write(learner, Path(folder) / "model.safetensors")
        again.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    old, new = _steps(learner, case, range(2, 4)), _steps(again, case, range(2, 4))
    assert torch.equal(old, new), f"after loading, the next losses are {new.tolist()}, not {old.tolist()}: is some state no buffer?"


def check_learning(case: Case, steps: int = 20) -> None:
    """A few steps on one batch make its loss smaller, under a mask that was not trained on."""
    learner = case.learner()
    noise = case.noise(learner, 10**6)

    def loss() -> float:  # of a copy: some learners move centres while they look; at one place of the run: weights of terms may grow
        trial = copy.deepcopy(learner).eval()
        trial.after_step(steps / 100)
        return trial(case.x, noise=noise)["loss"].item()

    before, _, after = loss(), _steps(learner, case, range(steps)), loss()
    assert after < before, f"the loss went from {before:.4f} to {after:.4f} in {steps} steps"


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
            end = {"losses": _steps(alone, case, range(steps), torch.optim.SGD)} | alone.state_dict()
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
        losses = _steps(DistributedDataParallel(learner), case, range(steps), torch.optim.SGD, x, rows)
        torch.distributed.all_reduce(losses)
        if rank == 0:
            _write(learner, Path(folder) / f"{name}.safetensors", losses=losses / 2)
    torch.distributed.destroy_process_group()


def _steps(
    learner: nn.Module, case: Case, steps: range, optimizer: type = torch.optim.AdamW, x: Signal | None = None, rows: Tensor | None = None
) -> Tensor:
    """The losses (steps,) of a few steps of training; `learner` may be wrapped for processes, and `x` the part of this one."""
    inner, losses = learner.module if isinstance(learner, DistributedDataParallel) else learner, []
    rate = 1e-3 if optimizer is torch.optim.AdamW else 0.05  # no decay: weights that get no gradient stay
    descent = optimizer([value for value in learner.train().parameters() if value.requires_grad], lr=rate, weight_decay=0)
    with torch.random.fork_rng(devices=[]):
        for step in steps:
            seeds.reseed(0, "testing dropout", step)
            inner.before_step(step / 100, seeds.dice(0, "testing step", step).random())
            loss = learner(case.x if x is None else x, noise=case.noise(inner, step), rows=rows)["loss"]
            descent.zero_grad()
            loss.backward()
            descent.step()
            inner.after_step((step + 1) / 100)
            losses.append(loss.detach())
    return torch.stack(losses)


def _write(learner: nn.Module, file: Path, **more: Tensor) -> None:
    save_file({name: value.contiguous().clone() for name, value in learner.state_dict().items()} | more, file)


def check_masking(strategy: Masking, grid: tuple[int, ...] = (8, 8), rows: int = 32, partition: bool = True, alone: bool = True) -> None:
    """A strategy is a pure function of its noise; its lists are sound, equally long, and their lengths come from few values.

    `partition`: every patch is seen or predicted, never both. `alone`: a row of the mask depends on its row of noise only
    (not so where sizes are drawn once a batch).
    """
    noise, N, before = seeds.uniform((rows, strategy.draws(grid)), 0, "testing masks"), math.prod(grid), torch.random.get_rng_state()
    mask, again = strategy(grid, noise), strategy(grid, noise.clone())
    assert torch.equal(before, torch.random.get_rng_state()), "the strategy draws numbers of its own: use the noise"
    assert torch.equal(mask.visible_ids, again.visible_ids) and torch.equal(mask.masked_ids, again.masked_ids), "same noise, other mask"
    for ids in (mask.visible_ids, mask.masked_ids):
        assert ids.dtype == torch.int64 and ids.dim() == 2 and len(ids) == rows and 0 < ids.shape[1] <= N
        assert ids.min() >= 0 and ids.max() < N
    assert all(row.unique().numel() == row.numel() for row in mask.visible_ids), "a patch is seen twice"
    if mask.weight is not None:
        assert mask.weight.shape == mask.masked_ids.shape and (mask.weight >= 0).all() and mask.weight.isfinite().all()
    if partition:
        every = torch.cat([mask.visible_ids, mask.masked_ids], dim=1).sort(dim=1).values
        assert torch.equal(every, torch.arange(N).expand(rows, -1)), "not every patch is in exactly one list"
    if alone:
        some = torch.arange(rows - 1, -1, -3)
        assert torch.equal(strategy(grid, noise[some]).masked_ids, mask.rows(some).masked_ids), "a row depends on other rows"
    lengths = set()
    for place in range(64):
        strategy.prepare(place / 64, seeds.dice(0, "testing ratio", place).random())
        moved = strategy(grid, noise[:2])
        lengths.add((moved.visible_ids.shape[1], moved.masked_ids.shape[1]))
    assert not alone or len(lengths) <= Ratio.LEVELS, f"{len(lengths)} pairs of lengths over a run: each may want a graph of its own"


def check_target(target: Target, x: Tensor, patches: int, loss: Callable[[Tensor, Tensor], Tensor] | None = None, answers: int | None = None) -> None:
    """A target is a plain function of each picture, without gradient; with `loss`, its baseline is the best constant answer.

    `patches`: how many patches `x` has. `answers`: how many numbers an answer has, where that is not the truth's last size.
    """
    target = target.eval()
    truth = target(x.clone().requires_grad_())
    assert truth.shape[:2] == (len(x), patches), f"{tuple(truth.shape)} is not ({len(x)}, {patches}, …)"
    assert not truth.requires_grad, "a target carries no gradient"
    assert torch.equal(truth, target(x)), "the same pictures, another truth"
    torch.testing.assert_close(target(x[:1]), truth[:1], msg=lambda said: f"the truth of a picture depends on the others: {said}")
    if loss is None:
        return
    said = target.baseline(truth, loss).item()
    begin = torch.zeros(answers) if answers else truth.flatten(0, -2).float().mean(0)
    constant = begin.requires_grad_()
    descent = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12)

    def found() -> Tensor:
        descent.zero_grad()
        value = loss(constant.expand(*truth.shape[:2], -1), truth).mean()
        value.backward()
        return value

    descent.step(found)
    best = found().item()
    assert said <= best + 1e-4 * abs(best), f"baseline() says {said:.5f}, but a constant answer reaches {best:.5f}"
    assert said >= best - 0.01 * abs(best), f"baseline() says {said:.5f}, and no constant answer reaches that: {best:.5f}"
