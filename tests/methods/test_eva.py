"""EVA and EVA-02 against the official code's numbers, over timm's networks; its teacher by the side."""

import math

import pytest
import timm
import torch
from golden_files import check_gradients, mask_of, names
from torch import nn
from torch.testing import assert_close

from unmask.decoders import Linear
from unmask.encoders.build import build
from unmask.encoders.initial import eva02_init
from unmask.errors import Refused
from unmask.methods.eva import EVA
from unmask.targets.target import Target
from unmask.testing import SMALL, pictures

OFFICIAL = "baaivision/EVA@"
CLOSE = {"rtol": 1e-5, "atol": 4e-6}
RANDOM = "random:vit_tiny_patch16_224"


class Given(Target):
    """The features of the golden file in place of a teacher's."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, x):
        return self.features

    def baseline(self, truth, loss):
        return truth.new_zeros(())


def ours(official: dict) -> dict:
    """The official names as ours and timm's; rotary tables are computed."""
    inner = {"mlp.w12.": "mlp.fc1.", "mlp.w1.": "mlp.fc1_g.", "mlp.w2.": "mlp.fc1_x.", "mlp.w3.": "mlp.fc2.", "mlp.ffn_ln.": "mlp.norm."}
    found = {}
    apart = any("q_proj" in key or "k_proj" in key for key in official)  # with q, k, v apart their biases belong to the layers
    inner |= {"attn.q_bias": "attn.q_proj.bias", "attn.v_bias": "attn.v_proj.bias"} if apart else {}
    for key, value in official.items():
        if "rope." in key:
            continue
        for theirs, name in inner.items():
            key = key.replace(theirs, name)
        table = {"lm_head.": "objectives.features.decoder.predict.", "mask_token": "encoder.mask_token"}
        row = next((theirs for theirs in table if key.startswith(theirs)), None)
        found["encoder.trunk." + key if row is None else table[row] + key[len(row) :]] = value
    return found


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_of(tensors, config):
    side = config["img_size"] // config["patch_size"]
    words = {"img_size": config["img_size"], "patch_size": config["patch_size"], "embed_dim": config["embed_dim"], "depth": config["depth"]}
    words |= {"num_heads": config["num_heads"], "mlp_ratio": config["mlp_ratio"], "use_fc_norm": False, "use_post_transformer_norm": True}
    words |= {"dynamic_img_size": True, "num_classes": 0}
    name = {"eva01": "eva_giant_patch14_224", "swiglu_subln": "eva02_base_patch14_224", "swiglu_packed": "eva02_tiny_patch14_224"}
    kind = "eva01" if config["family"] == "eva01" else config["ffn"]
    words |= {} if kind == "eva01" else {"ref_feat_shape": (side, side)}
    learner = EVA(teacher=RANDOM).build(timm.create_model(name[kind], **words))
    predict = learner.objectives["features"]
    predict.decoder, predict.target = Linear(config["embed_dim"], config["teacher_dim"]), Given(tensors["input.clip_features"])
    learner.load_state_dict(ours(part(tensors, "weights.")))  # strict
    return learner


@pytest.mark.golden
@pytest.mark.parametrize("name", names("eva", "output.features", OFFICIAL))
def test_features_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    learner = learner_of(tensors, metadata["config"])
    x, mask = tensors["input.image"], mask_of(tensors["input.mask"])
    found = learner.predict(x, mask, "features")
    assert_close(torch.cat([found["features"].prefix, found["features"].patches], 1), tensors["output.features"], **CLOSE)
    assert_close(found["prediction"][mask.weight > 0], tensors["output.pred"], **CLOSE)
    loss = learner(x, mask=mask)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    check_gradients(learner, ours(part(tensors, "grad.")))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("eva02_rope", "output.hd", OFFICIAL))
def test_rotary_tables_are_timms(golden, name):
    """timm's table, for the grid that was pre-trained on and for a larger one, squeezed into its range."""
    from timm.layers import RotaryEmbeddingCat

    tensors, metadata = golden(name)
    for entry in metadata["config"]["entries"]:
        width, trained, now = entry["head_dim"], entry["pt_seq_len"], entry["ft_seq_len"]
        prefix = f"hd{width}_pt{trained}_ft{now}."
        rope = RotaryEmbeddingCat(width, in_pixels=False, feat_shape=None, ref_feat_shape=(trained, trained))
        sin, cos = rope.get_embed(shape=(now, now)).tensor_split(2, dim=-1)
        rows = tensors[f"output.{prefix}rows"]
        assert_close(sin[rows], tensors[f"output.{prefix}sin"], rtol=0, atol=2e-6)
        assert_close(cos[rows], tensors[f"output.{prefix}cos"], rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------------------------ its own corners


def test_the_papers_numbers():
    with torch.device("meta"):
        encoder = build("eva02_base_patch14_224", masked="token")
    assert len(encoder.trunk.blocks) == 12 and round(256 * EVA().mask_ratio.first) == 105
    assert EVA.paper.base_lr * EVA.paper.batch_size / 256 == pytest.approx(1.5e-3)


def test_initial_values_of_the_second_paper():
    torch.manual_seed(0)
    encoder = build("eva02_base_patch14_224", (112, 112), 3, 14, masked="token", width=96, depth=4, heads=4)
    eva02_init(encoder)
    block, grown = encoder.trunk.blocks[2], math.sqrt(math.log(8))
    for layer, times in ((block.attn.q_proj, 1), (block.attn.v_proj, grown), (block.attn.proj, grown), (block.mlp.fc1_g, grown), (block.mlp.fc2, grown)):
        assert layer.weight.std().item() == pytest.approx(times * (2 / sum(layer.weight.shape)) ** 0.5, rel=0.05)
        assert layer.bias is None or not layer.bias.any()
    assert 0.0100 < encoder.trunk.pos_embed.std() < 0.0116 and encoder.trunk.pos_embed.abs().max() <= 0.02
    plain = build("eva02_tiny_patch14_224", (112, 112), 3, 14, width=96, depth=4, heads=4)
    eva02_init(plain)  # no inner norm: nothing grows
    assert plain.trunk.blocks[2].mlp.fc2.weight.std().item() == pytest.approx((2 / sum(plain.trunk.blocks[2].mlp.fc2.weight.shape)) ** 0.5, rel=0.05)


def test_without_a_teacher_it_is_refused():
    with pytest.raises(Refused, match=r"--method\.teacher ENCODER"):
        EVA().build(**SMALL, img_size=(32, 32))


def test_the_teacher_is_neither_trained_nor_saved():
    learner = EVA(teacher=RANDOM).build(**SMALL, img_size=(32, 32))
    target = learner.objectives["features"].target
    assert not [name for name, _ in learner.named_parameters() if "target" in name]
    assert {name.rpartition(".")[2] for name in learner.state_dict() if ".target." in name} == {"our_mean", "our_std", "digest"}
    assert target(pictures(2)).shape == (2, 16, 192) and not target.outside[0].training
    learner.train()
    assert not target.outside[0].training
    state = learner.state_dict() | {"objectives.features.target.digest": torch.tensor(1)}
    with pytest.raises(Refused, match="not the one that this run began with"):
        learner.load_state_dict(state)


def test_the_decoder_is_as_wide_as_the_teacher():
    learner = EVA(teacher=RANDOM).build(**SMALL, img_size=(32, 32))
    assert learner.objectives["features"].decoder.predict.out_features == 192
    assert isinstance(learner.objectives["features"].decoder.predict, nn.Linear)
