"""Codes as a target: a code for each patch, whatever its size, in the tokenizer's own numbers; its baseline is their entropy."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.losses import cross_entropy
from unmask.methods.dvae import DVAE
from unmask.targets.codes import Codes, described, open_tokenizer
from unmask.tokenizers.dvae import DVAE as Network


def network(**words):
    torch.manual_seed(0)
    return Network(3, hidden=4, blocks=1, vocabulary=6, first=8, **words)


def renamed_back(key):
    stem, _, last = key.rpartition(".")
    return f"{stem}.{'w' if last == 'weight' else 'b'}"


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_a_code_for_each_patch_at_any_size_of_patch(patch):
    target, x = Codes(network(), (patch, patch), 3), torch.rand(2, 3, 32, 48)
    assert target(x).shape == (2, 32 * 48 // patch**2) and target(x).dtype == torch.int64
    if patch == 8:  # the tokenizer's own squares
        assert torch.equal(target(x), target.tokenizer.codes(x).flatten(1))
    again = target.pictures(target(x), (32 // patch, 48 // patch))
    assert again.shape == x.shape


def test_pictures_are_shown_in_the_tokenizers_own_numbers():
    target, pixels = Codes(network(), (8, 8), 3), torch.rand(2, 3, 32, 32)
    codes = target(pixels)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    target.sees(mean.tolist(), std.tolist())
    assert torch.equal(target((pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)), codes)


def test_the_baseline_is_the_entropy_of_the_codes():
    target = Codes(network(), (8, 8), 3)
    assert_close(target.baseline(torch.tensor([[0, 0, 1, 1]]), cross_entropy), torch.tensor(math.log(2)))
    assert target.baseline(torch.zeros(1, 9, dtype=torch.int64), cross_entropy) == 0


def test_a_tokenizer_opens_from_a_learners_file_and_from_dalles_own(tmp_path):
    learner = DVAE(vocabulary=16, hidden=4, blocks=1, stride=4).build(img_size=(32, 32))
    save_file(learner.state_dict(), tmp_path / "model.safetensors", {"tokenizer": described(learner.tokenizer)})
    x = torch.rand(1, 3, 16, 16)
    for word in (tmp_path, tmp_path / "model.safetensors"):
        assert_close(open_tokenizer(str(word), 3, "beit").logits(x), learner.tokenizer.logits(x))
    whole = network()
    official = {renamed_back(key): value.clone() for key, value in whole.encoder.state_dict().items()}
    save_file(official, tmp_path / "encoder.safetensors")
    torch.save(official, tmp_path / "encoder.pt")
    for name in ("encoder.safetensors", "encoder.pt"):
        opened = open_tokenizer(str(tmp_path / name), 3, "beit")
        assert_close(opened.logits(x), whole.logits(x))
        assert opened.pictures(torch.zeros(1, 6, 2, 2)) is None, "published without its decoder it paints nothing"
    both = {f"{part}.{renamed_back(key)}": value.clone() for part in ("encoder", "decoder") for key, value in whole.get_submodule(part).state_dict().items()}
    save_file(both, tmp_path / "both.safetensors")
    shares = torch.rand(1, 6, 2, 2)
    assert_close(open_tokenizer(str(tmp_path / "both.safetensors"), 3, "beit").pictures(shares), whole.pictures(shares))


def test_what_is_no_tokenizer_is_refused(tmp_path):
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    for word, said in ((None, "--method.tokenizer RUN"), (str(tmp_path / "no"), "no tokenizer"), (str(tmp_path / "other.safetensors"), "is no tokenizer")):
        with pytest.raises(Refused, match=said):
            open_tokenizer(word, 3, "beit")


def test_another_tokenizer_is_refused_when_a_run_goes_on():
    mine, other = Codes(network(), (8, 8), 3), Codes(Network(3, hidden=4, blocks=1, vocabulary=6, first=8), (8, 8), 3)
    mine.load_state_dict(Codes(network(), (8, 8), 3).state_dict())
    with pytest.raises(Refused, match="not the one that this run began with"):
        other.load_state_dict(mine.state_dict())
