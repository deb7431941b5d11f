"""The learner: what is pooled, what is frozen, how fast each part learns, and the average of its weights."""

from __future__ import annotations

import pytest
import torch
from golden_files import names
from torch import nn

from unmask.errors import Refused
from unmask.interchange.timm import Encoder, rebuild
from unmask.optim import groups, schedule
from unmask.optim.groups import parameter_groups
from unmask.settings import Train
from unmask.transfer.classifier import Classifier, layer_of_stages
from unmask.transfer.finetune import Finetune
from unmask.transfer.teaching import fill

VIT = ("vit_tiny_patch16_224", {"img_size": (32, 32), "in_chans": 3, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True, "fc_norm": False})
EVA = ("eva02_tiny_patch14_224", {"img_size": (32, 32), "in_chans": 3, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True})
BEIT = ("beit_base_patch16_224", {"img_size": (32, 32), "in_chans": 3, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0, "use_fc_norm": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True})
SWIN = ("swin_tiny_patch4_window7_224", {"img_size": (32, 32), "in_chans": 3, "patch_size": 2, "embed_dim": 24, "num_classes": 0, "drop_path_rate": 0.0})
X = {"images": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), "labels": torch.tensor([0, 1, 2, 1])}


def classifier(network=VIT, **more) -> Classifier:
    torch.manual_seed(0)
    return Classifier(*network, count=5, **{"head_std": 0.02} | more)


@pytest.mark.parametrize("network", [VIT, EVA, BEIT, SWIN], ids=["vit", "eva", "beit", "swin"])
@pytest.mark.parametrize("pooling", ["cls", "avg", "cls+avg", "attentive"])
def test_every_weight_that_is_trained_gets_a_gradient(network, pooling):
    if network is SWIN and "cls" in pooling:
        with pytest.raises(Refused, match="no class token"):
            classifier(network, pooling=pooling)
        return
    learner = classifier(network, pooling=pooling, layer_decay=0.7)
    groups.check_cover(learner, learner.parameter_groups(Train()))
    learner(X)["loss"].backward()
    assert not [name for name, weight in learner.named_parameters() if weight.requires_grad and weight.grad is None]


def test_pooling_is_what_it_says():
    avg, cls, both = (classifier(pooling=pooling).eval() for pooling in ("avg", "cls", "cls+avg"))
    trunk = avg.encoder.trunk
    assert isinstance(trunk.norm, nn.Identity) and isinstance(trunk.fc_norm, nn.LayerNorm)
    torch.testing.assert_close(avg.pooled(X["images"]), trunk.forward_head(trunk.forward_features(X["images"])))
    trunk = cls.encoder.trunk
    assert isinstance(trunk.norm, nn.LayerNorm) and isinstance(trunk.fc_norm, nn.Identity)
    torch.testing.assert_close(cls.pooled(X["images"]), trunk.forward_features(X["images"])[:, 0])
    tokens = both.encoder.trunk.forward_features(X["images"])
    torch.testing.assert_close(both.pooled(X["images"]), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    assert both.head.in_features == 64


def test_a_shared_table_of_relative_places_becomes_one_a_block():
    """BEiT's fine-tuning un-shares it: the network answers as before, and every block can learn its own."""
    shared = rebuild(*BEIT).eval()
    nn.init.normal_(shared.rel_pos_bias.relative_position_bias_table)
    learner = classifier(BEIT, pooling="cls")
    fill(learner.encoder.trunk, Encoder(shared, BEIT[0], (32, 32), 3, None, None))
    trunk = learner.eval().encoder.trunk
    torch.testing.assert_close(trunk.forward_features(X["images"]), shared.forward_features(X["images"]))
    tables = [block.attn.relative_position_bias_table for block in trunk.blocks]
    assert trunk.rel_pos_bias is None and len({id(table) for table in tables}) == 3 and torch.equal(tables[0], tables[2])


def test_layers_of_stages_count_through_all_of_them():
    stages = [2, 2, 6, 2]  # timm keeps the merging that follows a stage at the start of the next one
    names = ["patch_embed.proj.weight", "layers.0.blocks.1.norm1.weight", "layers.1.downsample.norm.weight", "layers.2.blocks.0.attn.qkv.weight", "layers.3.downsample.reduction.weight", "norm.weight"]
    assert [layer_of_stages(name, stages) for name in names] == [0, 2, 2, 5, 10, 13]
    learner = classifier(SWIN, last_blocks=1)
    assert {name.split(".")[5] for name, weight in learner.named_parameters() if weight.requires_grad and "blocks" in name} == {"1"}


def test_no_class_token_no_class_pooling():
    with pytest.raises(Refused, match="no class token"):
        classifier((VIT[0], VIT[1] | {"class_token": False, "global_pool": "avg"}), pooling="cls")


@pytest.mark.parametrize(("last", "trained"), [(0, {"fc_norm", "head"}), (1, {"blocks.2", "fc_norm", "head"}), (2, {"blocks.1", "blocks.2", "fc_norm", "head"})])
def test_only_the_last_blocks_learn(last, trained):
    learner = classifier(last_blocks=last)
    learner(X)["loss"].backward()
    own = {name.removeprefix("encoder.trunk.") for name, weight in learner.named_parameters() if weight.grad is not None}
    assert {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in own} == trained
    assert all(weight.requires_grad == (weight.grad is not None) for weight in learner.parameters())
    with pytest.raises(Refused, match="3 blocks"):
        classifier(last_blocks=4)


def test_groups_are_those_of_the_official_fine_tuning():
    """Scale d^(depth + 1 - layer): places and patches lowest, the norm behind the pool and the head at the full rate; vectors and tokens do not decay."""
    learner = classifier(layer_decay=0.5)
    made, factors = groups.parameter_groups(learner, Train(weight_decay=0.3))
    named = {id(weight): name for name, weight in learner.named_parameters()}
    found = {named[id(weight)]: (factor(0.0), group["weight_decay"]) for group, factor in zip(made, factors) for weight in group["params"]}
    trunk = "encoder.trunk."
    assert found[trunk + "pos_embed"] == (0.5**4, 0.0) and found[trunk + "cls_token"] == (0.5**4, 0.0)
    assert found[trunk + "patch_embed.proj.weight"] == (0.5**4, 0.3)
    assert found[trunk + "blocks.0.attn.qkv.weight"] == (0.5**3, 0.3) and found[trunk + "blocks.2.norm1.weight"] == (0.5, 0.0)
    assert found[trunk + "fc_norm.weight"] == (1.0, 0.0) and found["head.weight"] == (1.0, 0.3) and found["head.bias"] == (1.0, 0.0)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("finetune_optim", "output.parameter_scale_and_wd", "bytedance/ibot"))
