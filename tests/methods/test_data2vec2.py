"""data2vec 2.0 against the official code's numbers: features, decoder, target, loss, gradients, teacher, mask law."""

import pytest
import timm
import torch
from golden_files import check_gradients, names
from torch.testing import assert_close

from unmask import seeds
from unmask.encoders.build import create_trunk
from unmask.errors import Refused
from unmask.mask import Mask
from unmask.masking import InverseBlock
from unmask.methods.data2vec2 import Data2Vec2
from unmask.testing import SMALL, case_of, check_graph, check_leak

OFFICIAL = "facebookresearch/fairseq@"
CLOSE = {"rtol": 1e-5, "atol": 4e-6}
IMAGE = "modality_encoders.IMAGE."


def trunk(official: dict, prenet: int) -> dict:
    """The official encoder's names as timm's."""
    table = {"local_encoder.": "patch_embed.", "extra_tokens": "cls_token", "fixed_positional_encoder.positions": "pos_embed", "context_encoder.norm.": "norm_pre."}
    table = {IMAGE + theirs: name for theirs, name in table.items()} | {IMAGE + "context_encoder.blocks.": "blocks."}
    found = {}
    for key, value in official.items():
        if key.startswith("blocks."):
            number, _, rest = key.removeprefix("blocks.").partition(".")
            found[f"blocks.{int(number) + prenet}.{rest}"] = value
        elif not key.startswith(IMAGE + "decoder."):
            row = next(theirs for theirs in table if key.startswith(theirs))
            found[table[row] + key[len(row) :]] = value
    return found


def ours(official: dict, prenet: int) -> dict:
    found = {"encoder.trunk." + key: value for key, value in trunk(official, prenet).items()}
    for key, value in official.items():
        if key.startswith(IMAGE + "decoder."):
            name = key.removeprefix(IMAGE + "decoder.").replace("proj.", "predict.").replace("blocks.", "layers.").replace(".0.weight", ".weight").replace(".0.bias", ".bias")
            found["objectives.features.decoder." + name] = value
    return found


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_of(tensors, config):
    rows = len(tensors["input.mask"])
    words = {"img_size": config["img_size"], "patch_size": config["patch_size"], "embed_dim": config["embed_dim"], "num_heads": config["num_heads"]}
    words |= {"depth": config["prenet_depth"] + config["depth"], "mlp_ratio": config["mlp_ratio"], "num_classes": 0, "dynamic_img_size": True}
    method = Data2Vec2(
        mask_ratio=config["mask_prob"],
        masks=config["clone_batch"],
        top=config["top_k"],
        momentum=config["ema_decay"],
        momentum_end=config["ema_end_decay"],
        cls_weight=config["cls_loss"] * rows,  # the official term is a sum over rows
        decoder_kernel=config["decoder_kernel"],
        decoder_layers=config["decoder_layers"],
    )
    learner = method.build(timm.create_model("data2vec2_base_patch16_224", **words))
    decoder = learner.objectives["features"].decoder
    for i, layer in enumerate(decoder.layers):  # the golden file's groups
        decoder.layers[i] = torch.nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding, groups=config["decoder_groups"])
    missing, unknown = learner.load_state_dict(ours(part(tensors, "weights.student."), config["prenet_depth"]), strict=False)
    assert not unknown and all(".target." in key for key in missing)
    learner.objectives["features"].target.copy.trunk.load_state_dict(trunk(part(tensors, "weights.teacher."), config["prenet_depth"]))
    mask = tensors["input.mask"].bool()
    order = mask.int().argsort(dim=1, stable=True)  # visible first, raster order
    seen = int((~mask[0]).sum())
    side = config["img_size"] // config["patch_size"]
    mask = Mask(order[:, :seen], order[:, seen:], (side, side))
    decoder.fill = lambda like: mask.masked(tensors["input.decoder_noise"])
    return learner, mask


@pytest.mark.golden
@pytest.mark.parametrize("name", names("data2vec2", "output.encoder_out", OFFICIAL))
def test_prediction_target_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner, mask = learner_of(tensors, config)
    x, target = tensors["input.image"], learner.objectives["features"].target
    found = learner.predict(x, mask, "features")
    assert_close(torch.cat([found["features"].prefix, found["features"].patches], 1), tensors["output.encoder_out"], **CLOSE)
    assert_close(found["prediction"], mask.masked(tensors["output.decoder_out"]), **CLOSE)
    for i, layer in enumerate(target.copy(x).layers):
        assert_close(layer, tensors[f"output.teacher_layer{i + config['depth'] - config['top_k']}"], **CLOSE)
    assert_close(target(x), tensors["output.targets_all"], **CLOSE)
    loss = learner(x, mask=mask)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    check_gradients(learner, ours(part(tensors, "grad."), config["prenet_depth"]))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("data2vec2", "output.encoder_out", OFFICIAL))
