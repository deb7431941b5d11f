"""BootMAE against the official code's numbers: mask, predictions, target, losses, gradients, a step and its teacher, mask law; published names."""

import pytest
import timm
import torch
from golden_files import check_gradients, keys, names
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.interchange import bootmae
from unmask.interchange.encoder import load_encoder
from unmask.load import load
from unmask.mask import Mask
from unmask.masking import Random
from unmask.methods.bootmae import BootMAE, Growing, RolledBlocks, surrounded
from unmask.patches import patchify
from unmask.targets.teacher import Rising
from unmask.testing import SMALL, case_of, check_leak, check_masking, pictures
from unmask.visualize.reconstruction import reconstruct

OFFICIAL = "LightDXY/BootMAE@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_of(tensors, config):
    words = {"img_size": config["img_size"], "patch_size": config["patch_size"], "embed_dim": config["embed_dim"], "depth": config["depth"]}
    words |= {"num_heads": config["num_heads"], "mlp_ratio": config["mlp_ratio"], "dynamic_img_size": True, "num_classes": 0}
    method = BootMAE(
        decoder_width=config["decode_dim"],
        decoder_depth=config["decoder_depth"],
        weight_mask=config["weight_mask"],
        feature_weight=config["feature_weight"],
        momentum=config["model_ema_decay"],
    )
    learner = method.build(timm.create_model("vit_base_patch16_224", **words), mlp_ratio=config["mlp_ratio"], layers=tuple(config["fea_list"]))
    weights = part(tensors, "weights.student.")
    table = learner.encoder.trunk.pos_embed.clone()
    ours, left = bootmae.ours(weights)
    missing, unknown = learner.load_state_dict(ours, strict=False)
    assert not left and not unknown and all(".target." in key or key.endswith("share") for key in missing)
    teacher, _ = bootmae.trunk(part(tensors, "weights.teacher."))
    learner.objectives["features"].predict.target.copy.trunk.load_state_dict(teacher)
    assert_close(table, weights["pos_embed"], rtol=0, atol=1e-6)
    assert_close(learner.objectives["pixels"].decoder.places, weights["de_pos_embed"][:, 1:], rtol=0, atol=1e-6)
    return learner


def mask_in(tensors, config):
    """The official order of places, whose last ones are hidden."""
    order, side = tensors["output.idx_shuffle"], config["img_size"] // config["patch_size"]
    seen = order.shape[1] - config["mask_num"]
    return Mask(order[:, :seen], order[:, seen:], (side, side))


@pytest.mark.golden
@pytest.mark.parametrize("name", names("bootmae", "output.pred_features", OFFICIAL))
def test_predictions_losses_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner, x, mask = learner_of(tensors, config), tensors["input.image"], mask_in(tensors, config)
    assert_close(learner.predict(x, mask)["prediction"], mask.masked(patchify(tensors["output.pred_pixels"], learner.encoder.patch)), **CLOSE)
    features = learner.objectives["features"].predict
    with torch.no_grad():
        assert_close(features.decoder(learner.encoder(x, mask), mask), mask.masked(tensors["output.pred_features"]), **CLOSE)
        assert_close(features.target.copy(x).layers[-1], tensors["output.teacher_features"], **CLOSE)
    share = min(4 * config["feature_weight"] * (1 + config["epoch"]) / config["epochs"], config["feature_weight"])
    learner.objectives["features"].share.fill_(share)
    losses = learner(x, mask=mask)
    assert_close(losses["pixels"], tensors["output.loss_pixel"], rtol=1e-6, atol=1e-6)
    assert_close(losses["features"], share * tensors["output.loss_feature"], rtol=1e-6, atol=1e-6)
    assert_close(losses["loss"], tensors["output.loss"], rtol=1e-6, atol=1e-6)
    losses["loss"].backward()
    check_gradients(learner, bootmae.ours(part(tensors, "grad."))[0])
    torch.optim.SGD([value for value in learner.parameters() if value.requires_grad], lr=config["sgd_lr"]).step()
    for prefix, trunk in (("student_after_step", learner.encoder.trunk), ("teacher_after_ema", features.target.copy.trunk)):
        if prefix == "teacher_after_ema":
            decay = Rising(config["model_ema_decay"]).at(config["epoch"] / 800, torch.tensor(1.0))  # knees at 100 and 400 of 800
            assert decay == pytest.approx(tensors["output.ema_decay"].item(), abs=1e-6)
            features.target.follow(learner.encoder, config["epoch"] / 800)
        after, official = trunk.state_dict(), part(tensors, f"output.{prefix}.")
        for key, value in official.items():
            found = after[key.replace("q_bias", "qkv.bias")][: len(value)] if key.endswith("q_bias") else after[key]
            assert_close(found, value, **CLOSE)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("bootmae_law", "law.final_marginal", OFFICIAL))
