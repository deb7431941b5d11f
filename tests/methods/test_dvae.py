"""The tokenizer as a learner: its schedules, its gradients, that it learns, saves and goes on."""

import pytest
import torch
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.methods.dvae import DVAE, eased
from unmask.testing import Case, case_of, check_gradients, check_learning, check_saving, pictures

SIZE = {"vocabulary": 32, "hidden": 8, "blocks": 1, "stride": 4}


def case(**words) -> Case:
    return case_of(DVAE(**SIZE | words), x=pictures(4), img_size=(32, 32))


def test_laws():
    """The leak law does not apply: nothing is masked; two processes equal one but for the Gumbel noise, which each draws (laws/test_methods.py)."""
    for law in (check_gradients, check_saving, check_learning):
        law(case())


def test_one_graph():
    from torch._dynamo.testing import CompileCounter

    learner, counter = case().learner().train(), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(learner, backend=counter, fullgraph=True)
    gumbel = torch.zeros(4, 32, 8, 8)
    for progress in (0.0, 0.1, 0.6):
        learner.before_step(progress, 0.5)
        assert_close(compiled(pictures(4), gumbel=gumbel)["loss"], learner(pictures(4), gumbel=gumbel)["loss"])
    torch._dynamo.reset()
    assert counter.frame_count == 1


def test_temperature_falls_and_the_divergence_counts_more_and_more():
    learner = case(anneal=0.5, kl_anneal=0.25).learner()
    said = []
    for progress in (0.0, 0.125, 0.25, 0.5, 1.0):
        learner.before_step(progress, 0.5)
        said.append((learner.temperature.item(), learner.weight.item()))
    assert [weight for _, weight in said] == pytest.approx([0, 3.3, 6.6, 6.6, 6.6])
    assert said[0][0] == 1 and said[3][0] == pytest.approx(1 / 16) == said[4][0]
    assert said[1][0] > said[2][0] > said[3][0] and eased(0.3, 0.0, 1.0, 2.0) == 2.0


def test_the_papers_numbers():
    method = DVAE()
    assert (method.vocabulary, method.temperature, method.temperature_end, method.kl_weight) == (8192, 1.0, 1 / 16, 6.6)
    with torch.device("meta"):
        assert sum(value.numel() for value in DVAE().build().tokenizer.encoder.parameters()) > 50e6
    assert DVAE.paper.base_lr * DVAE.paper.batch_size / 256 == pytest.approx(1e-4)


def test_its_loss_is_that_of_the_paper():
    """Both terms a number of the picture: the divergence of all places over all numbers of the picture."""
    learner = case().learner().eval()
    x, gumbel = pictures(2), torch.zeros(2, 32, 8, 8)
    learner.before_step(1.0, 0.5)
    losses = learner(x, gumbel=gumbel)
    from unmask.tokenizers.dvae import divergence

    total = divergence(learner.tokenizer.logits(learner.pixels(x))).sum() / x.numel()
    assert_close(losses["divergence"], 6.6 * total)
    assert_close(losses["loss"], losses["painting"] + losses["divergence"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="stride"):
        DVAE(stride=5)
    with pytest.raises(Refused, match="no multiple of the stride 8"):
        DVAE().build(img_size=(36, 32))