def test_layers_are_those_of_beits_fine_tuning(golden, name):
    tensors, metadata = golden(name)
    said = metadata["config"]
    vectors = ("bias", "gamma_1", "gamma_2")
    plain = [key.endswith(vectors) or ("norm" in key and key.endswith("weight")) for key in said["parameters_sorted"]]
    named = [(key, nn.Parameter(torch.zeros(2) if flat else torch.zeros(1, 2))) for key, flat in zip(said["parameters_sorted"], plain)]
    made = groups.by_layer(named, said["depth"], said["layer_decay"], said["weight_decay"], said["skip"])
    found = {id(weight): (group["lr"], group["weight_decay"]) for group in made for weight in group["params"]}
    ours = torch.tensor([found[id(weight)] for _, weight in named])
    torch.testing.assert_close(ours, tensors["output.parameter_scale_and_wd"], rtol=1e-6, atol=0)


def test_the_average_follows_and_forgets_slowly():
    learner = classifier(ema=0.9)
    before = learner.average["head"].weight.clone()
    with torch.no_grad():
        learner.head.weight.add_(1.0)
    for step in range(1, 200):
        learner.after_step(step / 200)
        share = min(0.9, (1 + step) / (10 + step))
        before = before.lerp(learner.head.weight, 1 - share)
        torch.testing.assert_close(learner.average["head"].weight, before)
    torch.testing.assert_close(learner.average["head"].weight, learner.head.weight, rtol=0, atol=1e-3)
    assert not any(weight.requires_grad for weight in learner.average.parameters())
    assert learner.outputs(X["images"], average=True).shape == (4, 5)
    with pytest.raises(ValueError, match="ema"):
        classifier().outputs(X["images"], average=True)


def test_drop_path_and_mixing_act_only_while_it_trains():
    learner = classifier(drop_path=0.5, mixup=0.8, cutmix=1.0, erasing=0.5)
    noise = torch.rand(4, learner.draws(X))
    assert not torch.equal(learner(X, noise)["loss"], learner(X, noise)["loss"])
    learner.eval()
    torch.testing.assert_close(learner(X, noise)["loss"], classifier().eval()(X)["loss"])
    assert "drop_path_rate" not in learner.encoder.trunk.unmask_kwargs


def test_tags_and_numbers_that_are_unknown_count_for_nothing():
    images = X["images"]
    tags = torch.tensor([[1, 0, 1, float("nan"), 0.0]]).repeat(4, 1)
    learner = classifier(kind="tags")
    learner({"images": images, "labels": tags})["loss"].backward()
    assert learner.head.weight.grad[3].abs().sum() == 0 and learner.head.weight.grad[0].abs().sum() > 0
    moments = ([1.0, 100.0, 0.0, 0.0, 0.0], [1.0, 50.0, 1.0, 1.0, 1.0])
    learner = classifier(kind="numbers", moments=moments, head_std=1e-9).eval()
    torch.testing.assert_close(learner.predict(images), torch.tensor(moments[0]).expand(4, 5))
    assert float(learner({"images": images, "labels": torch.tensor([[2.0, 150.0, float("nan"), 0.0, 0.0]]).repeat(4, 1)})["loss"].detach()) == pytest.approx(0.5)


def test_probabilities_sum_to_one():
    assert torch.allclose(classifier().predict(X["images"]).sum(1), torch.ones(4))


