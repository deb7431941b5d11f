"""The pace: every part of a step is in it, what is measured along the way is counted, and nothing of the run is moved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from unmask.data.loader import Pictures
from unmask.data.sources import open_source
from unmask.data.statistics import Format
from unmask.methods.mae import MAE
from unmask.settings import Train, Views
from unmask.training import pace as room
from unmask.training.pace import Pace, every, fits, pace, stills, whole

TRAIN = Train(batch_size=64, steps=400, accelerator="cpu", precision="32-true")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    return Pictures(open_source(path), Format(3, (0,) * 3, (255,) * 3, (0.5,) * 3, (0.25,) * 3), Views(), (32, 32), 0)


@pytest.fixture(scope="module")
def learner():
    torch.manual_seed(0)
    return MAE(decoder_width=16, decoder_depth=1, decoder_heads=1).build("vit_tiny_patch16_224", (32, 32), 3, 8, width=24, depth=1, heads=2)


@pytest.mark.parametrize(("where", "calls", "times"), [("optimizer", 1, 1), ("backward", 1, 2), ("mask", 1, 2), ("finish", 1, 2), ("read", 32, 2)])
def test_every_part_of_a_step_is_in_it(where, calls, times, pictures, learner, monkeypatch):
    """By a clock that only this part moves, .2 s a trial of 32 pictures: twice that for 64, but moving the weights costs the same for any number."""
    places = {
        "optimizer": (torch.optim.AdamW, "step"),
        "backward": (torch.Tensor, "backward"),
        "mask": (type(learner), "draw_mask"),
        "finish": (Pictures, "finish"),
        "read": (type(pictures.source), "picture"),
    }
    owner, name = places[where]
    own, clock = getattr(owner, name), [0.0]

    def slow(*words, **more):
        clock[0] += 0.2 / calls
        return own(*words, **more)

    monkeypatch.setattr(owner, name, slow)
    monkeypatch.setattr(room.time, "perf_counter", lambda: clock[0])
    assert pace(learner, pictures, TRAIN, 0).step == pytest.approx(0.2 * times)


def test_it_moves_nothing(pictures, learner):
    weights = [weight.clone() for weight in learner.parameters()]
    found = pace(learner, pictures, TRAIN, 0)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(weights, learner.parameters()))
    assert found.step > 0 and found.look > 0 and found.memory == 0 and found.pictures == 32
    assert room.looking(torch.nn.Linear(2, 2), torch.zeros(1, 3, 4, 4)) == 0


def test_what_is_measured_along_the_way_is_counted():
    steps = Pace(1.0, 32, look=0.01)
    drawn = 11 * room.DRAWING
    assert stills(TRAIN) == int(0.02 * 400 * 64) and every(TRAIN) == 40
    assert whole(TRAIN, steps) == pytest.approx(400 + 11 * 0.01 * stills(TRAIN) + drawn)
    assert whole(TRAIN, replace(steps, look=0.0)) == pytest.approx(400 + drawn)
    odd = replace(TRAIN, steps=25, monitor_every=10)  # at 0, 10, 20 and the end
    assert whole(odd, steps) == pytest.approx(25 + 4 * (0.01 * 150 + room.DRAWING))
    assert stills(replace(TRAIN, steps=100_000)) == room.STILLS


@pytest.mark.parametrize("limit", [3.0, 60.0, 600.0, 36_000.0])
def test_the_most_steps_that_a_time_allows(limit):
    paced = Pace(0.5, 32, look=0.002)
    found = fits(replace(TRAIN, steps=None, time="1m"), paced, limit)
    assert found.time is None and (found.steps == 1 or whole(found, paced) <= limit)
    assert whole(replace(found, steps=found.steps + 1), paced) > limit
