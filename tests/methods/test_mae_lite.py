"""MAE-Lite against the official code's numbers: attention before the softmax, features, losses, gradients; D²-MAE's branch and stump."""

import pytest
import timm
import torch
from golden_files import check_gradients, names
from torch.testing import assert_close

from unmask.encoders.attention import products
from unmask.errors import Refused
from unmask.interchange.official import channel_first
from unmask.interchange.timm import Encoder
from unmask.methods import mae_lite
from unmask.methods.mae_lite import MAELite, sequences
from unmask.testing import SMALL, case_of, pictures
from unmask.testing import check_gradients as check_all_gradients

OFFICIAL = "wangsr126/MAE-Lite@"
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
TEACHER = "random:vit_tiny_patch16_224"
DECODER = {"decoder_embed.": "embed.", "decoder_blocks.": "blocks.", "decoder_norm.": "norm.", "decoder_pred.": "predict.", "mask_token": "mask_token"}


def under(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def trunk_of(config, width, depth, heads):
    words = {"img_size": config["img"], "patch_size": config["patch"], "embed_dim": width, "depth": depth, "num_heads": heads}
    return timm.create_model("vit_base_patch16_224", **words, num_classes=0, dynamic_img_size=True).eval()


def ours(official, config):
    """Official names to ours; the stump's values, which nobody asks for, fall away."""
    patch, found, lesson = (config["patch"],) * 2, {}, "objectives.pixels.also."
    depth = config["depth"] - config["d2"]
    for key, value in official.items():
        name, decoder = key.removeprefix("model."), next((row for row in DECODER if key.removeprefix("model.").startswith(row)), None)
        if key == "model.decoder_pos_embed":
            continue
        if name.startswith("decoder_pred."):
            value = channel_first(value, patch)
        if key.startswith("attn_adapter.adapter"):
            told = list(config["attn_idx"])
            found[f"{lesson}attention.{told.index(int(key.split('adapter')[2].split('.')[0]) + 1)}.weight"] = value
        elif key.startswith("hidden_adapter.adapter"):
            found[f"{lesson}features.{config['hidden_idx'].index(int(key.split('adapter')[2].split('.')[0]))}.weight"] = value
        elif decoder is not None:
            found["objectives.pixels.decoder." + DECODER[decoder] + name.removeprefix(decoder)] = value
        elif name.startswith(f"blocks.{depth}."):
            stump = name.removeprefix(f"blocks.{depth}.").replace("attn.qkv", "qk")
            found[f"{lesson}stump.{stump}"] = value[: 2 * config["dim"]] if "qk" in stump else value
        else:
            found["encoder.trunk." + name] = value
    return found


@pytest.fixture
def learner_of(monkeypatch):
    def made(tensors, config):
        teacher = trunk_of(config, config["tdim"], config["tdepth"], config["theads"])
        teacher.load_state_dict(under(tensors, "weights.tch_model."))
        found = Encoder(teacher, "vit", (config["img"],) * 2, 3, None, None, patch_size=(config["patch"],) * 2)
        monkeypatch.setattr(mae_lite, "frozen", lambda *told: mae_lite.Frozen(found, (config["patch"],) * 2))
        method = MAELite(
            teacher="of the file",
            mask_ratio=config["ratio"],
            attention=config["attn_alpha"],
            features=config["hidden_alpha"] if config["hidden_idx"] else 0.0,
            decoupled=config["d2"],
            branch=config["decode_idx"],
            decoder_width=config["ddim"],
            decoder_depth=config["ddepth"],
        )
        trunk = trunk_of(config, config["dim"], config["depth"] - config["d2"], config["heads"])
        attended = tuple(zip(config["std_attn_idx"] or config["attn_idx"], config["attn_idx"]))
        learner = method.build(trunk, decoder_heads=config["dheads"], attended=attended, matched=tuple((place, place) for place in config["hidden_idx"]))
        official = {key: value for key, value in under(tensors, "weights.").items() if not key.startswith("tch_model.")}
        missing, unexpected = learner.load_state_dict(ours(official, config), strict=False)
        assert not unexpected and all(".target." in key for key in missing), (missing, unexpected)
        return learner.eval()

    return made


@pytest.mark.golden
@pytest.mark.parametrize("name", names("mae_lite", "output.loss_attn", OFFICIAL))
def test_attention_features_losses_and_gradients_equal_the_official_code(golden, learner_of, name):
    tensors, metadata = golden(name)
    config = metadata["config"]
    learner, x = learner_of(tensors, config), tensors["input.images"]
    part = learner.objectives["pixels"]
    lesson, trunk = part.also, learner.encoder.trunk
    mask = learner.draw_mask(x, tensors["input.noise"])
    assert torch.equal(torch.cat([mask.visible_ids, mask.masked_ids], 1), tensors["output.ids_shuffle"])
    mine, theirs = (sequences(network(x, mask)) for network in (learner.encoder, lesson.outside[0]))
    for i, j in lesson.attended:
        assert_close(lesson.looks(trunk, mine, i), tensors[f"output.attn_student.{i}"], **CLOSE)
        assert_close(products(lesson.outside[0].trunk.blocks[j - 1], theirs[j - 1]), tensors[f"output.attn_teacher.{j}"], **CLOSE)
    for i, j in lesson.matched:
        assert_close(lesson.normed(trunk, mine, i), tensors[f"output.hidden_student.{i}"], **CLOSE)
        assert_close(lesson.normed(lesson.outside[0].trunk, theirs, j), tensors[f"output.hidden_teacher.{j}"], **CLOSE)
    loss = learner(x, mask=mask)["loss"]
    assert_close(loss, tensors["output.loss"], rtol=1e-6, atol=1e-6)
    part.also = None
    assert_close(learner(x, mask=mask)["loss"], tensors["output.loss_mae"], rtol=1e-6, atol=1e-6)
    part.also = lesson
    loss.backward()
    check_gradients(learner, ours(under(tensors, "grad."), config))


# ------------------------------------------------------------------------------------------------------ its own corners


def test_the_papers_sizes():
    learner = MAELite(teacher=TEACHER).build("vit_tiny_patch16_224", (64, 64), heads=12)
    decoder, lesson = learner.objectives["pixels"].decoder, learner.objectives["pixels"].also
    assert (decoder.mask_token.shape[-1], len(decoder.blocks), decoder.blocks[0].attn.num_heads) == (96, 1, 3)
    assert learner.objectives["pixels"].through.block == 8 and lesson.attended == ((13, 12),) and len(learner.encoder.trunk.blocks) == 12
    assert lesson.attention[0].weight.shape == (3, 12, 1, 1) and not lesson.matched


@pytest.mark.parametrize("settings", [{}, {"decoupled": False}, {"decoupled": False, "attention": 0.0, "features": 1.0}, {"decoupled": False, "attention": 0.0}])
def test_every_form_trains_all_that_it_has(settings):
    check_all_gradients(case_of(MAELite(teacher=TEACHER, **settings)))


def test_the_teacher_sees_only_what_the_student_sees():
    learner, x = MAELite(teacher=TEACHER).build(**SMALL, img_size=(32, 32)).eval(), pictures(2)
    mask = learner.draw_mask(x, torch.rand(2, 16))
    lesson, kept = learner.objectives["pixels"].also, []
    lesson.outside[0].trunk.blocks[0].register_forward_pre_hook(lambda block, inputs: kept.append(inputs[0].shape))
    learner(x, mask=mask)
    assert kept == [(2, 1 + mask.visible_ids.shape[1], 192)]
    assert not [name for name, _ in learner.named_parameters() if "target" in name or "outside" in name]


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match=r"--method\.teacher ENCODER"):
        MAELite().build(**SMALL, img_size=(32, 32))
    with pytest.raises(ValueError, match="decoupled"):
        MAELite(attention=0.0)
    with pytest.raises(Refused, match="SwinTransformer as teacher"):
        MAELite(teacher="random:swin_tiny_patch4_window7_224").build(**SMALL, img_size=(32, 32))
    with pytest.raises(Refused, match="has 0 class and register tokens, the student 1"):
        MAELite(teacher="random:vit_base_patch16_gap_224").build(**SMALL, img_size=(32, 32))
