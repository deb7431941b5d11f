"""BEiT v2's second stage against the official code's numbers, with the codes of the golden file in place of a tokenizer's."""

import json

import pytest
import torch
from golden_files import check_gradients, check_law, mask_of, names
from torch.testing import assert_close
from vocabularies import vocabulary

from unmask import seeds
from unmask.errors import Refused
from unmask.interchange.relative import from_beit as ours
from unmask.interchange.relative import to_beit
from unmask.methods.beit2 import BEiT2
from unmask.model import Step
from unmask.optim.groups import parameter_groups
from unmask.targets.target import Target
from unmask.testing import SMALL, check_method

OFFICIAL = "microsoft/unilm@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


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


def learner_at(config, width=None):
    """The network of a golden file; its feed-forward width is not the usual one, so timm is told."""
    import timm

    words = {"img_size": tuple(config["img_size"]), "patch_size": config["patch_size"], "embed_dim": width or config["embed_dim"], "depth": config["depth"]}
    words |= {"num_heads": config["num_heads"], "mlp_ratio": config["mlp_ratio"], "num_classes": 0, "init_values": config["init_values"]}
    words |= {"use_fc_norm": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
    method = BEiT2(tokenizer=vocabulary(codes=config["vocab_size"]), drop_path=0, early=config["early_layers"], aggregation=config["head_layers"])
    return method.build(timm.create_model("beit_base_patch16_224", **words))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit2", "output.logits_branch", OFFICIAL))
def test_both_answers_losses_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner = learner_at(config)
    predict = learner.objectives["codes"]
    predict.target = Given(tensors["input.token_ids"])
    learner.load_state_dict(ours(part(tensors, "weights.")))  # strict
    grid = [side // config["patch_size"] for side in config["img_size"]]
    x, mask = tensors["input.x"], mask_of(tensors["input.mask"].unflatten(1, grid))
    kept, features = mask.weight > 0, learner.encoder(x, mask)
    again = predict.also.aggregated(features, learner.encoder)
    for found, end in ((features, "main"), (again, "branch")):
        assert_close(torch.cat([found.prefix, found.patches], 1), tensors[f"output.features_{end}"], **CLOSE)
        assert_close(predict.decoder(found, mask)[kept], tensors[f"output.logits_{end}"], **CLOSE)
    assert torch.equal(mask.masked(tensors["input.token_ids"])[kept], tensors["output.labels"])
    step = Step(features, mask, x, tensors["input.token_ids"], learner.encoder, predict.decoder, torch.zeros(()))
    assert_close(predict.also(step), tensors["output.loss_branch"], rtol=1e-6, atol=1e-6)
    loss = learner(x, mask=mask)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    check_gradients(learner, ours(part(tensors, "grad.")))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit2_init", "law.pretrain", OFFICIAL))
def test_initial_values_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    config, width = golden("beit2")[1]["config"], int(metadata["config"]["model"].split("width ")[1])
    order = json.loads(metadata["pretrain_names"])
    torch.manual_seed(0)

    def draw():
        state = learner_at(config, width).state_dict()
        return {theirs: state[mine] for theirs, mine in zip(order, ours(dict.fromkeys(order)))}

    check_law(tensors["law.pretrain_mean_std_absmax_count"], order, draw)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("beit2_mask", "law.", OFFICIAL))
def test_blocks_are_repaired_to_the_count_as_the_official_law_says(golden, name):
    tensors, metadata = golden(name)
    draws = 8000
    for said in metadata["config"]["configs"]:
        rows, columns, budget = said["height"], said["width"], said["budget"]
        method = BEiT2(tokenizer=vocabulary(), mask_ratio=budget / (rows * columns))
        masking = method.build(**SMALL, img_size=(8 * rows, 8 * columns)).masking
        maps = masking((rows, columns), seeds.uniform((draws, masking.draws((rows, columns))), 2, "law")).map
        grid, tag = maps.unflatten(1, (rows, columns)).float(), f"law.{rows}x{columns}_n{budget}_min{said['min_block']}_max{said['max_block']}"
        assert bool((maps.sum(1) == budget).all())
        share = tensors[f"{tag}.frequency"]
        assert (grid.mean(0) - share).abs().max() < 4.6 * (share * (1 - share) * (1 / draws + 1 / metadata["config"]["draws"])).sqrt().max()
        both = torch.stack([(grid[:, 1:] * grid[:, :-1]).mean(), (grid[:, :, 1:] * grid[:, :, :-1]).mean()])
        assert (both - tensors[f"{tag}.neighbour_both_masked"]).abs().max() < 0.01


def test_laws():
    method = BEiT2(tokenizer=vocabulary(), drop_path=0)
    check_method(method, processes=False)
    check_method(method, processes=False, model="beit_base_patch16_224")


def test_the_papers_numbers():
    learner = BEiT2(tokenizer=vocabulary()).build("beit_base_patch16_224", width=48, heads=3)
    assert learner.encoder.layers == (8, 11) and len(learner.objectives["codes"].also.blocks) == 2
    chances = [block.drop_path1.drop_prob for block in learner.objectives["codes"].also.blocks]
    assert chances == pytest.approx([0.1 * 9 / 11, 0.1 * 10 / 11]), "the schedule goes on from the ninth block"
    assert learner.masking.exact and round(196 * learner.masking.now) == 75 and learner.pooling == "cls"
    assert BEiT2.paper.base_lr * BEiT2.paper.batch_size / 256 == pytest.approx(1.5e-3)


def test_without_aggregation_it_is_beit_with_another_vocabulary():
    learner = BEiT2(tokenizer=vocabulary(), aggregation=0).build(**SMALL, img_size=(32, 32))
    assert learner.objectives["codes"].also is None and learner.pooling == "avg"
    assert not any(key.startswith("cls_pt_layers") for key in to_beit(learner.state_dict()))


def test_extra_blocks_decay_as_others_and_are_thrown_away():
    learner = BEiT2(tokenizer=vocabulary()).build(**SMALL | {"depth": 4}, img_size=(32, 32))
    groups, _ = parameter_groups(learner, BEiT2.paper)
    decay = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
    assert decay[id(learner.objectives["codes"].also.blocks[0].attn.qkv.weight)] == 0.05
    assert not any("also" in key for key in learner.encoder.trunk.state_dict())


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match=r"--method\.tokenizer RUN"):
        BEiT2().build(**SMALL, img_size=(32, 32))
    for model in ("swin_tiny_patch4_window7_224", "vit_base_patch16_siglip_224"):
        with pytest.raises(Refused, match="class token"):
            BEiT2(tokenizer=vocabulary()).build(model, (224, 224))