def test_blocks_and_teacher_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    said, side, rounds = metadata["config"], metadata["config"]["grid"], 16
    masking, N = RolledBlocks(said["mask_num"] / side**2, said["num_mask_patches"] / said["mask_num"]), side**2
    maps, whole, kept = [], [], []
    for turn in range(rounds):
        masking.prepare(0.0, (turn % 4 + 0.5) / 4 / 4096)
        noise = torch.rand(500, masking.draws((side, side)), generator=torch.Generator().manual_seed(turn))
        mask = masking((side, side), noise)
        turned, masking.turn = masking.turn, 0
        assert turned == turn % 4
        unturned = masking((side, side), noise)
        covered = unturned.masked_ids[:, -said["num_mask_patches"] :]  # the highest: those of rectangles
        whole.append(torch.zeros(500, N).scatter(1, covered, 1.0))
        kept.append((whole[-1] * mask.map).sum(1))
        maps.append(mask.map.float())
        assert (mask.map.sum(1) == said["mask_num"]).all()
    for found, key in ((whole, "law.block_marginal"), (maps, "law.final_marginal")):
        share, draws = tensors[key].flatten(), 500 * rounds
        assert (torch.cat(found).mean(0) - share).abs().max() < 4.6 * (share * (1 - share) * (1 / draws + 1 / said["draws"])).sqrt().max() + 0.004
    official = tensors["law.block_cells_in_final_histogram"] / said["draws"]
    counts = torch.bincount(torch.cat(kept).long(), minlength=len(official)) / (500 * rounds)
    assert (counts.cumsum(0) - official.cumsum(0)).abs().max() < 0.02
    for epoch, offset in zip(tensors["input.epochs"].tolist(), tensors["output.ema_decay_dynamic_minus_start_x1e6"].tolist()):
        start = said["model_ema_decay"]
        assert Rising(start).at(epoch / 800, torch.tensor(1.0)) == pytest.approx(start + offset * 1e-6, abs=2e-8)
        assert float(Rising().at(epoch / 800, torch.tensor(500_000.0, dtype=torch.float64))) == pytest.approx(start + offset * 1e-6, abs=2e-6)


@pytest.mark.parametrize("size", ["base", "large"])
def test_published_names_are_ours_both_ways(size):
    published = keys(f"bootmae_{size}")
    state = {key: torch.empty(shape, device="meta") for key, shape in published.items()}
    with torch.device("meta"):
        learner = BootMAE(decoder_width=512).build(f"vit_{size}_patch16_224")
    shapes = lambda state: {key: tuple(value.shape) for key, value in state.items()}  # noqa: E731
    ours, left = bootmae.ours(state)
    own = {key: value for key, value in learner.state_dict().items() if ".target." not in key and not key.endswith("share")}
    assert not left and shapes(ours) == shapes(own)
    assert shapes(bootmae.theirs(own)) | {"de_pos_embed": published["de_pos_embed"]} == published
    assert bootmae.tells(state)


