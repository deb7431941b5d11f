"""The laws of training: gradients, one graph, saving, a loss that falls."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
import torch._dynamo.testing
from safetensors.torch import load_file

from unmask.testing.cases import Case, steps_of, write


def check_gradients(case: Case) -> None:
    """The loss is one finite number, the sum of its parts where it has some; every trainable parameter gets a gradient and every frozen one none."""
    learner = case.learner().train()
    losses = learner(case.x, noise=case.noise(learner))
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values()), f"losses are single finite numbers: {losses}"
    parts = [part.detach().float() for name, part in losses.items() if name != "loss"]
    assert not parts or torch.stack(parts).sum().isclose(losses["loss"].detach().float(), rtol=1e-4, atol=1e-5), f"the parts are not the loss: {losses}"
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
    steps_of(learner, case, range(2))
    with tempfile.TemporaryDirectory() as folder:
        write(learner, Path(folder) / "model.safetensors")
        again.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    old, new = steps_of(learner, case, range(2, 4)), steps_of(again, case, range(2, 4))
    assert torch.equal(old, new), f"after loading, the next losses are {new.tolist()}, not {old.tolist()}: is some state no buffer?"


def check_learning(case: Case, steps: int = 20) -> None:
    """A few steps on one batch make its loss smaller, under a mask that was not trained on."""
    learner = case.learner()
    noise = case.noise(learner, 10**6)

    def loss() -> float:  # of a copy: some learners move centres while they look; at one place of the run: weights of terms may grow
        trial = copy.deepcopy(learner).eval()
        trial.after_step(steps / 100)
        return trial(case.x, noise=noise)["loss"].item()

    before, _, after = loss(), steps_of(learner, case, range(steps)), loss()
    assert after < before, f"the loss went from {before:.4f} to {after:.4f} in {steps} steps"
