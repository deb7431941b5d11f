"""data2vec (vision) against the official code's numbers: target, loss, gradients, a step of the student and of the teacher."""

import pytest
import timm
import torch
from golden_files import check_gradients, mask_of, names
from torch.testing import assert_close

from unmask import seeds
from unmask.methods.data2vec import Data2Vec
from unmask.optim.groups import parameter_groups
from unmask.targets.teacher import Momentum, Teacher
from unmask.testing import SMALL, pictures

OFFICIAL = "facebookresearch/data2vec_vision@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def student(official: dict) -> dict:
    """The official student's names as ours."""
    table = {"lm_head.": "objectives.features.decoder.predict.", "mask_token": "encoder.mask_token"}
    found = {}
    for key, value in official.items():
        if not key.endswith("relative_position_index"):
            row = next((theirs for theirs in table if key.startswith(theirs)), None)
            found["encoder.trunk." + key if row is None else table[row] + key[len(row) :]] = value
    return found


def teacher(official: dict) -> dict:
    """The official teacher's names as those of our copy, which has neither head nor mask token."""
    return {key: value for key, value in official.items() if not key.startswith(("lm_head.", "mask_token")) and not key.endswith("index")}


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_of(tensors, config):
    size = {"img_size": config["img_size"], "patch_size": config["patch_size"], "embed_dim": config["embed_dim"], "depth": config["depth"]}
    bias = {"use_fc_norm": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "init_values": 0.1}
    trunk = timm.create_model("beit_base_patch16_224", num_classes=0, num_heads=config["num_heads"], mlp_ratio=config["mlp_ratio"], **size, **bias)
    method = Data2Vec(top=len(config["target_layers"]), beta=config["l1_beta"], momentum=config["ema_decay"], drop_path=0, attention_dropout=0)
    learner = method.build(trunk)
    missing, unknown = learner.load_state_dict(student(part(tensors, "weights.student.")), strict=False)
    assert not unknown and all(".target." in key for key in missing)
    learner.objectives["features"].target.copy.trunk.load_state_dict(teacher(part(tensors, "weights.teacher.")))
    assert config["target_layers"] == list(learner.objectives["features"].target.copy.layers)
    return learner


@pytest.mark.golden
@pytest.mark.parametrize("name", names("data2vec", "output.teacher_layer0", OFFICIAL))
def test_target_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner = learner_of(tensors, config)
    x, mask = tensors["input.image"], mask_of(tensors["input.mask"])
    layers = learner.objectives["features"].target.copy(x).layers
    for i, layer in zip(config["target_layers"], layers, strict=True):
        assert_close(layer, tensors[f"output.teacher_layer{i}"], **CLOSE)
    found, kept = learner.predict(x, mask, "features"), mask.weight > 0
    assert_close(found["truth"][kept], tensors["output.target"], **CLOSE)
    assert_close(found["prediction"][kept], tensors["output.pred"], **CLOSE)
    loss = learner(x, mask=mask)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    check_gradients(learner, student(part(tensors, "grad.")))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("data2vec", "output.teacher_layer0", OFFICIAL))
def test_a_step_of_student_and_teacher_equals_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner = learner_of(tensors, config).train()
    groups, _ = parameter_groups(learner, Data2Vec.paper)
    optimizer = torch.optim.AdamW(groups, lr=config["lr"], betas=Data2Vec.paper.betas, eps=Data2Vec.paper.eps)
    learner(tensors["input.image"], mask=mask_of(tensors["input.mask"]))["loss"].backward()
    norm = torch.nn.utils.clip_grad_norm_([value for value in learner.parameters() if value.requires_grad], Data2Vec.paper.clip)
    assert_close(norm, tensors["output.grad_norm_before_clip"], rtol=1e-5, atol=1e-6)
    optimizer.step()
    learner.after_step(1 / 100)
    for key, value in student(part(tensors, "output.student_after_step.")).items():
        assert_close(learner.state_dict()[key], value, rtol=1e-5, atol=1e-5, msg=lambda said, key=key: f"{key}: {said}")
    after = learner.objectives["features"].target.copy.trunk.state_dict()
    for key, value in teacher(part(tensors, "output.teacher_after_ema.")).items():
        assert_close(after[key], value, rtol=1e-5, atol=2e-6, msg=lambda said, key=key: f"{key}: {said}")


