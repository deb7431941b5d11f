"""The page of evidence is what the results say, and a method is called proven exactly where a result shows that it learns."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from unmask.methods import METHODS
from unmask.methods.statement import known

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def evidence():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import evidence

        yield evidence


def test_the_page_is_what_the_results_say():
    done = subprocess.run([sys.executable, BENCHMARKS / "evidence.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_what_its_results_show(evidence, method):
    assert vars(known(method))["standing"] == evidence.standing(evidence.results(), method)


def result(evidence, **figures):
    """A result with these (low, high) intervals by features and protocol."""
    rows = [{"features": name.partition("_")[0], "protocol": name.partition("_")[2], "top1": sum(ends) / 2, "interval": ends} for name, ends in figures.items()]
    return evidence.Result("x", {}, rows, {}, {}, 0.0)


def test_learning_is_above_the_random_encoder_beyond_both_intervals(evidence):
    assert result(evidence, trained_knn=(31, 33), random_knn=(28, 30)).learns
    assert not result(evidence, trained_knn=(29, 33), random_knn=(28, 30)).learns
    assert not result(evidence, trained_knn=(20, 21), random_knn=(28, 30)).learns
    assert result(evidence, trained_knn=(20, 21), random_knn=(28, 30), trained_linear=(44, 46), random_linear=(39, 41)).learns
    assert not result(evidence, trained_knn=(31, 33)).learns
    assert result(evidence, trained_knn=(20, 21), random_knn=(28, 30), **{"trained_finetune-10": (44, 46), "from scratch_finetune-10": (30, 32)}).learns
    assert not result(evidence, **{"trained_finetune-10": (31, 33), "from scratch_finetune-10": (30, 32)}).learns


def test_a_setting_that_makes_a_method_learn_is_named(evidence):
    def run(figures, question="", variant=""):
        entry = {"method": "data2vec", "variant": variant, "question": question, "data": "cifar10", "budget": "small", "seed": 0}
        return replace(result(evidence, **figures), entry=entry, loss={"steps": 100}, settings={"batch_size": 10})

    plain = {"trained_knn": (29, 31), "random_knn": (28, 30), "trained_linear": (40, 42), "random_linear": (39, 41)}
    better = plain | {"trained_knn": (34, 36)}
    asked = {"question": "what data2vec's teacher says", "variant": "instance"}
    assert evidence.standing([run(plain)], "data2vec").startswith("experimental: CIFAR-10")
    assert evidence.standing([run(plain), run(plain, **asked)], "data2vec").startswith("experimental: CIFAR-10")
    assert evidence.standing([run(plain), run(better, **asked)], "data2vec").startswith("experimental as published, kNN 30.0 (29.0) and linear 41.0 (40.0); proven with --method.norm instance: CIFAR-10")
    assert evidence.standing([run(better), run(better, **asked)], "data2vec").startswith("proven: CIFAR-10")
