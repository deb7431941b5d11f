"""The leak law: what is masked is not seen."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from unmask import seeds
from unmask.decoders import Decoder
from unmask.encoders.adapter import Adapter
from unmask.mask import Mask
from unmask.model import Learner, Signal, first
from unmask.patches import patchify, unpatchify
from unmask.testing.cases import Case


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
