"""CrossMAE against the official code's numbers: features, mixtures, predictions, loss, gradients; published names both ways."""

import pytest
import timm
import torch
from golden_files import check_gradients, keys, names
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.interchange import papers
from unmask.mask import Mask
from unmask.masking import Random
from unmask.methods.crossmae import CrossMAE
from unmask.patches import unpatchify
from unmask.testing import SMALL, case_of, check_leak, pictures

OFFICIAL = "TonyLianLong/CrossMAE@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
PUBLISHED = {"small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def learner_of(tensors, config):
    words = {"img_size": config["img_size"], "patch_size": config["patch_size"], "embed_dim": config["embed_dim"], "depth": config["depth"]}
    words |= {"num_heads": config["num_heads"], "mlp_ratio": config["mlp_ratio"], "dynamic_img_size": True, "num_classes": 0}
    sizes = {"decoder_width": config["decoder_embed_dim"], "decoder_depth": config["decoder_depth"], "decoder_heads": config["decoder_num_heads"]}
    method = CrossMAE(mask_ratio=config["mask_ratio"], predicted=config["kept_mask_ratio"], norm_pix=config["norm_pix_loss"], use_input=config["use_input"], **sizes)
    learner = method.build(timm.create_model("vit_base_patch16_224", **words), mlp_ratio=config["mlp_ratio"])
    weights = part(tensors, "weights.")
    ours, left = papers.CROSSMAE.ours(weights)
    assert not left
    learner.load_state_dict(ours | papers.CROSSMAE.neutral(ours))  # strict
    assert_close(learner.objectives["pixels"].decoder.places, weights["decoder_pos_embed"][:, 1:], rtol=0, atol=1e-7)
    return learner


@pytest.mark.golden
@pytest.mark.parametrize("name", names("crossmae", "output.mixed_features", OFFICIAL))
def test_prediction_loss_and_gradients_equal_the_official_code(golden, name):
    tensors, metadata = golden(name)
    learner, x = learner_of(tensors, metadata["config"]), tensors["input.image"]
    patch = learner.encoder.patch
    mask = learner.draw_mask(x, tensors["input.noise"])
    assert torch.equal(mask.map, tensors["output.predict_mask"].bool())
    found = learner.predict(x, mask)
    features, decoder = found["features"], learner.objectives["pixels"].decoder
    assert_close(torch.cat([features.prefixes[-1], features.layers[-1]], 1), tensors["output.feature_last"], **CLOSE)
    layers = torch.stack([torch.cat(both, 1) for both in zip(features.prefixes, features.layers)], -1)
    assert_close(decoder.mix(layers), tensors["output.mixed_features"], **CLOSE)
    raster = mask.masked_ids.argsort(1)
    for ours, theirs in (("prediction", "output.pred"), ("truth", "output.target")):
        rows = found[ours].gather(1, raster.unsqueeze(-1).expand_as(found[ours]))  # in raster order
        pixels = unpatchify(rows.reshape(-1, 1, rows.shape[-1]), (1, 1), patch).movedim(1, -1).reshape(rows.shape)  # channel last, as theirs
        assert_close(pixels, tensors[theirs], **CLOSE)
    loss = learner(x, noise=tensors["input.noise"])["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    sized = {"patch_embed.proj.weight": tensors["weights.patch_embed.proj.weight"]} | part(tensors, "grad.")
    check_gradients(learner, {key: value for key, value in papers.CROSSMAE.ours(sized)[0].items() if "patch_embed" not in key or "grad.patch_embed.proj.weight" in tensors})


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_names_are_ours_both_ways(size):
    published = keys(f"crossmae_vit_{size}")
    width, heads = PUBLISHED[size]
    decoder = published["mask_token"][-1]
    with torch.device("meta"):
        learner = CrossMAE(decoder_width=decoder, decoder_depth=12).build(
            "vit_base_patch16_224" if size != "huge" else "vit_huge_patch14_224", (224, 224), width=width, heads=heads, depth=published["wfm.linear.weight"][1] - 1
        )
    shapes = lambda state: {key: tuple(value.shape) for key, value in state.items()}  # noqa: E731
    ours, left = papers.CROSSMAE.ours({key: torch.empty(shape, device="meta") for key, shape in published.items()})
    assert not left and shapes(ours | papers.CROSSMAE.neutral(ours)) == shapes(learner.state_dict())
    assert shapes(papers.CROSSMAE.theirs(learner.state_dict(), learner.encoder.patch)) | {"decoder_pos_embed": published["decoder_pos_embed"]} == published


# ------------------------------------------------------------------------------------------------------ its own corners


def test_the_papers_sizes():
    with torch.device("meta"):
        learner = CrossMAE().build()
    decoder = learner.objectives["pixels"].decoder
    assert (decoder.mask_token.shape[-1], len(decoder.blocks), decoder.blocks[0].cross_attn.heads) == (512, 12, 16)
    assert decoder.mix.weight.shape == (12, 13) and not learner.encoder.trunk.norm.weight.requires_grad
    assert CrossMAE.paper.base_lr == pytest.approx(1.5e-4 * 0.25 / 0.75)


@pytest.mark.parametrize(("ratio", "predicted", "counts"), [(0.75, 0.25, (49, 98, 49)), (0.75, 0.75, (49, 0, 147)), (0.5, 0.75, (98, 0, 98)), (0.75, 0.001, (49, 146, 1))])
def test_how_many_are_seen_hidden_and_predicted(ratio, predicted, counts):
    mask = Random(ratio, predicted=predicted)((14, 14), torch.rand(2, 196))
    seen, asked = mask.visible_ids.shape[1], mask.masked_ids.shape[1]
    assert (seen, 196 - seen - asked, asked) == counts
    assert not (mask.map & torch.zeros_like(mask.map).scatter(1, mask.visible_ids, True)).any()


def test_an_answer_does_not_depend_on_what_else_is_asked():
    learner = CrossMAE().build(**SMALL | {"patch_size": 4}, img_size=(32, 32)).eval()
    x = pictures(2)
    mask = learner.draw_mask(x)
    few = Mask(mask.visible_ids, mask.masked_ids[:, :3], mask.grid)
    assert_close(learner.predict(x, few)["prediction"], learner.predict(x, mask)["prediction"][:, :3])


def test_over_networks_without_a_class_token_and_over_a_beit():
    for model in ("vit_medium_patch16_gap_256", "beit_base_patch16_224", "vit_small_patch16_rope_224", "vit_small_patch14_reg4_dinov2"):
        check_leak(case_of(CrossMAE(use_input=False), model=model, patch_size=4))


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match="no inner layers"):
        CrossMAE().build("swin_tiny_patch4_window7_224")
    with pytest.raises(Refused, match="decoder_heads 5"):
        CrossMAE(decoder_heads=5).build(**SMALL, img_size=(32, 32))
    with pytest.raises(ValueError, match="predicted"):
        CrossMAE(predicted=1.5)