def test_the_teacher_moves_as_the_official_one(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner, _ = learner_of(tensors, config)
    target = learner.objectives["features"].target
    steps = config["ema_anneal_end_step"] / target.momentum.until  # a run of this length reaches the last value there
    for update, decay in enumerate(tensors["output.ema_decays"].tolist(), 1):
        assert float(target.momentum.at(update / steps, target.steps)) == pytest.approx(decay, abs=1e-7)
        learner.after_step(update / steps)
    after = target.copy.trunk.state_dict()
    for key, value in trunk(part(tensors, "output.teacher_after_two_updates."), config["prenet_depth"]).items():
        assert_close(after[key], value, **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("data2vec2_masklaw", "law.", OFFICIAL))
def test_squares_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    said, draws = metadata["config"], 10_000
    grid = (said["grid"],) * 2
    masking = InverseBlock(said["mask_prob"], said["mask_length"], said["mask_prob_adjust"])
    maps = masking(grid, seeds.uniform((draws, masking.draws(grid)), 3, "law")).map
    assert (maps.sum(1) == int(tensors["law.masked_count"])).all()
    maps, share = maps.unflatten(1, grid).float(), tensors["law.marginal"]
    assert (maps.mean(0) - share).abs().max() < 4.6 * (share * (1 - share) * (1 / draws + 1 / said["draws"])).sqrt().max()
    kept = 1 - maps
    assert abs((kept[:, 1:] * kept[:, :-1]).sum() / kept[:, :-1].sum() - tensors["law.p_below_kept_given_kept"]) < 0.01
    assert abs((kept[:, :, 1:] * kept[:, :, :-1]).sum() / kept[:, :, :-1].sum() - tensors["law.p_right_kept_given_kept"]) < 0.01


@pytest.mark.golden
@pytest.mark.parametrize("name", names("data2vec2_masklaw", "output.ema_decay_base", OFFICIAL))
def test_the_papers_momentum(golden, name):
    """Of the paper's length the shares of the run give the paper's numbers."""
    tensors, _ = golden(name)
    momentum = Data2Vec2().build(**SMALL, img_size=(32, 32)).objectives["features"].target.momentum
    for update, decay in zip(tensors["input.ema_steps"].tolist(), tensors["output.ema_decay_base"].tolist()):
        assert float(momentum.at(update / 375_300, torch.tensor(375_300.0, dtype=torch.float64))) == pytest.approx(0.9998 + decay * 1e-5, abs=4e-6)


# ------------------------------------------------------------------------------------------------------ its own corners


def test_the_papers_sizes():
    with torch.device("meta"):
        learner = Data2Vec2().build()
    part = learner.objectives["features"]
    assert part.target.copy.layers == tuple(range(2, 12)) and learner.masks == 16 and part.decoder.layers[0].groups == 16
    assert learner.masking.keep(196) == 39 and learner.masking.squares(196) == 5
    assert learner.encoder.trunk.patch_embed.proj.bias is not None and not learner.encoder.trunk.pos_embed.requires_grad


def test_over_the_papers_blocks():
    case = case_of(Data2Vec2(masks=2, decoder_noise=0), model="data2vec2_tiny_patch16_224")
    check_leak(case)
    check_graph(case)
    own = create_trunk("data2vec2_tiny_patch16_224", (32, 32), 3, 8, 48, 2, 3)
    assert own.unmask_kwargs["model"] == "data2vec2_tiny_patch16_224" and len(own.blocks) == 2


def test_noise_stands_in_hidden_places_while_training_only():
    decoder = Data2Vec2().build(**SMALL, img_size=(32, 32)).objectives["features"].decoder
    like = torch.zeros(2, 50, 48)
    assert 0.009 < decoder.train().fill(like).std() < 0.011 and not decoder.eval().fill(like).any()


def test_other_blocks_are_refused():
    for model in ("beit_base_patch16_224", "eva02_tiny_patch14_224"):
        with pytest.raises(Refused, match="plain blocks"):
            Data2Vec2().build(**SMALL | {"model": model}, img_size=(32, 32))
