"""BEiT's second stage against the official code's numbers, with the codes of the golden file in place of a tokenizer's."""

import json

import pytest
import torch
from golden_files import check_gradients, check_law, mask_of, names
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.interchange.relative import from_beit as ours
from unmask.methods.beit import BEiT
from unmask.methods.dvae import DVAE
from unmask.optim.groups import parameter_groups
from unmask.targets.codes import described
from unmask.targets.target import Target
from unmask.testing import SMALL, Case, case_of, check_method, pictures

OFFICIAL = "microsoft/unilm@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@pytest.fixture
def words(monkeypatch):
    """`words(37)` makes every BEiT predict that many codes of a small tokenizer."""
    from unmask.methods import beit
    from unmask.tokenizers.dvae import DVAE as Network

    def given(vocabulary):
        torch.manual_seed(0)
        network = Network(3, hidden=4, blocks=1, vocabulary=vocabulary, first=8)
        monkeypatch.setattr(beit, "open_tokenizer", lambda word, in_chans, method: network)

    return given


class Given(Target):
    def __init__(self, codes):
        super().__init__()
        self.codes = codes

    def forward(self, x):
        return self.codes

    def baseline(self, truth, loss):
        return torch.zeros(())


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_at(config, width=None, depth=None):
    sizes = {"width": width or config["embed_dim"], "depth": depth or config["depth"], "heads": config["num_heads"]}
    return BEiT(drop_path=0).build("beit_base_patch16_224", tuple(config["img_size"]), 3, config["patch_size"], **sizes)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit", "output.logits_all", OFFICIAL))
def test_logits_loss_and_gradients_equal_the_official_code(golden, name, words):
    tensors, metadata = golden(name)
    config = metadata["config"]
    words(config["vocab_size"])
    learner = learner_at(config)
    learner.objectives["codes"].target = Given(tensors["input.token_ids"])
    learner.load_state_dict(ours(part(tensors, "weights.")))  # strict
    grid = [side // config["patch_size"] for side in config["img_size"]]
    x, mask = tensors["input.x"], mask_of(tensors["input.mask"].unflatten(1, grid))
    found, kept = learner.predict(x, mask, "codes"), mask.weight > 0
    assert_close(torch.cat([found["features"].prefix, found["features"].patches], 1), tensors["output.features"], **CLOSE)
    assert_close(found["prediction"][kept], tensors["output.logits_masked"], **CLOSE)
    assert torch.equal(found["truth"][kept], tensors["output.labels"])
    right = (found["prediction"][kept].argmax(-1) == found["truth"][kept]).float().mean()
    assert_close(right, tensors["output.accuracy"])
    loss = learner(x, mask=mask)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    check_gradients(learner, ours(part(tensors, "grad.")))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit_init", "law.pretrain", OFFICIAL))
def test_initial_values_follow_the_official_law(golden, name, words):
    tensors, metadata = golden(name)
    config, width = golden("beit")[1]["config"], int(metadata["config"]["model"].split("width ")[1])
    order = json.loads(metadata["pretrain_names"])
    words(config["vocab_size"])
    torch.manual_seed(0)

    def draw():
        state = learner_at(config, width).state_dict()
        return {theirs: state[mine] for theirs, mine in zip(order, ours(dict.fromkeys(order)))}

    check_law(tensors["law.pretrain_mean_std_absmax_count"], order, draw)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit_optim", "output.pretrain_weight_decay", OFFICIAL))
def test_what_decays_is_what_decays_there(golden, name, words):
    tensors, metadata = golden(name)
    config = golden("beit")[1]["config"]
    words(config["vocab_size"])
    learner = learner_at(config, depth=metadata["config"]["depth"])
    groups, _ = parameter_groups(learner, BEiT.paper)
    decay = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
    order = json.loads(metadata["pretrain_names"])
    found = [decay[id(learner.get_parameter(mine))] for mine in ours(dict.fromkeys(order))]
    assert_close(torch.tensor(found), tensors["output.pretrain_weight_decay"].float())


def test_laws(words):
    words(8)
    check_method(BEiT(drop_path=0), processes=False)
    check_method(BEiT(drop_path=0), processes=False, model="beit_base_patch16_224")


def test_it_learns_the_words_of_a_tokenizer_from_a_run(tmp_path):
    """From file to learner: 16 codes of 4 pixels under patches of 8."""
    from safetensors.torch import save_file

    tokenizer = DVAE(vocabulary=16, hidden=4, blocks=1, stride=4).build(img_size=(32, 32))
    save_file(tokenizer.state_dict(), tmp_path / "model.safetensors", {"tokenizer": described(tokenizer.tokenizer)})
    case: Case = case_of(BEiT(tokenizer=str(tmp_path)))
    learner = case.learner()
    assert learner.objectives["codes"].decoder.predict.out_features == 16 and learner(pictures(4))["loss"].isfinite()
    assert not any("tokenizer" in key or ".outside" in key for key in learner.state_dict())


def test_without_a_tokenizer_it_is_refused():
    with pytest.raises(Refused, match=r"--method\.tokenizer RUN"):
        BEiT().build(**SMALL, img_size=(32, 32))
