"""MAE against the official code's numbers, against transformers, and its own corners."""

import re
from dataclasses import replace

import pytest
import timm
import torch
from golden_files import keys, names
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.interchange import official
from unmask.masking import Block, Random
from unmask.methods import METHODS, find
from unmask.methods.mae import MAE
from unmask.patches import patchify
from unmask.testing import SMALL, case_of, check_graph, check_method, pictures

OFFICIAL = "facebookresearch/mae@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def learner_of(tensors, config, norm_pix=True):
    """Our learner at a golden file's size, with its weights."""
    assert config["mlp_ratio"] == 4, "timm's trunks are built with their own ratio"
    size, patch = config["img_size"], config["patch_size"]
    method = MAE(
        mask_ratio=config["mask_ratio"],
        norm_pix=norm_pix,
        decoder_width=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    channels = weights["patch_embed.proj.weight"].shape[1]
    sizes = {"width": config["embed_dim"], "depth": config["depth"], "heads": config["num_heads"]}
    learner = method.build("vit_tiny_patch16_224", tuple(size) if isinstance(size, list) else (size, size), channels, patch, **sizes)
    ours, left = official.from_mae(weights)
    assert not left
    learner.load_state_dict(ours)  # strict: no key is left over on either side
    assert_close(learner.objectives["pixels"].decoder.places[0], weights["decoder_pos_embed"][0, 1:], rtol=0, atol=1e-7)
    return learner


def answers(tensors, config, norm_pix=True):
    learner = learner_of(tensors, config, norm_pix)
    x, noise = tensors["input.imgs"], tensors["input.noise"]
    mask = learner.draw_mask(x, noise)
    return learner, x, noise, mask, learner.predict(x, mask)


def channel_first(values, patch):
    """Vectors (…, p·p·C) of the official code in our order."""
    return official.channel_first(values.movedim(-1, 0), patch).movedim(0, -1)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mae", "output.latent", OFFICIAL))
def test_forward_equals_the_official_code(golden, name):
    tensors, metadata = golden(name)
    learner, x, _, mask, found = answers(tensors, metadata["config"])
    patch = learner.encoder.patch
    assert torch.equal(mask.visible_ids, tensors["output.ids_keep"])
    assert torch.equal(torch.cat([mask.visible_ids, mask.masked_ids], 1).argsort(1), tensors["output.ids_restore"])
    assert torch.equal(mask.map, tensors["output.mask"].bool())
    features = found["features"]
    assert_close(torch.cat([features.prefix, features.patches], 1), tensors["output.latent"], **CLOSE)
    assert_close(found["prediction"], mask.masked(channel_first(tensors["output.pred"], patch)), **CLOSE)
    assert_close(learner.objectives["pixels"].loss(found["prediction"], found["truth"]), mask.masked(tensors["output.loss_norm_per_patch"]), **CLOSE)
    target = learner.objectives["pixels"].target
    assert_close(target(x)[:, 0], channel_first(tensors["output.target_norm_patch0"], patch), **CLOSE)
    assert_close(patchify(x, patch)[:, 0], channel_first(tensors["output.target_raw_patch0"], patch), rtol=0, atol=0)
    whole = learner.encoder(x)
    assert_close(torch.cat([whole.prefix, whole.patches], 1), tensors["output.encoder_nomask"], **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["norm", "raw"])
@pytest.mark.parametrize("name", names("mae", "output.latent", OFFICIAL))
def test_loss_and_gradients_equal_the_official_code(golden, name, kind):
    tensors, metadata = golden(name)
    learner, x, noise, *_ = answers(tensors, metadata["config"], kind == "norm")
    loss = learner(x, noise)["loss"]
    assert_close(loss, tensors[f"output.loss_{kind}"], rtol=1e-6, atol=1e-6)
    loss.backward()
    prefix = "grad." if kind == "norm" else "grad_raw."
    wanted = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    ours, left = official.from_mae({"patch_embed.proj.weight": tensors["weights.patch_embed.proj.weight"]} | wanted)
    assert wanted and not left
    if "patch_embed.proj.weight" not in wanted:
        del ours["encoder.trunk.patch_embed.proj.weight"]
    for key, gradient in ours.items():
        assert_close(learner.get_parameter(key).grad, gradient, rtol=1e-5, atol=2e-6 * max(1, gradient.abs().max().item()), msg=lambda said, key=key: f"{key}: {said}")


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mae", "law.pretrain_mean_std_absmax_count", OFFICIAL))
def test_initial_values_follow_the_official_law(golden, name):
    import json

    tensors, metadata = golden(name)
    side, patch, width, decoder = (int(number) for number in re.findall(r"\d+", metadata["config"]["model"]))
    order = json.loads(metadata["pretrain_names"])
    depths = [1 + max(int(key.split(".")[1]) for key in order if key.startswith(prefix)) for prefix in ("blocks.", "decoder_blocks.")]
    method, draws = MAE(decoder_width=decoder, decoder_depth=depths[1], decoder_heads=2), 20
    torch.manual_seed(0)
    drawn = []
    for _ in range(draws):
        learner = method.build("vit_tiny_patch16_224", (side, side), 3, patch, width=width, depth=depths[0], heads=2)
        table = learner.objectives["pixels"].decoder.places
        drawn.append(official.to_mae(learner.state_dict(), (patch, patch)) | {"decoder_pos_embed": torch.cat([torch.zeros_like(table[:, :1]), table], 1)})
    assert set(order) == set(drawn[0])
    for key, (mean, std, largest, count) in zip(order, tensors["law.pretrain_mean_std_absmax_count"].tolist()):
        values = torch.stack([state[key] for state in drawn]).flatten()
        assert values.numel() == count, key
        error = std / count**0.5
        assert abs(values.mean().item() - mean) <= 7.1 * error + 1e-6, key  # five standard errors of a difference
        assert abs(values.std().item() - std) <= 7.1 * error + 1e-6, key
        bound = 0.35 if "token" in key else 0.01 if count > 10_000 else 0.05  # normal tokens have no largest value
        assert abs(values.abs().max().item() - largest) <= bound * largest, key


def on_meta(method, *words):
    with torch.device("meta"):
        return method.build(*words)


def test_base_has_the_papers_size():
    learner = on_meta(MAE(), "vit_base_patch16_224")
    table = learner.objectives["pixels"].decoder.places
    trainable = sum(value.numel() for value in learner.parameters() if value.requires_grad)
    everything = sum(value.numel() for value in learner.state_dict().values()) + table.numel() + table.shape[-1]  # theirs has a class row
    assert (everything, trainable) == (111_907_840, 111_655_680)


@pytest.mark.parametrize(("size", "model"), [("base", "vit_base_patch16_224"), ("large", "vit_large_patch16_224"), ("huge", "vit_huge_patch14_224")])
def test_every_published_key_is_ours(size, model):
    """Full and encoder files are consumed completely, both ways; a fine-tuned file is timm's own plus its classifier."""
    learner = on_meta(MAE(decoder_heads=16), model)
    ours = {key: tuple(value.shape) for key, value in learner.state_dict().items()}
    patch = learner.encoder.patch

    def shapes(state):
        return {key: tuple(value.shape) for key, value in state.items()}

    published = keys(f"mae_full_vit_{size}")
    found, left = official.from_mae({key: torch.empty(shape, device="meta") for key, shape in published.items()})
    assert not left and shapes(found) == ours
    computed = {key: shape for key, shape in published.items() if key in official.MAE_COMPUTED}
    assert shapes(official.to_mae(learner.state_dict(), patch)) | computed == published
    found, left = official.from_mae({key: torch.empty(shape, device="meta") for key, shape in keys(f"mae_pretrain_vit_{size}").items()})
    assert not left and shapes(found) == {key: shape for key, shape in ours.items() if key.startswith("encoder.")}
    tuned = keys(f"mae_finetuned_vit_{size}")
    found, left = official.from_mae({key: torch.empty(shape, device="meta") for key, shape in tuned.items()})
    assert set(left) == {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
    assert set(found) == {key for key in ours if key.startswith("encoder.") and not key.startswith("encoder.trunk.norm.")}
    with torch.device("meta"):
        assert shapes(timm.create_model(model, global_pool="avg", num_classes=1000).state_dict()) == tuned


# -------------------------------------------------------------------------------------------------------- transformers


def hugging_face(learner, img_size, norm_pix):
    """Hugging Face's model with our weights, and our tables: its own are made for squares only."""
    transformers = pytest.importorskip("transformers")
    decoder, trunk = learner.objectives["pixels"].decoder, learner.encoder.trunk
    size = {"hidden_size": trunk.embed_dim, "num_hidden_layers": len(trunk.blocks), "num_attention_heads": trunk.blocks[0].attn.num_heads}
    size |= {"intermediate_size": 4 * trunk.embed_dim, "decoder_intermediate_size": 4 * decoder.embed.out_features}
    size |= {"decoder_hidden_size": decoder.embed.out_features, "decoder_num_hidden_layers": len(decoder.blocks)}
    config = transformers.ViTMAEConfig(
        **size,
        decoder_num_attention_heads=decoder.blocks[0].attn.num_heads,
        image_size=img_size,
        patch_size=learner.encoder.patch[0],
        num_channels=learner.encoder.in_chans,
        mask_ratio=learner.masking.now,
        norm_pix_loss=norm_pix,
        layer_norm_eps=1e-6,
    )
    model = transformers.ViTMAEForPreTraining(config).eval()
    table = torch.cat([torch.zeros_like(decoder.places[:, :1]), decoder.places], 1)
    state = official.to_mae(learner.state_dict(), learner.encoder.patch) | {"decoder_pos_embed": table}
    model.load_state_dict({new: value for key, whole in state.items() for new, value in renamed(key, whole)})
    whole = model.patchify
    model.patchify = lambda x, **_: whole(x, interpolate_pos_encoding=True)  # it refuses other shapes than squares without need
    return model


def renamed(key, value):
    """Official MAE names to Hugging Face's: qkv is three there."""
    rows = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    tokens = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    side = "decoder." if key.startswith(("decoder_", "mask_token")) else "vit."
    key = re.sub(r"^(decoder_)?blocks\.", lambda found: f"{found[1] or ''}layers.", key)
    for old, new in rows.items():
        key = key.replace(f".{old}.", f".{new}.")
    key = tokens.get(key, re.sub(r"^norm\.", "layernorm.", key).replace("patch_embed.proj.", "embeddings.patch_embeddings.projection."))
    if ".qkv." not in key:
        return [(side + key, value)]
    return [(side + key.replace("attn.qkv", f"attention.{name}_proj"), part) for name, part in zip("qkv", value.chunk(3))]


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("img_size", [(32, 32), (16, 64), (72, 32)])  # it makes square numbers of places only
def test_loss_equals_transformers(img_size, norm_pix):
    torch.manual_seed(1)
    learner = MAE(norm_pix=norm_pix, decoder_width=64, decoder_depth=2).build(**SMALL, img_size=img_size).eval()
    for value in learner.parameters():  # no norm weight 1, no bias 0: a wrong branch shows
        if value.requires_grad:
            torch.nn.init.normal_(value, std=0.1)
    theirs = hugging_face(learner, img_size, norm_pix)
    x = pictures(3, 3, img_size)
    noise = torch.rand(3, learner.draws(x))
    ours, other = learner(x, noise)["loss"], theirs(x, noise=noise)
    assert torch.equal(learner.draw_mask(x, noise).map, other.mask.bool())
    assert_close(ours, other.loss, rtol=1e-6, atol=1e-6)
    mask = learner.draw_mask(x, noise)
    assert_close(learner.predict(x, mask)["prediction"], mask.masked(channel_first(other.logits, learner.encoder.patch)), rtol=1e-5, atol=1e-5)
    other.loss.backward()
    ours.backward()
    for key in ("blocks.0.attn.proj.weight", "norm.bias", "patch_embed.proj.weight"):
        ((name, _),) = renamed(key, torch.empty(0))
        gradient = theirs.get_parameter(name).grad
        assert_close(learner.encoder.trunk.get_parameter(key).grad, gradient, rtol=1e-4, atol=1e-6 + 1e-5 * gradient.abs().max().item())


# -------------------------------------------------------------------------------------------------------- its own laws


def test_is_found_by_name_and_says_the_papers_numbers():
    assert "mae" in METHODS and find("mae") is MAE
    method = MAE()
    assert (method.mask_ratio.first, method.norm_pix, MAE.paper.base_lr, MAE.paper.batch_size, MAE.paper.betas) == (0.75, True, 1.5e-4, 4096, (0.9, 0.95))
    decoder = on_meta(method, "vit_base_patch16_224").objectives["pixels"].decoder
    assert (decoder.embed.out_features, len(decoder.blocks), decoder.blocks[0].attn.num_heads) == (512, 8, 16)


def test_wrong_sizes_are_refused_in_one_line():
    with pytest.raises(ValueError, match="decoder_width"):
        MAE(decoder_width=30, decoder_heads=4)
    with pytest.raises(ValueError, match="mask_ratio"):
        MAE(mask_ratio=1.5)
    with pytest.raises(Refused, match="decoder_heads 7"):
        MAE(decoder_heads=7).build(**SMALL)


@pytest.mark.parametrize(("masking", "kind"), [("random", Random), ("block", Block)])
def test_rows_of_dropped_patches_are_equally_long(masking, kind):
    learner = MAE(masking=masking).build(**SMALL, img_size=(64, 64))
    assert isinstance(learner.masking, kind)
    mask = learner.draw_mask(pictures(8, 3, (64, 64)))
    assert mask.weight is None and mask.masked_ids.shape == (8, 48)


@pytest.mark.parametrize("masking", ["block", "grid"])
def test_other_masks_keep_the_laws(masking):
    check_method(MAE(masking=masking, mask_ratio=0.6), processes=False, patch_size=4)


def test_a_moving_ratio_needs_few_graphs():
    check_graph(case_of(MAE(mask_ratio=".5:.9"), patch_size=4), progress=tuple(place / 10 for place in range(11)), graphs=2)


def test_the_mask_may_be_drawn_inside_the_graph():
    case = case_of(MAE())
    learner, graphs = case.learner(), []
    torch._dynamo.reset()
    compiled = torch.compile(learner, backend=lambda graph, inputs: graphs.append(graph) or graph.forward, fullgraph=True)
    noise = case.noise(learner)
    assert_close(compiled(case.x, noise)["loss"], learner(case.x, noise)["loss"])
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_noise_keeps_the_smallest():
    """`model(x, noise=noise)` is how implementations are compared: the int(N·(1 − ratio)) smallest stay."""
    learner = MAE(mask_ratio=0.7).build(**SMALL, img_size=(32, 32))
    x, noise = pictures(2), torch.rand(2, 16)
    mask = learner.draw_mask(x, noise)
    assert torch.equal(mask.visible_ids, noise.argsort(1)[:, : int(16 * (1 - 0.7))])
    with pytest.raises(ValueError, match="16 are wanted"):
        learner(x, torch.rand(2, 15))


def test_a_method_is_immutable_and_compares():
    assert MAE(mask_ratio=0.6) == MAE(mask_ratio=".6") and replace(MAE(), norm_pix=False) != MAE()
