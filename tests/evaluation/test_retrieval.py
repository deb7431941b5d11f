"""Recall and zero-shot classes against big_vision's numbers, and against small cases that are counted by hand."""

import pytest
import torch
from golden_files import names
from torch.testing import assert_close

from unmask.contrast import unit
from unmask.errors import Refused
from unmask.evaluation.retrieval import RANKS, WAYS, class_vectors, guessing, names_of, recalls


@pytest.mark.golden
@pytest.mark.parametrize("name", names("siglip", "output.ret."))
def test_recall_equals_the_official_code(golden, name):
    tensors, _ = golden(name)
    likeness = unit(tensors["input.ret.image_embeddings"]) @ unit(tensors["input.ret.text_embeddings"]).T
    row = recalls(likeness, tensors["input.ret.text_to_image_index"])
    for way in WAYS:
        for k in RANKS:
            assert row[way][f"recall@{k}"] == pytest.approx(100 * tensors[f"output.ret.{way}.recall{k}"].item(), abs=1e-3)
    assert row["mean_recall"] == pytest.approx(sum(sum(row[way].values()) for way in WAYS) / 6, abs=1e-3)
    assert row["interval"][0] < row["mean_recall"] < row["interval"][1]


@pytest.mark.golden
@pytest.mark.parametrize("name", names("siglip", "output.zs."))
def test_classes_by_their_prompts_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    order = tensors["input.zs.prompt_class"].argsort(stable=True)
    prompts = tensors["input.zs.prompt_embeddings"][order].unflatten(0, (metadata["config"]["classes"], -1))
    classes = class_vectors(prompts)
    assert_close(classes, tensors["output.zs.class_embeddings"], rtol=1e-5, atol=2e-6)
    found = (unit(tensors["input.zs.image_embeddings"]) @ classes.T).argmax(1)
    assert torch.equal(found, tensors["output.zs.prediction"])
    assert (found == tensors["input.zs.image_labels"]).float().mean() == tensors["output.zs.accuracy"]


def test_recall_of_a_case_that_is_counted_by_hand():
    """Three pictures with 2, 1 and 3 captions: the first finds its own first, the second never in one, the third second."""
    owner = torch.tensor([0, 0, 1, 2, 2, 2])
    likeness = torch.tensor([[9.0, 1, 2, 3, 4, 5], [9, 8, 1, 7, 6, 5], [9, 0, 0, 8, 0, 0]])
    row = recalls(likeness, owner)
    assert row["image_to_text"]["recall@1"] == pytest.approx(100 / 3, abs=0.01) and row["image_to_text"]["recall@5"] == pytest.approx(200 / 3, abs=0.01)
    best = [0, 1, 0, 2, 1, 0]  # of each caption; ties go to the first
    assert likeness.argmax(0).tolist() == best
    assert row["text_to_image"]["recall@1"] == pytest.approx(100 * sum(a == b for a, b in zip(best, owner.tolist())) / 6, abs=0.01)
    assert row["text_to_image"]["recall@5"] == 100


def test_what_guessing_reaches_is_what_random_order_reaches():
    counts, generator = torch.tensor([1.0, 5, 2, 4, 3, 5]), torch.Generator().manual_seed(0)
    owner = torch.repeat_interleave(torch.arange(6), counts.long())
    drawn = [recalls(torch.rand(6, 20, generator=generator), owner) for _ in range(60)]
    for (way, k), said in guessing(counts, 20).items():
        assert sum(row[way][f"recall@{k}"] for row in drawn) / len(drawn) == pytest.approx(said, abs=6), (way, k)


def test_classes_have_names(tmp_path):
    assert names_of(["golf_ball", "n01"], None) == ["golf ball", "n01"]
    file = tmp_path / "names.tsv"
    file.write_text("n01\ttench\nn02\tdog\n")
    assert names_of(["n02", "n01"], str(file)) == ["dog", "tench"]
    with pytest.raises(Refused, match="no line for n03"):
        names_of(["n03"], str(file))
    file.write_text("n01 tench\n")
    with pytest.raises(Refused, match="a class, a tab and its name"):
        names_of(["n01"], str(file))
