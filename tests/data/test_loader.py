"""The stream of batches: each sample once an epoch, the same at any worker count, from any step, in any process."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from unmask.data import loader
from unmask.data.loader import Pictures
from unmask.data.sampler import Order, Stream, share
from unmask.data.sources import Source, open_source
from unmask.data.statistics import Format, survey
from unmask.errors import Failed, Refused
from unmask.settings import Views


class Some(Source):
    """Coloured pictures of which some cannot be read."""

    def __init__(self, length, bad=()):
        from unmask.data.quarantine import BadSample

        self.length, self.bad, self.error = length, set(bad), BadSample

    def __len__(self):
        return self.length

    def name(self, index):
        return f"sample {index}"

    def raw(self, index):
        if index in self.bad:
            raise self.error("broken")
        return np.random.default_rng(index).integers(0, 255, (12 + index % 5, 14, 3), np.uint8)


FORM = Format(3, (0,) * 3, (255,) * 3, (0.5,) * 3, (0.25,) * 3)


def pictures(length=37, bad=(), **more):
    return Pictures(Some(length, bad), FORM, Views(), (8, 8), **({"seed": 3, "max_bad_share": 0.5} | more))


def equal(one, two):
    one, two = list(one), list(two)
    assert one and len(one) == len(two)
    for a, b in zip(one, two):
        assert a.keys() == b.keys() and a["bad"] == b["bad"]
        assert all(torch.equal(a[name], b[name]) for name in ("images", "flip", "index"))


def test_each_sample_once_an_epoch_and_nothing_dropped():
    order = Order(37, 0)
    for epoch in range(3):
        assert sorted(order(epoch * 37 + place) for place in range(37)) == list(range(37))
    assert [order(place) for place in range(37)] != [order(37 + place) for place in range(37)]
    stream = [index for batch in Stream(order, 8, 0, 37) for _, index in batch]
    assert [stream.count(index) for index in range(37)] == [8] * 37


def test_resume_starts_at_any_step():
    whole = list(pictures().batches(8, 0, 12))
    equal(whole[7:], pictures().batches(8, 7, 5))


def test_a_batch_longer_than_the_set():
    (batch,) = pictures(5).batches(16, 0, 1)
    assert np.bincount(batch["index"]).tolist() in ([3, 3, 3, 3, 4], [3, 3, 3, 4, 3], [3, 3, 4, 3, 3], [3, 4, 3, 3, 3], [4, 3, 3, 3, 3])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    equal(pictures(bad=(3, 9)).batches(8, 2, 9), pictures(bad=(3, 9)).batches(8, 2, 9, workers=workers))


def test_small_shared_memory_changes_nothing(monkeypatch):
    plain = list(pictures().batches(8, 0, 4))
    monkeypatch.setattr(loader, "_shared_memory", lambda: 10)
    equal(plain, pictures().batches(8, 0, 4, workers=2))


def test_parts_and_processes_make_up_the_same_batch():
    (whole,) = pictures().batches(24, 5, 1)
    parts = [list(pictures().batches(24, 5, 1, accumulate=3, rank=rank, world=2)) for rank in range(2)]
    images = torch.cat([parts[rank][part]["images"] for part in range(3) for rank in range(2)])
    assert torch.equal(images, whole["images"])
    with pytest.raises(Refused, match="batch_size 10 cannot be split into 4"):
        share(10, 2, 2)


def test_seed_and_epoch_change_crops():
    first, second = (list(pictures(8, seed=seed).batches(8, 0, 2)) for seed in (1, 2))
    assert not torch.equal(first[0]["images"], second[0]["images"])
    by_index = [dict(zip(batch["index"].tolist(), batch["images"])) for batch in first]
    assert not any(torch.equal(by_index[0][index], by_index[1][index]) for index in range(8))


def test_flips_are_half():
    flips = torch.cat([batch["flip"] for batch in pictures(64).batches(64, 0, 20)])
    assert flips.dtype == torch.bool and 0.45 < flips.float().mean() < 0.55


def test_bad_samples_are_replaced_named_and_counted(tmp_path):
    some = pictures(40, bad=(3, 9), quarantine=tmp_path / "quarantine.jsonl")
    batches = list(some.batches(8, 0, 15))
    indices = torch.cat([batch["index"] for batch in batches])
    assert not {3, 9} & set(indices.tolist()) and len(indices) == 120
    assert {name for batch in batches for name, _ in batch["bad"]} == {"sample 3", "sample 9"}
    assert len(some.quarantine) == 2 and len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2


def test_the_share_is_judged_after_one_epoch_or_256():
    steps = 0
    with pytest.raises(Failed, match=r"2 of 40 samples cannot be read, more than max_bad_share 0\.04"):
        for _ in pictures(40, bad=(3, 9), max_bad_share=0.04).batches(8, 0, 100):
            steps += 1
    assert steps == 4
    list(pictures(40, bad=(3, 9), max_bad_share=0.05).batches(8, 0, 100))
    seen = 0
    with pytest.raises(Failed, match="max_bad_share"):
        for batch in pictures(5000, bad=range(0, 5000, 4), max_bad_share=0.1).batches(32, 0, 100):
            seen += len(batch["index"])
    assert seen == 256 - 32
    for count, most in ((40, 0.04), (600, 0.1)):
        with pytest.raises(Failed, match="cannot be read, more than max_bad_share"):
            pictures(count, max_bad_share=most).judge(count // 8, count)
    pictures(600, max_bad_share=0.1).judge(8, 16)  # of a few pictures, a bad one more says nothing
    looked = list(pictures(600, bad=range(0, 600, 8), max_bad_share=0.1).still_batches(32))
    assert sum(len(x) for x, _, _ in looked) == 525, "who looks on while a run trains is not who ends it"
    with pytest.raises(Failed, match="in a row"):
        list(pictures(40, bad=range(40)).batches(8, 0, 3, workers=1))


def test_workers_leave_signals_to_the_main_process():
    class Telling(Some):
        def raw(self, index):
            ignored = [signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGINT, signal.SIGUSR1)]
            return np.full((8, 8, 3), 255 * all(ignored), np.uint8)

    (batch,) = Pictures(Telling(8), FORM, Views(), (8, 8)).batches(8, 0, 1, workers=1)
    assert (batch["images"] == 255).all()


def test_workers_end_with_the_iterator():
    import multiprocessing
    import time

    stream = pictures(500).batches(8, 0, 1000, workers=2)
    next(stream)
    assert len(multiprocessing.active_children()) >= 2
    began = time.time()
    stream.close()
    del stream
    while multiprocessing.active_children() and time.time() - began < 5:
        time.sleep(0.05)
    assert not multiprocessing.active_children() and time.time() - began < 4


@pytest.mark.parametrize("broken", ["raise RuntimeError('in the step')", "os.kill(0, signal.SIGTERM); next(stream); next(stream); raise SystemExit(75)"])
def test_a_run_that_breaks_off_does_not_wait_for_its_workers(broken):
    code = (
        "import os, signal, numpy as np; from unmask.data.loader import Pictures; from unmask.data.sources import open_source\n"
        "from unmask.data.statistics import Format; from unmask.settings import Views\n"
        "source = open_source(np.zeros((50, 8, 8, 3), np.uint8)); form = Format(3, (0,) * 3, (255,) * 3, (0.5,) * 3, (0.25,) * 3)\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "stream = Pictures(source, form, Views(), (8, 8)).batches(8, 0, 1000, workers=2); next(stream)\n" + broken
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, start_new_session=True)
    assert ended.returncode == (1 if "Runtime" in broken else 75), ended.stderr


def test_finish_and_still():
    some = pictures(10, bad=(4,))
    batch = next(some.batches(8, 0, 1))
    x = some.finish(batch, "cpu")
    assert x.shape == (8, 3, 8, 8) and x.dtype == torch.float32 and x.is_contiguous()
    assert some.still(range(10)).shape == (9, 3, 8, 8) and some.still([1, 2], (6, 12)).shape == (2, 3, 6, 12)
    found = list(some.still_batches(4))
    assert [name for _, _, names in found for name in names] == [f"sample {index}" for index in range(10) if index != 4]
    for workers in (0, 2):
        again = list(some.still_batches(4, workers=workers, indices=[5, 4, 3]))
        assert again[0][1] is None and again[0][2] == ["sample 5", "sample 3"] and torch.equal(again[0][0], some.still([5, 3]))
    source = open_source(np.zeros((4, 8, 8, 3), np.uint8), labels=["b", "a", "b", "a"])
    _, labels, _ = next(Pictures(source, FORM, Views(), (8, 8)).still_batches(3))
    assert labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("shape, size", [((20, 13, 24, 24), (16, 16)), ((20, 64, 160), (64, 160)), ((20, 30, 30, 3), (96, 32))])
def test_any_shape_and_depth_flows(shape, size):
    array = (np.random.default_rng(0).normal(size=shape) * 300 + 3000).astype(np.uint16)
    source = open_source(array)
    some = Pictures(source, survey(source), Views(), size)
    x = some.finish(next(some.batches(8, 0, 1)), "cpu")
    assert x.shape == (8, some.format.in_chans, *size) and abs(x.mean()) < 0.5 and 0.3 < x.std() < 1.5


def test_read_only_arrays_make_no_noise(tmp_path, recwarn):
    np.save(tmp_path / "x.npy", np.zeros((8, 8, 8, 3), np.uint8))
    source = open_source(str(tmp_path / "x.npy"))
    list(Pictures(source, FORM, Views(), (8, 8)).batches(4, 0, 4))
    assert not [warning for warning in recwarn if "writ" in str(warning.message)]


@pytest.mark.data
@pytest.mark.parametrize("name, size", [("cifar10-train.parquet", (32, 32)), ("imagenette224.tar", (64, 64))])
def test_real_pictures_at_two_workers(shared_data, name, size):
    source = open_source(str(shared_data / name))
    some = Pictures(source, survey(source), Views(), size)
    equal(some.batches(32, 3, 4), some.batches(32, 3, 4, workers=2))
    x = torch.cat([some.finish(batch, "cpu") for batch in some.batches(64, 0, 4)])
    assert x.mean().abs() < 0.2 and 0.8 < x.std() < 1.2
