"""MAE-CT's heads against the official code's numbers: neighbours, loss, gradients, queue, the projector that follows; stages, layers and the command line."""

import pytest
import torch
from golden_files import names
from PIL import Image
from torch import nn
from torch.testing import assert_close

import unmask
from unmask.errors import Refused
from unmask.methods.mae_ct import MAECT, Neighbours
from unmask.optim.groups import parameter_groups
from unmask.testing import SMALL, pictures

OFFICIAL = "ml-jku/MAE-CT@"
TINY = {"hidden": 32, "out": 16, "queue": 24, "topk": 3}


def head_of(tensors, config):
    method = MAECT(
        temperature=config["temperature"],
        topk=max(config["topk"], 1),
        hidden=config["proj_hidden_dim"],
        out=config["output_dim"],
        momentum=config.get("target_factor", 0.99),
        head_share=0.0 if config["ema"] else 1.0,
    )
    head = Neighbours(config["input_dim"], method, config["queue_size"], "avg")
    sizes = (config["output_dim"], config["pred_hidden_dim"], config["output_dim"])  # in the file it is not twice the projector's
    head.predictor[0], head.predictor[1], head.predictor[3] = nn.Linear(*sizes[:2], bias=False), type(head.predictor[1])(sizes[1]), nn.Linear(*sizes[1:], bias=False)
    state = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    state["place"] = state.pop("queue_ptr")[0]
    del state["queue_y"]  # labels serve a figure there that is no part of the loss
    if not config["ema"]:
        state |= {f"target_{key}": value for key, value in state.items() if key.startswith("projector.")}
    head.load_state_dict(state | {"among": head.among})
    return head.train()


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mae_ct", "output.nn_index_view0", OFFICIAL))
def test_the_head_equals_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    head, found = head_of(tensors, config), []
    views = [tensors[f"input.features_view{view}"].clone().requires_grad_() for view in range(2)]
    ids, zero = tensors["input.ids"], torch.zeros_like(tensors["input.ids"])
    ranks = [tensors.get(f"input.dice_view{view}", zero).long() for view in range(2)]
    nearest = head.nearest
    head.nearest = lambda *given: found.append(nearest(*given)) or found[-1]
    loss = head.contrast(views, ids, ranks)
    assert_close(torch.stack(found), torch.stack([tensors[f"output.nn_index_view{view}"] for view in range(2)]))
    close = {"rtol": 1e-5, "atol": 1e-5 * loss.item()}
    assert_close(loss, tensors["output.loss"], **close)
    assert_close(head.queue, tensors["output.queue_after"], rtol=1e-5, atol=1e-5)
    assert torch.equal(head.queue_id, tensors["output.queue_id_after"]) and head.place == tensors["output.queue_ptr_after"][0]
    loss.backward()
    for key, value in ((key.removeprefix("grad."), value) for key, value in tensors.items() if key.startswith("grad.")):
        gradient = views[int(key[-1])].grad if key.startswith("features") else head.get_parameter(key).grad
        assert_close(torch.zeros_like(value) if gradient is None else gradient, value, rtol=1e-4, atol=1e-5 * value.abs().max().item() + 1e-8)
    state = head.state_dict()
    for key, value in ((key.removeprefix("output.after_forward."), value) for key, value in tensors.items() if key.startswith("output.after_forward.")):
        assert_close(state[key], value, rtol=1e-5, atol=1e-6)
    if config["ema"]:
        head.follow(None, 1.0)
        state = head.state_dict()
        for key, value in ((key.removeprefix("output.after_ema."), value) for key, value in tensors.items() if key.startswith("output.after_ema.")):
            assert_close(state[key], value, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ its own corners


def test_the_papers_numbers():
    method = MAECT()
    learner = method.build("vit_base_patch16_224", (32, 32))
    head = learner.objectives["contrast"]
    assert head.queue.shape == (65536, 256) and head.pooling == learner.pooling == "avg"
    assert [layer.out_features for layer in head.projector if isinstance(layer, nn.Linear)] == [2048, 2048, 256]
    assert [layer.out_features for layer in head.predictor if isinstance(layer, nn.Linear)] == [4096, 256] and head.projector[7].bias.requires_grad
    assert method.paper.base_lr * 1024 / 256 == pytest.approx(1e-4 * 1024 * 2 / 256)
    trained = {name.split(".")[2] for name, weight in learner.encoder.named_parameters() if weight.requires_grad and "blocks." in name}
    assert trained == set("6789") | {"10", "11"} and not learner.encoder.trunk.patch_embed.proj.weight.requires_grad and not learner.encoder.trunk.cls_token.requires_grad


def test_layers_are_slower_below_and_rest_while_the_head_learns():
    learner = MAECT(**TINY).build(**SMALL | {"depth": 4}, img_size=(32, 32))
    groups, factors = parameter_groups(learner, MAECT.paper)
    names = {id(weight): name for name, weight in learner.named_parameters()}
    told = {names[id(weight)]: (factor, group["weight_decay"]) for group, factor in zip(groups, factors) for weight in group["params"]}
    block, last, norm = (told[f"encoder.trunk.{name}"] for name in ("blocks.2.mlp.fc1.weight", "blocks.3.mlp.fc1.weight", "norm.weight"))
    assert [factor(0.4) for factor, _ in (block, last, norm)] == [0, 0, 0]
    assert [factor(0.5) for factor, _ in (block, last, norm)] == pytest.approx([0.65**2, 0.65, 1.0])  # only the final norm learns at the full rate
    assert (last[1], norm[1]) == (0.05, 0.0)
    factor, decay = told["objectives.contrast.projector.0.weight"]
    assert factor(0.1) == factor(0.6) == 1 and decay == 1e-5
    assert learner.again == 0.5 and MAECT(joint=True, **TINY).build(**SMALL, img_size=(32, 32)).again == 0
    aug = MAECT(head_rate=5.0, **TINY).build(**SMALL, img_size=(32, 32))
    assert any(factor(0.1) == 1 and factor(0.6) == 5 for factor in parameter_groups(aug, MAECT.paper)[1])


def test_a_picture_is_no_neighbour_of_itself():
    learner, x = MAECT(**TINY).build(**SMALL, img_size=(32, 32)).train(), pictures(8)
    head, ids = learner.objectives["contrast"], torch.arange(4)
    learner({"global": x, "sample": ids})
    assert head.place == 4 and torch.equal(head.queue_id[:5], torch.tensor([0, 1, 2, 3, -1]))
    projected = head.queue[:4]
    assert not torch.isin(head.nearest(projected, ids, torch.zeros(4, dtype=torch.long)), torch.arange(4)).all()
    assert torch.equal(head.nearest(projected, torch.full((4,), -1), torch.zeros(4, dtype=torch.long)), torch.arange(4))
    learner.eval()
    learner({"global": x, "sample": ids})
    assert head.place == 4, "looking on writes nothing"


def test_the_queue_goes_round_and_the_dice_are_even():
    learner = MAECT(**TINY).build(**SMALL, img_size=(32, 32)).train()
    head = learner.objectives["contrast"]
    rows = torch.nn.functional.normalize(torch.randn(20, 16), dim=1)
    head.remember(rows, torch.arange(20))
    head.remember(rows, torch.arange(20, 40))
    assert head.place == 16 and sorted(head.queue_id.tolist()) == list(range(16, 40))
    u = torch.cat([head.dice(torch.arange(20_000), view) for view in range(2)])
    counts = torch.bincount((u * 20).long(), minlength=20) / len(u)
    assert u.min() >= 0 and u.max() < 1 and (counts - 0.05).abs().max() < 0.005
    assert ((u[:20_000] * 20).long() == (u[20_000:] * 20).long()).float().mean() == pytest.approx(0.05, abs=0.01)


def test_first_the_nearest_then_one_of_several():
    head = MAECT(**TINY, momentum=0.9).build(**SMALL, img_size=(32, 32)).objectives["contrast"]
    with torch.no_grad():
        head.projector[0].weight.add_(1.0)
    before = head.target_projector[0].weight.clone()
    head.follow(None, 0.3)
    assert head.among == 1 and torch.equal(head.target_projector[0].weight, head.projector[0].weight)
    with torch.no_grad():
        head.projector[0].weight.add_(1.0)
    head.follow(None, 0.6)
    assert head.among == 3
    assert_close(head.target_projector[0].weight, before + 1 + 0.1, rtol=1e-5, atol=1e-5)


def test_a_queue_may_be_shorter_than_the_neighbours_that_are_drawn_from():
    learner = MAECT(joint=True, **TINY | {"queue": 2, "topk": 20}).build(**SMALL, img_size=(32, 32)).train()
    assert learner.objectives["contrast"].among == 2
    assert all(learner({"global": pictures(8), "sample": torch.arange(4)})["loss"].isfinite() for _ in range(3))


def test_joint_both_views_are_rebuilt_and_everything_is_trained():
    learner = MAECT(joint=True, weight=0.5, **TINY).build(**SMALL, img_size=(32, 32)).train()
    losses = learner({"global": pictures(8)})
    assert set(losses) == {"pixels", "contrast", "loss"} and all(weight.requires_grad for name, weight in learner.encoder.named_parameters() if "pos_embed" not in name)
    assert learner.draw_mask({"global": pictures(8)}).masked_ids.shape == (8, 12) and learner.objectives["contrast"].among == 3


def test_a_run_goes_on_from_a_pre_trained_one(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        Image.effect_noise((40, 40), 20 + 20 * number).convert("RGB").save(folder / f"{number}.png")
    size = {"steps": 2, "batch_size": 4, "workers": 0}
    run = unmask.pretrain("mae", str(folder), tmp_path / "mae", model="vit_tiny_patch16_224", width=48, depth=2, heads=3, img_size=(32, 32), patch_size=8, **size)
    words = {f"method.{name}": value for name, value in TINY.items()}
    with pytest.raises(Refused, match="--init RUN"):
        unmask.pretrain("mae_ct", str(folder), tmp_path / "none", **size, **words)
    tuned = unmask.pretrain("mae_ct", str(folder), tmp_path / "tuned", init=str(run), **size | {"steps": 4}, **words)  # two stages of two steps, of which the first has rate 0
    before, after = unmask.load_encoder(run).state_dict(), unmask.load_encoder(tuned).state_dict()
    assert torch.equal(before["blocks.0.mlp.fc1.weight"], after["blocks.0.mlp.fc1.weight"]) and not torch.equal(before["blocks.1.mlp.fc1.weight"], after["blocks.1.mlp.fc1.weight"])
    learner = unmask.load(tuned)
    assert learner.objectives["contrast"].place == 16 and set(learner.objectives["contrast"].queue_id[:16].tolist()) <= set(range(6))