@pytest.mark.parametrize("more", [{"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25, "drop_path": 0.1}, {"pooling": "attentive", "last_blocks": 0}, {"last_blocks": 1}])
def test_it_is_one_compiled_graph(more):
    learner = classifier(**more)
    noise = torch.rand(4, learner.draws(X), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    plain = learner(X, noise)["loss"]
    torch._dynamo.reset()
    torch.manual_seed(0)
    whole = torch.compile(learner, backend="eager", fullgraph=True)(X, noise)["loss"]
    torch.testing.assert_close(whole, plain)
    whole.backward()


@pytest.mark.golden
@pytest.mark.parametrize("name", names("timm_optim", "output.parameter_scale_and_wd", "timm"))
def test_layers_differ_from_timms_only_in_the_final_norm(golden, name):
    """timm counts the norm behind the blocks with the last block; the official fine-tuning codes, and this one, with the head."""
    tensors, metadata = golden(name)
    said = metadata["config"]
    vectors = [key.endswith(("bias", "gamma")) or ("norm" in key and key.endswith("weight")) for key in said["parameters_sorted"]]
    named = [(key, nn.Parameter(torch.zeros(2) if flat else torch.zeros(1, 2))) for key, flat in zip(said["parameters_sorted"], vectors)]
    made = groups.by_layer(named, said["depth"], said["layer_decay"], said["weight_decay"], ("cls_token", "pos_embed", "reg_token"))
    found = {id(weight): (group["lr"], group["weight_decay"]) for group in made for weight in group["params"]}
    for (key, weight), wanted in zip(named, tensors["output.parameter_scale_and_wd"].tolist()):
        scale = 1.0 if key.startswith("norm.") else wanted[0]
        assert found[id(weight)] == pytest.approx((scale, wanted[1])), key
        assert not key.startswith("norm.") or wanted[0] == pytest.approx(said["layer_decay"])


@pytest.mark.golden
@pytest.mark.parametrize("name", names("finetune_optim", "output.linear_probe_lr_per_epoch"))
def test_a_cosine_without_warm_up_is_dinos(golden, name):
    tensors, metadata = golden(name)
    said = metadata["config"]
    ours = torch.tensor([schedule.cosine(epoch, said["linear_epochs"], said["linear_lr"], 0.0) for epoch in range(said["linear_epochs"])])
    torch.testing.assert_close(ours, tensors["output.linear_probe_lr_per_epoch"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("pooling", ["avg", "attentive"])
@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_a_network_without_tokens_is_trained_too(model, pooling):
    learner = Finetune(pooling=pooling, layer_decay=0.65, mixup=0, cutmix=0, erasing=0).build(model, {"num_classes": 0}, (64, 64), list("abc"))
    batch = {"images": torch.rand(4, 3, 64, 64), "labels": torch.tensor([0, 1, 2, 0])}
    learner.train()(batch)["loss"].backward()
    assert all(parameter.grad is not None for parameter in learner.parameters() if parameter.requires_grad)
    if pooling == "avg":
        trunk = learner.eval().encoder.trunk
        mine = trunk.forward_head(trunk.forward_features(batch["images"]), pre_logits=True)
        assert torch.equal(learner.pooled(batch["images"]), mine), "the features of evaluate"
    assert len(parameter_groups(learner, Train())[0]) > 2 and min(group["lr"] for group in learner.parameter_groups(Train())) < 0.9


@torch.inference_mode()
def test_a_network_without_tokens_is_built_to_answer_only():
    learner = Finetune().build("test_resnet", {"num_classes": 0}, (64, 64), list("abc"))
    assert learner.predict(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_a_frozen_network_keeps_its_statistics_and_an_average_has_them():
    frozen = Finetune(last_blocks=0, mixup=0, cutmix=0, erasing=0).build("test_resnet", {"num_classes": 0}, (64, 64), list("ab"))
    before = frozen.encoder.trunk.bn1.running_mean.clone()
    batch = {"images": torch.rand(4, 3, 64, 64), "labels": torch.tensor([0, 1, 1, 0])}
    frozen.train()(batch)
    assert torch.equal(frozen.encoder.trunk.bn1.running_mean, before)
    learner = Finetune(ema=0.9, layer_decay=0.65, mixup=0, cutmix=0, erasing=0).build("test_resnet", {"num_classes": 0}, (64, 64), list("ab"))
    learner.train()(batch)
    learner.after_step(0.0)
    assert not torch.equal(learner.encoder.trunk.bn1.running_mean, before)
    assert torch.equal(learner.average["encoder"].trunk.bn1.running_mean, learner.encoder.trunk.bn1.running_mean)


@pytest.mark.parametrize("settings", [{"last_blocks": 1}, {"drop_path": 0.1}, {"pooling": "cls"}])
def test_what_a_network_without_tokens_cannot_do_is_refused(settings):
    with pytest.raises(Refused, match=r"no row of blocks|no class token"):
        Finetune(**settings).build("test_resnet", {"num_classes": 0}, (64, 64), list("ab"))
