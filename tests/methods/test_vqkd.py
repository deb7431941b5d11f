"""VQ-KD as a learner: a step as the official code makes it, its laws, its teacher."""

import json

import pytest
import timm
import torch
from golden_files import check_gradients as gradients_equal
from golden_files import check_law, names
from safetensors.torch import save_file
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.interchange.tokenizers import from_vqkd, to_vqkd, vqkd_names
from unmask.methods import vqkd
from unmask.methods.vqkd import VQKD, Tokenizing
from unmask.optim.groups import parameter_groups
from unmask.targets.codes import described, open_tokenizer
from unmask.targets.target import Target
from unmask.testing import SMALL, Case, case_of, check_gradients, check_graph, check_learning, check_saving, pictures

OFFICIAL = "microsoft/unilm@"
METHOD = VQKD(teacher="random:vit_tiny_patch16_224", vocabulary=24, columns=8, decoder_depth=1)


class Given(Target):
    """The features of the golden file in place of a teacher's."""

    def __init__(self, features, width=0):
        super().__init__()
        self.features, self.width = features, width

    def forward(self, x):
        return self.features

    def baseline(self, truth, loss):
        return torch.zeros(())


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit2_vqkd", "output.to_quantizer", OFFICIAL))
def test_a_step_equals_the_official_code(golden, name):
    tensors, metadata = golden(name)
    network = from_vqkd(part(tensors, "weights."), metadata["config"]["num_heads"])
    learner = Tokenizing(network, Given(tensors["input.teacher_features"]), 1.0).train()
    found = learner(tensors["input.x"])
    assert_close(found["features"], tensors["output.loss_reconstruction"], rtol=1e-6, atol=1e-6)
    assert_close(found["commitment"], tensors["output.loss_commitment"], rtol=1e-6, atol=1e-6)
    assert_close(found["loss"], tensors["output.loss"], rtol=1e-6, atol=1e-6)
    found["loss"].backward()
    gradients_equal(network, vqkd_names(part(tensors, "grad.")), tolerance=2e-5)
    learner.after_step(0.5)
    assert_close(network.codebook.rows, tensors["output.codebook_after"], rtol=1e-5, atol=2e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit2_init", "law.vqkd", OFFICIAL))
def test_initial_values_follow_the_official_law(golden, name, monkeypatch):
    """Without its codebook, which the first pictures fill, and what its code only counts."""
    tensors, metadata = golden(name)
    config, width = golden("beit2_vqkd")[1]["config"], int(metadata["config"]["model"].split("width ")[1])
    order = json.loads(metadata["vqkd_names"])
    rows = [place for place, key in enumerate(order) if not key.startswith("quantize.")]
    words = {"img_size": config["img_size"], "patch_size": config["patch_size"], "embed_dim": width, "depth": config["depth"], "num_heads": config["num_heads"]}
    words |= {"mlp_ratio": config["mlp_ratio"], "num_classes": 0, "dynamic_img_size": True, "fc_norm": False}
    trunk = timm.create_model("vit_base_patch16_224", **words)
    trunk.unmask_kwargs = {"model": "vit_base_patch16_224", **words}
    monkeypatch.setattr(vqkd, "frozen", lambda *words: Given(None, config["teacher_dim"]))
    method = VQKD(vocabulary=config["n_code"], columns=config["code_dim"], decoder_depth=config["decoder_depth"])
    torch.manual_seed(0)
    side = (config["img_size"], config["img_size"])
    check_law(tensors["law.vqkd_mean_std_absmax_count"][rows], [order[row] for row in rows], lambda: state_of(method.build(trunk, side)))


def state_of(learner):
    return {key: value for key, value in to_vqkd(learner.tokenizer).items() if not key.startswith("quantize.")}


def case() -> Case:
    return case_of(METHOD, x=pictures(4))


def test_laws():
    """Nothing is masked, so the leak law does not apply; that of two processes stands in laws/test_methods.py."""
    for law in (check_gradients, check_graph, check_saving, check_learning):
        law(case())


def test_parts_of_a_batch_move_the_codebook_as_the_whole_does():
    whole, parts = case().learner().train(), case().learner().train()
    x = pictures(4)
    for learner, shares in ((whole, [x]), (parts, [x[:2], x[2:]])):
        learner.tokenizer.codebook.begun.fill_(True)
        for share in shares:
            learner(share)
        learner.after_step(0.5)
    assert_close(parts.tokenizer.codebook.rows, whole.tokenizer.codebook.rows)


def test_the_codebook_begins_with_its_first_pictures_and_only_while_training():
    learner = case().learner()
    before = learner.tokenizer.codebook.rows.clone()
    learner.eval()(pictures(4))
    assert torch.equal(learner.tokenizer.codebook.rows, before) and not learner.tokenizer.codebook.begun
    learner.train()(pictures(4))
    assert learner.tokenizer.codebook.begun and not torch.equal(learner.tokenizer.codebook.rows, before)
    begun = learner.tokenizer.codebook.rows.clone()
    learner(pictures(4))
    assert torch.equal(learner.tokenizer.codebook.rows, begun), "rows move after the step"
    learner.after_step(0.5)
    assert not torch.equal(learner.tokenizer.codebook.rows, begun)


def test_what_stands_beside_its_loss():
    """A decoder that sees nothing says the mean direction."""
    learner, x = case().learner(), pictures(4)
    truth = torch.nn.functional.normalize(learner.teacher(x), dim=-1)
    assert_close(learner.best_constant(x), 1 - truth.mean((0, 1)).norm(), rtol=1e-4, atol=1e-4)


def test_a_run_s_tokenizer_opens_as_a_target(tmp_path):
    learner = case().learner()
    state = {key: value.contiguous() for key, value in learner.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", {"tokenizer": described(learner.tokenizer)})
    opened, x = open_tokenizer(str(tmp_path), 3, "beit2"), torch.rand(2, 3, 32, 32)
    assert torch.equal(opened.codes(x), learner.eval().fits(x).argmax(1))
    torch.save({"model": to_vqkd(learner.tokenizer) | {"teacher.a": torch.ones(1), "loss.b": torch.ones(1)}}, tmp_path / "vqkd.pth")
    heads = opened.encoder.trunk.blocks[0].attn.num_heads
    assert torch.equal(from_vqkd(to_vqkd(learner.tokenizer), heads).codes(x), opened.codes(x))
    assert open_tokenizer(str(tmp_path / "vqkd.pth"), 3, "beit2").vocabulary == 24


def test_the_papers_numbers():
    assert (VQKD().vocabulary, VQKD().columns, VQKD().decoder_depth, VQKD().decay) == (8192, 32, 3, 0.99)
    assert VQKD.paper.base_lr * VQKD.paper.batch_size / 256 == pytest.approx(2e-4)
    learner = case().learner()
    groups, _ = parameter_groups(learner, VQKD.paper)
    decay = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
    assert decay[id(learner.tokenizer.encoder.trunk.cls_token)] == decay[id(learner.tokenizer.encoder.trunk.pos_embed)] == 0
    assert decay[id(learner.tokenizer.to_codes[0].weight)] == 1e-4


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match=r"needs a teacher: --teacher ENCODER"):
        VQKD().build(**SMALL, img_size=(32, 32))
    with pytest.raises(Refused, match="plain vision transformers"):
        METHOD.build("eva02_tiny_patch14_224", (28, 28))