@pytest.mark.golden
@pytest.mark.parametrize("name", names("data2vec_masklaw", "law.", OFFICIAL))
def test_blocks_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    said, draws = metadata["config"], 8000
    rows, columns = said["grid"]
    masking = Data2Vec(mask_ratio=said["num_mask"] / (rows * columns)).build(**SMALL | {"patch_size": 8}, img_size=(8 * rows, 8 * columns)).masking
    maps = masking((rows, columns), seeds.uniform((draws, masking.draws((rows, columns))), 2, "law")).map
    count, grid = maps.sum(1), maps.unflatten(1, (rows, columns)).float()
    assert count.max() <= said["num_mask"] and abs(count.float().mean() - tensors["law.count_mean"]) < 5 * tensors["law.count_std"] / draws**0.5
    histogram = torch.bincount(count, minlength=said["num_mask"] + 1) / draws
    assert (histogram.cumsum(0) - (tensors["law.count_histogram"] / tensors["law.count_histogram"].sum()).cumsum(0)).abs().max() < 0.02
    share = tensors["law.marginal"]
    assert (grid.mean(0) - share).abs().max() < 4.6 * (share * (1 - share) * (1 / draws + 1 / said["draws"])).sqrt().max()
    below = (grid[:, 1:] * grid[:, :-1]).sum() / grid[:, :-1].sum()
    assert abs(below - tensors["law.p_below_given_masked"]) < 0.01


# ------------------------------------------------------------------------------------------------------ its own corners


def test_the_papers_numbers():
    with torch.device("meta"):
        learner = Data2Vec().build()
    assert learner.objectives["features"].target.copy.layers == (6, 7, 8, 9, 10, 11)
    assert round(196 * learner.masking.now) == 120 and learner.encoder.trunk.blocks[0].attn.attn_drop.p == 0.05
    assert Data2Vec().build(**SMALL | {"depth": 6}, img_size=(32, 32)).objectives["features"].target.copy.layers == (3, 4, 5)


def test_the_teacher_is_never_trained_and_never_drops():
    learner = Data2Vec(drop_path=0.5, attention_dropout=0.5).build(**SMALL, img_size=(32, 32)).train()
    target = learner.objectives["features"].target
    assert not target.copy.training and not any(value.requires_grad for value in target.parameters())
    x = pictures(4)
    assert torch.equal(target(x), target(x)) and learner.notes() == [Teacher.note]


@pytest.mark.parametrize(
    ("momentum", "progress", "steps", "keep"),
    [
        (Momentum(0.9998, 0.9998), 0.5, 10, 0.9998),
        (Momentum(None), 0.5, 500_000, 0.9998),  # the paper's length gives the paper's number
        (Momentum(None), 0.5, 1000, 0.99),
        (Momentum(0.996, 1.0), 0.5, 10, 0.998),
        (Momentum(0.9, 1.0, until=0.25), 0.125, 10, 0.95),
        (Momentum(0.9, 1.0, until=0.25), 0.75, 10, 1.0),
    ],
)
def test_momentum(momentum, progress, steps, keep):
    assert float(momentum.at(progress, torch.tensor(float(steps)))) == pytest.approx(keep)


def test_the_length_of_the_run_is_learned_at_its_first_step():
    learner = Data2Vec().build(**SMALL, img_size=(32, 32))
    target = learner.objectives["features"].target
    before = target.copy.trunk.patch_embed.proj.weight.clone()
    learner.encoder.trunk.patch_embed.proj.weight.data.add_(1)
    learner.after_step(1 / 400)
    assert target.steps == 400 and learner.state_dict()["objectives.features.target.steps"] == 400
    assert_close(target.copy.trunk.patch_embed.proj.weight, before + 0.01)
    learner.after_step(2 / 400)
    assert target.steps == 400


def test_instance_norm_takes_away_what_the_whole_picture_shares():
    x = pictures(2)
    features = {}
    for norm in ("layer", "instance"):
        learner = Data2Vec(norm=norm).build(**SMALL, img_size=(32, 32))
        learner.begin()
        said = learner.objectives["features"].target(x)  # (B, N, D)
        features[norm] = (said.mean(1).square().mean() / said.square().mean()).item()
    assert features["instance"] < 0.1 < features["layer"]
