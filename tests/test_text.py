"""Captions beside pictures: the sigmoid loss against big_vision's numbers, words, towers of our own and of Hugging Face's."""

import math

import pytest
import torch
from golden_files import names
from torch.testing import assert_close

from unmask import contrast
from unmask.contrast import sigmoid_pairs, unit
from unmask.errors import Refused
from unmask.testing import case_of, check_gradients, check_saving, pictures
from unmask.text import Foreign, TextTransformer, Words, learn_words, reader_of, words_of

CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@pytest.mark.golden
@pytest.mark.parametrize("place", ["init", "shifted"])
@pytest.mark.parametrize("name", names("siglip", "output.init.sigmoid_loss"))
def test_loss_and_gradients_equal_the_official_code(golden, name, place):
    tensors, metadata = golden(name)
    assert tensors["input.init.t"].item() == pytest.approx(math.log(metadata["config"]["temperature_init"])) and tensors["input.init.b"] == -10
    given = {key: tensors[f"input.{key}"].clone().requires_grad_() for key in ("image_features", "text_features", f"{place}.t", f"{place}.b")}
    loss = sigmoid_pairs(*given.values())
    assert_close(loss, tensors[f"output.{place}.sigmoid_loss"], **CLOSE)
    loss.backward()
    for key, value in given.items():
        assert_close(value.grad, tensors[f"grad.{place}.{key.rpartition('.')[2]}"], **CLOSE)
    assert_close(unit(given["image_features"]), tensors["output.zimg"], **CLOSE)
    assert_close(unit(given["text_features"]), tensors["output.ztxt"], **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("siglip", "output.init.sigmoid_loss"))
def test_two_processes_share_the_loss_as_the_official_code_does(golden, name, monkeypatch):
    tensors, _ = golden(name)
    b, found = int(tensors["input.two_rank_local_batch"]), []
    monkeypatch.setattr(contrast, "gathered", lambda rows: unit(tensors["input.text_features"]))
    for rank in range(2):
        monkeypatch.setattr(contrast, "own_rows", lambda rows, rank=rank: torch.arange(b) + rank * b)
        own = slice(rank * b, (rank + 1) * b)
        found.append(sigmoid_pairs(tensors["input.image_features"][own], tensors["input.text_features"][own], tensors["input.shifted.t"], tensors["input.shifted.b"]))
    assert_close(torch.stack(found), tensors["output.two_rank_losses"], **CLOSE)
    assert_close(torch.stack(found).mean(), tensors["output.shifted.sigmoid_loss"], **CLOSE)


def test_the_loss_is_a_question_for_each_pair():
    """An independent form: minus the log of the chance of the right answer, one pair after another."""
    images, texts = (torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    t, bias, total = 1.3, -2.0, 0.0
    for i in range(5):
        for j in range(5):
            cosine = torch.dot(images[i], texts[j]) / images[i].norm() / texts[j].norm()
            yes = 1 / (1 + math.exp(-(math.exp(t) * cosine + bias)))
            total -= math.log(yes if i == j else 1 - yes)
    assert sigmoid_pairs(images, texts, torch.tensor(t), torch.tensor(bias)).item() == pytest.approx(total / 5, rel=1e-5)


def test_words_are_those_that_come_twice_in_the_order_of_their_counts():
    said = ["A dog runs, a dog!", "the Dog's tail", "a cat", "犬と猫", "犬"]
    assert words_of(said[0]) == ["a", "dog", "runs", "a", "dog"] and words_of(said[1]) == ["the", "dog's", "tail"] and words_of(said[3]) == ["犬", "と", "猫"]
    assert learn_words(said) == ["a", "dog", "犬"] and learn_words(said, most=1) == ["a"]
    assert learn_words(["one", "two"]) == ["one", "two"], "few captions keep all their words"
    ids = Words(learn_words(said), 3)(["a dog and a cat", "", "cat"])
    assert ids.tolist() == [[1, 2, 0], [0, -1, -1], [0, -1, -1]]


def test_what_stands_behind_the_end_means_nothing():
    tower = TextTransformer(5, 6, 32, 2, 2).eval()
    short, long = torch.tensor([[1, 4, -1, -1, -1, -1]]), torch.tensor([[1, 4, -1, -1, -1, -1], [1, 2, 3, 4, 5, 0]])
    assert tower(short).shape == (1, 32)
    assert_close(tower(short), tower(long)[:1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(tower(short), tower(short.flip(1).roll(2, 1))), "order counts"


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folders as transformers writes them: a network of texts alone, and one of pictures and texts."""
    transformers = pytest.importorskip("transformers")
    found = {}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat"]
    text = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 8}
    clip = {"text_config": text | {"eos_token_id": 3}, "vision_config": text | {"image_size": 8, "patch_size": 4}, "projection_dim": 12}
    for kind, config in {"bert": transformers.BertConfig(**text), "clip": transformers.CLIPConfig(**clip)}.items():
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(words))
        transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
        found[kind] = str(folder)
    return found


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_a_tower_of_hugging_face_is_frozen_and_reads_as_it_does_alone(towers, kind):
    from transformers import AutoModel

    tower, ids = Foreign(towers[kind]), reader_of(towers[kind], (), 8)(["a dog", "a"])
    assert tower.width == {"bert": 16, "clip": 12}[kind] and not list(tower.parameters()) and list(tower.state_dict()) == ["digest"]
    alone, words = AutoModel.from_pretrained(towers[kind]).eval(), {"input_ids": ids[:1, :4], "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    assert ids[:, 0].tolist() == [2, 2] and ids[0, 3:].tolist() == [3, -1, -1, -1, -1] and ids[1, 2:].tolist() == [3, -1, -1, -1, -1, -1]
    with torch.no_grad():
        said = alone(**words).last_hidden_state.mean(1) if kind == "bert" else alone.get_text_features(**words)
    assert_close(tower(ids)[:1], said if isinstance(said, torch.Tensor) else said.pooler_output, rtol=1e-4, atol=1e-6)


def test_a_learner_over_a_tower_of_hugging_face_keeps_the_laws_and_another_tower_is_refused(towers, tmp_path):
    from unmask.methods.modern_mae import ModernMAE

    method = ModernMAE(text=towers["bert"], text_length=8, embedding=16)
    case = case_of(method, {"images": pictures(4), "text": reader_of(towers["bert"], (), 8)(["a dog", "a cat", "dog", "cat a"])}, model="vit_small_plus_patch16_dinov3")
    check_gradients(case)
    check_saving(case)
    other = Foreign(towers["clip"])
    with pytest.raises(Refused, match="its weights have changed"):
        other.load_state_dict(Foreign(towers["bert"]).state_dict())
    with pytest.raises(Refused, match="no text tower"):
        Foreign(str(tmp_path))
