"""MoCo v3 against the official code's numbers: queries, keys, loss, gradients, batch norms, the average, places, initial values, schedules."""

import math

import pytest
import timm
import torch
from golden_files import check_gradients, names
from torch.testing import assert_close

from unmask.contrast import BatchNorm, summary
from unmask.methods.mocov3 import MoCoV3
from unmask.optim.groups import parameter_groups
from unmask.optim.schedule import warmup_cosine
from unmask.patches import row_first, sincos
from unmask.testing import SMALL, pictures

OFFICIAL = "facebookresearch/moco-v3@"
CLOSE = {"rtol": 1e-4, "atol": 5e-5}  # batch norm over six samples
ROWS = (
    ("base_encoder.head.", "objectives.contrast.projector."),
    ("base_encoder.", "encoder.trunk."),
    ("momentum_encoder.head.", "objectives.contrast.teacher_projector."),
    ("momentum_encoder.", "objectives.contrast.teacher.trunk."),
    ("predictor.", "objectives.contrast.predictor."),
)


def under(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def ours(official):
    return {next(mine + key.removeprefix(theirs) for theirs, mine in ROWS if key.startswith(theirs)): value for key, value in official.items()}


def learner_of(tensors, config):
    words = {"img_size": config["img_size"], "patch_size": config["patch"], "embed_dim": config["dim"], "depth": config["depth"], "num_heads": config["heads"]}
    trunk = timm.create_model("vit_base_patch16_224", **words, num_classes=0, dynamic_img_size=True)
    learner = MoCoV3(config["T"], config["m"], config["m"], config["mlp_dim"], config["out_dim"], config["stop_grad_conv1"]).build(trunk)
    learner.load_state_dict(ours(under(tensors, "weights.")))  # strict
    return learner.train()


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mocov3", "output.q1", OFFICIAL))
def test_loss_gradients_and_what_follows_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner = learner_of(tensors, config)
    contrast, x = learner.objectives["contrast"], torch.cat([tensors["input.view1"], tensors["input.view2"]])
    trained = {key for key, value in learner.named_parameters() if value.requires_grad}
    assert trained == set(ours(dict.fromkeys(config["optimised"])))
    kept = []
    for part in (contrast.predictor, contrast.teacher_projector):
        part.register_forward_hook(lambda module, inputs, output: kept.append(output))
    learner.after_step(0.3)  # theirs moves the average before the keys, which is after the step before
    loss = learner({"global": x})["loss"]
    for output, said in zip(("q1", "q2", "k1", "k2"), kept, strict=True):
        assert_close(said, tensors[f"output.{output}"], **CLOSE)
    assert_close(loss, tensors["output.loss"], rtol=1e-5, atol=1e-5)
    assert_close(loss, tensors["output.loss_q1k2"] + tensors["output.loss_q2k1"], rtol=1e-5, atol=1e-5)
    loss.backward()
    check_gradients(learner, ours(under(tensors, "grad.")), tolerance=1e-4)
    state = learner.state_dict()
    for key, value in ours(under(tensors, "output.after.")).items():
        assert_close(state[key], value, **CLOSE)
    assert_close(summary(learner.encoder(tensors["input.view1"])), tensors["output.features_view1"], **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mocov3_small", "output.pos_embed", OFFICIAL))
def test_places_initial_values_and_schedules(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    places = row_first(sincos(tuple(config["grid"]), config["dim"]))
    assert_close(places, tensors["output.pos_embed"][0, 1:], rtol=0, atol=1e-6)  # of other shapes than squares theirs takes rows for columns
    learner = MoCoV3(hidden=16, out=8).build("vit_tiny_patch16_224", (64, 64), width=config["init_dim"], depth=config["init_depth"], heads=4)
    state, largest = learner.encoder.trunk.state_dict(), math.sqrt(6 / (2 * config["init_dim"]))
    for key, (mean, std, least, most) in ((key, law.tolist()) for key, law in under(tensors, "law.init.").items()):
        if key.startswith("head.") or key not in state or key == "pos_embed":
            continue
        drawn = state[key]
        assert drawn.mean().item() == pytest.approx(mean, abs=5 * std / drawn.numel() ** 0.5 + 1e-9), key
        assert drawn.std().item() == pytest.approx(std, rel=0.3 if "cls" in key else 0.03, abs=1e-9), key
        if "cls" not in key:
            assert drawn.max().item() == pytest.approx(most, rel=0.02, abs=1e-9) and drawn.min().item() == pytest.approx(least, rel=0.02, abs=1e-9), key
    assert state["blocks.0.attn.qkv.weight"].abs().max().item() == pytest.approx(largest, rel=0.01)
    assert_close(learner.objectives["contrast"].teacher.trunk.state_dict(), state)
    for i, (rate, momentum) in enumerate(zip(tensors["output.lr"].tolist(), tensors["output.momentum"].tolist())):
        progress, warm = i / 5 / config["epochs"], 5 * config["warmup_epochs"]
        assert warmup_cosine(i, 5 * config["epochs"], warm, config["lr"], 0.0) == pytest.approx(rate, rel=1e-5)
        assert learner.objectives["contrast"].momentum.at(progress, torch.ones(())) == pytest.approx(momentum, rel=1e-6)


def test_everything_decays_and_the_patch_embedding_is_frozen():
    learner = MoCoV3(hidden=16, out=8).build(**SMALL, img_size=(32, 32))
    groups, factors = parameter_groups(learner, MoCoV3.paper)
    assert [group["weight_decay"] for group in groups] == [0.1] and factors == [None]
    assert not learner.encoder.trunk.patch_embed.proj.weight.requires_grad
    assert MoCoV3(hidden=16, out=8, freeze_patches=False).build(**SMALL, img_size=(32, 32)).encoder.trunk.patch_embed.proj.weight.requires_grad


def test_the_teacher_begins_where_the_encoder_begins():
    learner = MoCoV3(hidden=16, out=8).build(**SMALL, img_size=(32, 32))
    with torch.no_grad():
        for weight in learner.encoder.trunk.parameters():
            weight.add_(1.0)  # as --init does
    learner.begin()
    assert_close(learner.objectives["contrast"].teacher.trunk.state_dict(), learner.encoder.trunk.state_dict())


def test_our_batch_norm_alone_is_torchs():
    torch.manual_seed(0)
    ours, theirs, x = BatchNorm(5), torch.nn.BatchNorm1d(5), torch.randn(8, 5)
    assert_close(ours(x), theirs(x))
    assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("model", ["vit_medium_patch16_gap_256", "swin_tiny_patch4_window7_224", "beit_base_patch16_224"])
def test_networks_without_a_class_token_are_pooled(model):
    size = {"img_size": (64, 64)} if "swin" in model else {"img_size": (32, 32), "depth": 2}
    learner = MoCoV3(hidden=16, out=8).build(model, **size)
    assert learner({"global": pictures(4, 3, size["img_size"])})["loss"].isfinite()