def test_its_files_give_encoder_and_learner(tmp_path, capsys):
    torch.manual_seed(0)
    made = BootMAE(decoder_width=32).build("vit_tiny_patch16_224", (32, 32), 3, 8, width=64, depth=3, heads=1).eval()
    for name, value in made.named_parameters():
        if name.endswith("kv.bias"):
            value.data.normal_()  # those of keys are lost on the way, and change nothing
    torch.save({"model": bootmae.theirs(made.state_dict()), "epoch": 3}, tmp_path / "checkpoint.pth")
    x, noise = pictures(2), torch.rand(2, made.draws(pictures(2)))
    assert_close(load(tmp_path / "checkpoint.pth")(x, noise)["pixels"], made(x, noise)["pixels"], rtol=1e-5, atol=1e-6)
    opened = load_encoder(tmp_path / "checkpoint.pth")
    with torch.no_grad():
        assert_close(opened.model.forward_features(x), made.encoder.trunk.forward_features(x), rtol=1e-5, atol=1e-5)
    assert "left out" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ its own corners


def test_the_papers_sizes():
    with torch.device("meta"):
        learner = BootMAE().build()
    pixels, features = learner.objectives["pixels"].decoder, learner.objectives["features"].predict.decoder
    assert learner.encoder.layers == (0, 6) and (len(pixels.blocks), len(features.blocks)) == (2, 2)
    assert pixels.blocks[0].attn.q.out_features == 504 and features.embed.out_features == 768
    mask = learner.masking((14, 14), torch.rand(2, learner.masking.draws((14, 14))))
    assert mask.masked_ids.shape == (2, 147)


def test_masks_keep_the_contract():
    for grid in ((14, 14), (4, 6), (8, 8)):
        check_masking(RolledBlocks(), grid)
    assert {(masking.prepare(0, u / 97), masking.turn)[1] for masking in [RolledBlocks()] for u in range(97)} == {0, 1, 2, 3}


def test_patches_amid_hidden_ones_count_double():
    hidden = torch.ones(1, 5, 5, dtype=torch.bool)
    hidden[0, 0, 0] = False
    order = hidden.flatten(1).int().argsort(dim=1, stable=True)
    found = surrounded(Mask(order[:, :1], order[:, 1:], (5, 5)))
    weight = dict(zip(order[0, 1:].tolist(), found[0].tolist()))
    assert weight[12] == pytest.approx(2) and weight[4] == pytest.approx(1 + 4 / 9) and weight[6] == pytest.approx(1 + 8 / 9)


def test_the_feature_loss_grows():
    learner = BootMAE(feature_weight=2.0).build(**SMALL, img_size=(32, 32))
    growing = learner.objectives["features"]
    assert isinstance(growing, Growing) and float(growing.share) == pytest.approx(0.01)
    for progress, weight in ((0.125, 1.01), (0.25, 2.0), (1.0, 2.0)):
        learner.after_step(progress)
        assert float(growing.share) == pytest.approx(weight)


def test_over_other_networks_and_drawn():
    for model in ("vit_medium_patch16_gap_256", "beit_base_patch16_224", "vit_small_patch16_rope_224"):
        check_leak(case_of(BootMAE(), model=model, patch_size=4))
    learner = BootMAE().build(**SMALL | {"patch_size": 4}, img_size=(32, 32))
    learner.masking = Random(0.5)
    x = pictures(2)
    assert "channel by channel" in reconstruct(learner, x).said
    answer = reconstruct(learner, x, statistics="truth")
    target = learner.objectives["pixels"].target
    normed = target(x)
    assert normed.unflatten(-1, (3, 16)).mean(-1).abs().max() < 1e-5 and answer.pasted.isfinite().all()
    raw = patchify(x, (4, 4))
    assert_close(target.restore(normed, *target.statistics(raw)), raw, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match="decoder_width 30"):
        BootMAE(decoder_width=30).build(**SMALL, img_size=(32, 32))
    with pytest.raises(Refused, match="no inner layers"):
        BootMAE().build("swin_tiny_patch4_window7_224")
    with pytest.raises(ValueError, match="feature_weight"):
        BootMAE(feature_weight=0)
