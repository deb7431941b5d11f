"""FCMAE against the official code's numbers: masked dense convolutions for sparse ones, predictions, loss, gradients; published names both ways."""

import pytest
import timm
import torch
from golden_files import check_gradients, keys, lists, names
from torch.testing import assert_close

from unmask.encoders.convnext import ConvNeXt
from unmask.errors import Refused
from unmask.interchange import convnext
from unmask.methods.fcmae import FCMAE
from unmask.testing import pictures

OFFICIAL = "facebookresearch/ConvNeXt-V2@"
CLOSE = {"rtol": 1e-5, "atol": 3e-5}


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_of(tensors, config, grn="batch", name="convnextv2_tiny"):
    trunk = timm.create_model(name, num_classes=0, depths=tuple(config["depths"]), dims=tuple(config["dims"]))
    method = FCMAE(mask_ratio=config["mask_ratio"], norm_pix=config["norm_pix_loss"], grn=grn, decoder_width=config["decoder_embed_dim"], decoder_depth=config["decoder_depth"])
    learner = method.build(trunk)
    ours, left = convnext.ours(part(tensors, "weights."), learner.state_dict())
    missing, unexpected = learner.load_state_dict(ours, strict=False)
    assert not left and not unexpected and missing == ["encoder.trunk.head.norm.weight", "encoder.trunk.head.norm.bias"]
    return learner


@pytest.mark.golden
@pytest.mark.parametrize("network", ["convnextv2_tiny", "convnextv2_atto"])  # linear layers, and convolutions of one pixel
@pytest.mark.parametrize("name", names("fcmae", "output.encoder", OFFICIAL))
def test_prediction_loss_and_gradients_equal_the_sparse_network(golden, name, network):
    tensors, metadata = golden(name)
    learner, x = learner_of(tensors, metadata["config"], name=network), tensors["input.image"]
    mask = learner.draw_mask(x, tensors["input.noise"])
    assert torch.equal(mask.map, tensors["output.mask"].bool())
    found = learner.predict(x, mask)
    assert_close(found["features"].patches, mask.visible(tensors["output.encoder"].flatten(2).transpose(1, 2)), **CLOSE)
    patch = learner.encoder.patch
    for ours, theirs in (("prediction", "output.pred_first96"), ("truth", "output.target_first96")):
        pixels = found[ours].unflatten(-1, (3, *patch)).movedim(2, -1).flatten(2)[..., :96]  # channel last, as theirs
        assert_close(pixels, mask.masked(tensors[theirs]), **CLOSE)
    loss = learner(x, noise=tensors["input.noise"])["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    gradients, _ = convnext.ours(part(tensors, "grad."), learner.state_dict())
    check_gradients(learner, gradients, 5e-5)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("fcmae", "output.encoder", OFFICIAL))
def test_sparse_kernels_become_the_published_dense_ones(golden, name):
    tensors, _ = golden(name)
    state = part(tensors, "weights.encoder.")
    dense, found = convnext.timms(part(tensors, "dense_weights.")), convnext.timms(state)
    for key, value in dense.items():
        assert torch.equal(found[key], value), key


@pytest.mark.golden
@pytest.mark.parametrize("name", names("fcmae", "output.encoder", OFFICIAL))
def test_the_norm_of_each_picture_is_another_network(golden, name):
    """Summing over a picture's own visible places differs from the official sum over the batch, and equals it for a batch of one."""
    tensors, metadata = golden(name)
    x, noise = tensors["input.image"], tensors["input.noise"]
    alone, both = (learner_of(tensors, metadata["config"], grn) for grn in ("picture", "batch"))
    losses = [learner(x, noise=noise)["loss"].item() for learner in (alone, both)]
    assert 0.002 < abs(losses[0] / losses[1] - 1) < 0.02
    one = [learner(x[:1], noise=noise[:1])["loss"] for learner in (alone, both)]
    assert_close(*one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in lists() if name.startswith(("fcmae_training_", "fcmae_dense_"))])
def test_the_published_names_and_shapes_are_ours(name):
    size = name.split("_")[2]
    with torch.device("meta"):
        learner = FCMAE(decoder_width=512).build(f"convnextv2_{size}")
    own = {key: value for key, value in learner.state_dict().items() if ".head." not in key}
    ours, left = convnext.ours({key: torch.zeros(()).expand(shape) for key, shape in keys(name).items()}, own)
    if name.startswith("fcmae_dense_") and not any(key.startswith("decoder") for key in keys(name)):
        own = {key: value for key, value in own.items() if key.startswith("encoder.")}
    assert not left and {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in own.items()}
    if name.startswith("fcmae_dense_"):
        back = convnext.theirs({key: torch.zeros(()).expand(value.shape) for key, value in own.items()}, (32, 32))
        assert {key: tuple(value.shape) for key, value in back.items()} == keys(name)


def test_the_official_start_and_the_usual_one():
    torch.manual_seed(0)
    for std in (1.0, 0.02):
        learner = FCMAE(init_std=std).build("convnextv2_atto", (64, 64))
        trunk, decoder = learner.encoder.trunk, learner.objectives["pixels"].decoder
        for weight in (trunk.stem[0].weight, trunk.stages[2].blocks[0].mlp.fc1.weight, trunk.stages[3].blocks[0].conv_dw.weight, decoder.embed.weight, decoder.predict.weight):
            assert abs(weight.std().item() / (0.88 if std == 1 else 0.02) - 1) < 0.03  # cut at 2, which matters to a deviation of 1 only
        assert abs(trunk.stages[1].downsample[1].weight.std().item() / 0.02 - 1) < 0.03
        assert not trunk.stages[0].blocks[0].mlp.grn.weight.any() and not trunk.stem[0].bias.any()
        assert decoder.blocks[0].mlp.fc1.weight.std() < 0.1


def test_the_paper_and_what_is_refused():
    method = FCMAE()
    with torch.device("meta"):
        learner = method.build("convnextv2_base")
    assert learner.objectives["pixels"].decoder.embed.out_features == 512 and learner.masking.keep(49) == 19 and method.paper.batch_size == 4096
    assert isinstance(learner.encoder, ConvNeXt) and not learner.encoder.together
    with pytest.raises(Refused, match="ConvNeXt, and this is a VisionTransformer"):
        FCMAE().build("vit_tiny_patch16_224", (64, 64))
    with pytest.raises(ValueError, match="init_std"):
        FCMAE(init_std=0)
    assert FCMAE().build("convnextv2_atto", (64, 96))(pictures(2, 3, (64, 96)))["loss"].isfinite()
