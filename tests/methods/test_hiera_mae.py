"""Hiera's MAE against the official code's numbers: stages, what is joined, predictions, loss, gradients; published names both ways."""

import pytest
import timm
import torch
from golden_files import check_gradients, keys, lists, names
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.interchange import hiera
from unmask.masking import cells_of
from unmask.methods.hiera_mae import HieraMAE
from unmask.testing import case_of, check_leak, pictures

OFFICIAL = "facebookresearch/hiera@"
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_of(tensors, config):
    words = ("embed_dim", "num_heads", "stages", "q_pool", "mlp_ratio", "in_chans")
    trunk = timm.create_model("hiera_tiny_224", num_classes=0, img_size=tuple(config["input_size"]), **{word: config[word] for word in words})
    sizes = {"decoder_width": config["decoder_embed_dim"], "decoder_depth": config["decoder_depth"], "decoder_heads": config["decoder_num_heads"]}
    learner = HieraMAE(mask_ratio=config["mask_ratio"], **sizes).build(trunk)
    ours, left = hiera.ours(part(tensors, "weights."))
    missing, unexpected = learner.load_state_dict(ours, strict=False)
    assert not left and not unexpected and missing == ["encoder.trunk.head.norm.weight", "encoder.trunk.head.norm.bias"]
    return learner


@pytest.mark.golden
@pytest.mark.parametrize("name", names("hiera", "output.latent", OFFICIAL))
def test_prediction_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    if tensors.get("input.image") is None:
        pytest.skip("for video")
    learner, x = learner_of(tensors, metadata["config"]), tensors["input.image"]
    mask = learner.draw_mask(x, tensors["input.noise"])
    shown = (~mask.map)[:, cells_of(mask.grid, learner.encoder.unit)[1][:, 0]]  # (B, U)
    assert torch.equal(shown, tensors["input.mask_keep"].bool())
    assert torch.equal(~mask.map, tensors["output.pred_mask_keep"].bool())

    def placed(values):  # theirs (B, kept units, h, w, C) at our visible patches, (B, V, tokens·C)
        S, side = learner.encoder.unit, values.shape[2] // learner.encoder.unit
        values = values.unflatten(3, (S, side)).unflatten(2, (S, side)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4).flatten(1, 3)
        whole = values.new_zeros(len(values), mask.map.shape[1], values.shape[-1])
        units = [cells_of(mask.grid, S)[1][row].flatten() for row in shown]
        for row, ids, value in zip(whole, units, values):
            row[ids] = value
        return mask.visible(whole)

    found = learner.predict(x, mask)
    for layer, stage in zip(found["features"].layers, (0, 1)):
        assert_close(layer, placed(tensors[f"output.stage{stage}"]), **CLOSE)
    assert_close(found["features"].patches, placed(tensors["output.stage3"]), **CLOSE)
    assert_close(learner.objectives["pixels"].through(found["features"], mask).patches, placed(tensors["output.latent"]), **CLOSE)
    raster = mask.masked_ids.argsort(1)
    for ours, theirs in (("prediction", "output.pred_first128"), ("truth", "output.label_first128")):
        rows = found[ours].gather(1, raster.unsqueeze(-1).expand_as(found[ours]))
        assert_close(rows.flatten(0, 1)[:, :128], tensors[theirs], **CLOSE)
    loss = learner(x, noise=tensors["input.noise"])["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    gradients, _ = hiera.ours(part(tensors, "grad."))
    check_gradients(learner, gradients, 5e-5)
    assert hiera.theirs(learner.state_dict()).keys() == part(tensors, "weights.").keys()
    for key, value in hiera.theirs(learner.state_dict()).items():
        assert torch.equal(value, tensors[f"weights.{key}"]), key


@pytest.mark.parametrize("name", [name for name in lists() if name.startswith("hiera_mae_") and name.endswith("_224")])
def test_the_published_names_and_shapes_are_ours(name):
    size = name.removeprefix("hiera_mae_").removesuffix("_224")
    with torch.device("meta"):
        trunk = timm.create_model(f"hiera_{size}_224", num_classes=0, q_pool=2)
    with torch.device("meta"):
        learner = HieraMAE(decoder_width=512, decoder_depth=8, decoder_heads=16).build(trunk)
    published = {key: torch.zeros(()).expand(shape) for key, shape in keys(name).items()}
    ours, left = hiera.ours(published)
    own = {key: value for key, value in learner.state_dict().items() if ".head." not in key}
    assert not left and {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in own.items()}
    back = hiera.theirs({key: torch.zeros(()).expand(value.shape) for key, value in own.items()})
    assert {key: tuple(value.shape) for key, value in back.items()} == keys(name)


def test_the_paper_and_what_is_refused():
    method = HieraMAE()
    assert method.paper.epochs == 1600 and method.mask_ratio.first == 0.6
    with torch.device("meta"):
        learner = method.build("hiera_base_224")
    decoder = learner.objectives["pixels"].decoder
    assert (decoder.places.shape, len(decoder.blocks), decoder.blocks[0].attn.num_heads) == ((1, 196, 512), 8, 16)
    assert learner.encoder.patch == (16, 16) and learner.masking.keep(49) == 19
    assert [scale.in_features for scale in learner.objectives["pixels"].through.scales] == [16 * 96, 4 * 192]
    for wrong, said in (({"decoder_width": 100, "decoder_heads": 3}, "does not divide"), ({}, "no Hiera")):
        with pytest.raises(Refused, match=said):
            HieraMAE(**wrong).build("hiera_tiny_224" if wrong else "vit_tiny_patch16_224", (64, 64))
    with pytest.raises(ValueError, match="decoder_depth"):
        HieraMAE(decoder_depth=0)


def test_initial_values_are_maes():
    torch.manual_seed(0)
    learner = HieraMAE().build("hiera_tiny_224", (64, 64), width=48)
    trunk = learner.encoder.trunk
    qkv = trunk.blocks[0].attn.qkv.weight
    bound = (6 / sum(qkv.shape)) ** 0.5
    assert 0.97 * bound < qkv.abs().max() <= bound and not trunk.blocks[0].attn.qkv.bias.any()
    assert abs(trunk.pos_embed.std().item() - 0.02) < 1e-3
    assert abs(learner.objectives["pixels"].decoder.places.std().item() - 0.02) < 1e-3


def test_hidden_pixels_never_leak_at_other_sizes():
    words = {"model": "hiera_tiny_224", "width": 24, "depth": None, "heads": None, "patch_size": 2}
    built = case_of(HieraMAE(mask_ratio=0.5), img_size=(32, 64), **words)
    check_leak(built._replace(x=pictures(4, 3, (64, 48))))
