"""Pixio against the official code's numbers: features, predictions, loss, gradients, mask law; published names both ways."""

import pytest
import timm
import torch
from golden_files import check_gradients, keys, names
from torch.testing import assert_close

from unmask import seeds
from unmask.errors import Refused
from unmask.interchange import papers
from unmask.masking import Random
from unmask.methods.pixio import Pixio
from unmask.patches import patchify, unpatchify
from unmask.testing import SMALL, case_of, check_leak, pictures

OFFICIAL = "facebookresearch/pixio@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_of(tensors, config):
    words = {"img_size": config["img_size"], "patch_size": config["patch_size"], "embed_dim": config["embed_dim"], "depth": config["depth"], "num_heads": config["num_heads"]}
    words |= {"mlp_ratio": config["mlp_ratio"], "reg_tokens": config["n_cls_tokens"] - 1, "dynamic_img_size": True, "num_classes": 0}
    sizes = {"decoder_width": config["decoder_embed_dim"], "decoder_depth": config["decoder_depth"], "decoder_heads": config["decoder_num_heads"]}
    method = Pixio(mask_ratio=config["mask_ratio"], cell=config["mask_grid"], norm_pix=config["norm_pix_loss"], **sizes)
    learner = method.build(timm.create_model("vit_base_patch16_224", **words), mlp_ratio=config["mlp_ratio"])
    ours, left = papers.PIXIO.ours(part(tensors, "weights."))
    assert not left
    learner.load_state_dict(ours)  # strict
    return learner


@pytest.mark.golden
@pytest.mark.parametrize("name", names("pixio", "output.latent", OFFICIAL))
def test_prediction_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    learner, x = learner_of(tensors, metadata["config"]), tensors["input.image"]
    patch, noise = learner.encoder.patch, tensors["input.noise"]
    mask = learner.draw_mask(x, noise)
    assert torch.equal(mask.map, tensors["output.mask"].bool())
    assert torch.equal(torch.cat([mask.visible_ids, mask.masked_ids], 1).argsort(1), tensors["output.ids_restore"])
    found = learner.predict(x, mask)
    assert_close(torch.cat([found["features"].prefix, found["features"].patches], 1), tensors["output.latent"], **CLOSE)
    theirs = tensors["output.pred"]  # (B, N, p·p·C), channel last
    theirs = patchify(unpatchify(theirs.unflatten(-1, (*patch, -1)).permute(0, 1, 4, 2, 3).flatten(2), mask.grid, patch), patch)
    assert_close(found["prediction"], mask.masked(theirs), **CLOSE)
    loss = learner(x, noise=noise)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    gradients = part(tensors, "grad.")
    assert "patch_embed.proj.weight" in gradients  # which says the patch
    ours = papers.PIXIO.ours(gradients)[0]
    cls, registers = (learner.get_parameter(f"encoder.trunk.{name}").grad for name in ("cls_token", "reg_token"))
    assert_close(torch.cat([cls, registers], 1), gradients["cls_token"], **CLOSE)
    check_gradients(learner, ours)


@pytest.mark.golden
@pytest.mark.parametrize("name", names("pixio_masklaw", "law.", OFFICIAL))
def test_squares_follow_the_official_law(golden, name):
    tensors, metadata = golden(name)
    said, draws = metadata["config"], 8000
    grid = (said["grid"],) * 2
    masking = Random(said["mask_ratio"], said["mask_grid"])
    maps = masking(grid, seeds.uniform((draws, masking.draws(grid)), 5, "law")).map
    assert (maps.sum(1) == int(tensors["law.masked_count"])).all()
    maps, share = maps.unflatten(1, grid).float(), tensors["law.marginal"]
    assert (maps.mean(0) - share).abs().max() < 4.6 * (share * (1 - share) * (1 / draws + 1 / said["draws"])).sqrt().max()
    assert abs((maps[:, :, 1:] * maps[:, :, :-1]).sum() / maps[:, :, :-1].sum() - tensors["law.p_right_given_masked"]) < 0.01
    examples = tensors["law.examples"].reshape(-1, 1, *grid).float()
    squares = torch.nn.functional.avg_pool2d(examples, said["mask_grid"])
    assert ((squares == 0) | (squares == 1)).all()


def test_published_names_are_ours_both_ways():
    published = keys("pixio_pretrain_h16")
    with torch.device("meta"):
        learner = Pixio(decoder_depth=32).build()
    shapes = lambda state: {key: tuple(value.shape) for key, value in state.items()}  # noqa: E731
    ours, left = papers.PIXIO.ours({key: torch.empty(shape, device="meta") for key, shape in published.items()})
    assert not left and shapes(ours) == shapes(learner.state_dict())
    assert shapes(papers.PIXIO.theirs(learner.state_dict(), learner.encoder.patch)) == published


# ------------------------------------------------------------------------------------------------------ its own corners


def test_the_papers_sizes():
    with torch.device("meta"):
        learner = Pixio().build()
    trunk, decoder = learner.encoder.trunk, learner.objectives["pixels"].decoder
    assert (trunk.num_prefix_tokens, trunk.pos_embed.shape[1], trunk.pos_embed.requires_grad) == (8, 264, True)
    assert (len(decoder.blocks), decoder.places.shape, decoder.blocks[0].attn.num_heads) == (32, (1, 264, 512), 16)
    assert learner.masking.cell == 4 and learner.masking.keep(16) == 4 and trunk.blocks[-1].drop_path1.drop_prob == pytest.approx(0.4)


@pytest.mark.parametrize(("grid", "side"), [((16, 16), 4), ((14, 14), 2), ((8, 8), 2), ((7, 7), 1), ((12, 12), 3), ((16, 32), 4), ((6, 8), 1)])
def test_squares_on_small_pictures(grid, side):
    assert Pixio().side(grid) == side


def test_pictures_of_another_size_find_their_places():
    learner = Pixio(cls_tokens=3, cell=2).build(**SMALL, img_size=(32, 32)).eval()
    decoder = learner.objectives["pixels"].decoder
    prefix, places = decoder.placed((4, 6))
    assert prefix.shape == (1, 3, 32) and places.shape == (1, 24, 32)
    assert torch.equal(decoder.placed((4, 4))[1], decoder.places[:, 3:]) and learner(pictures(2, 3, (32, 48)))["loss"].isfinite()


def test_over_a_network_without_a_class_token():
    check_leak(case_of(Pixio(cell=1), model="vit_medium_patch16_gap_256"))


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match="squares of 4x4"):
        Pixio(cell=4).build(**SMALL | {"patch_size": 16}, img_size=(224, 224))
    with pytest.raises(Refused, match="class tokens"):
        Pixio().build(**SMALL | {"model": "beit_base_patch16_224"}, img_size=(32, 32))
    with pytest.raises(ValueError, match="cls_tokens"):
        Pixio(cls_tokens=0)
