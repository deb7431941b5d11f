"""Feature distillation against a short reference from the facts of SwinTransformer/Feature-Distillation, and the verb that begins it."""

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import unmask
from unmask import cli
from unmask.encoders.build import create_trunk
from unmask.errors import Refused
from unmask.interchange.encoder import save_encoder
from unmask.methods.distill import Distill
from unmask.testing import SMALL, case_of, pictures
from unmask.testing import check_gradients as check_all_gradients

TEACHER = "random:vit_tiny_patch16_224"
TINY = {"model": "vit_tiny_patch16_224", "width": 48, "depth": 1, "heads": 3, "img_size": (32, 32), "patch_size": 8, "steps": 2, "batch_size": 4, "workers": 0}


def test_the_loss_is_the_officials():
    """One 1×1 convolution over all tokens, the class token too; a layer norm without scale and shift on the teacher's; smooth L1 of beta 2, a mean of all numbers."""
    learner, x = Distill(teacher=TEACHER).build(**SMALL, img_size=(32, 48)), pictures(3, 3, (32, 48))
    part, features = learner.objectives["features"], learner.encoder(x)
    decoder = nn.Conv1d(48, 192, 1)
    decoder.load_state_dict({"weight": part.predict.weight.unsqueeze(-1), "bias": part.predict.bias})
    said = decoder(torch.cat([features.prefix, features.patches], 1).permute(0, 2, 1)).permute(0, 2, 1)
    truth = nn.LayerNorm(192, elementwise_affine=False)(part.target.outside[0].forward_features(part.target.sight(x)))
    assert_close(learner(x)["loss"], nn.SmoothL1Loss(beta=2.0)(said, truth), rtol=1e-5, atol=1e-6)
    assert said.shape == (3, 25, 192)


def test_the_teacher_is_asked_once():
    learner, looks = Distill(teacher=TEACHER).build(**SMALL, img_size=(32, 32)), []
    learner.objectives["features"].target.outside[0].blocks[0].register_forward_pre_hook(lambda *given: looks.append(1))
    learner(pictures(2))
    assert len(looks) == 1 and not [name for name, _ in learner.named_parameters() if "target" in name]


@pytest.mark.parametrize(
    ("teacher", "model"),
    [
        ("random:swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"),
        ("random:hiera_tiny_224", "vit_tiny_patch16_224"),
        ("random:convnextv2_atto", "vit_tiny_patch16_224"),
        ("random:vit_base_patch16_gap_224", "vit_tiny_patch16_224"),
        (TEACHER, "vit_medium_patch16_gap_256"),
        (TEACHER, "beit_base_patch16_224"),
    ],
)
def test_any_teacher_and_any_student(teacher, model):
    check_all_gradients(case_of(Distill(teacher=teacher), model=model))


def test_the_best_constant_stands_beside_the_loss():
    learner, x = Distill(teacher=TEACHER).build(**SMALL, img_size=(32, 32)), pictures(4)
    truth = F.layer_norm(learner.objectives["features"].target(x), (192,))
    mean = F.smooth_l1_loss(truth.mean((0, 1)).expand_as(truth), truth, beta=2.0)
    assert learner.baselines(x, torch.zeros(4, 0))["best_constant"] == pytest.approx(mean.item(), rel=0.01)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        Image.effect_noise((40, 40), 20 + 20 * number).convert("RGB").save(folder / f"{number}.png")
    return folder


def test_a_student_of_which_nothing_is_said_lets_the_teacher_see_pictures_at_its_own_size(photos, tmp_path, capsys):
    words = {name: value for name, value in TINY.items() if name not in ("img_size", "patch_size")}
    save_encoder(tmp_path / "t.safetensors", create_trunk("vit_tiny_patch16_224", (32, 32), 3, 4, 48, 1, 3), {"mean": (0.5,) * 3, "std": (0.2,) * 3})
    for asked, size, patch, told in (
        ({}, 32, 4, "32 x 32 pixels"),
        ({"img_size": (64, 64)}, 64, 8, "32 x 32 pixels"),
        ({"patch_size": 8}, 64, 8, "32 x 32 pixels"),
        ({"img_size": (32, 32), "patch_size": 8}, 32, 8, "16 x 16 pixels, and was made for 32 x 32"),
    ):
        student = unmask.distill(str(tmp_path / "t.safetensors"), str(photos), tmp_path / f"{size}-{patch}-{len(asked)}-{'img_size' in asked}", **words, **asked)
        encoder, out = unmask.load(student).encoder, capsys.readouterr()
        assert (encoder.img_size, encoder.patch) == ((size, size), (patch, patch)) and f"looks at {told}" in out.out + out.err
    assert "unmask show features" in out.out + out.err and "unmask reconstruct" not in out.out + out.err
    with pytest.raises(Refused, match="nothing is hidden from this network while it learns"):
        unmask.reconstruct(student, str(photos), out=str(tmp_path / "x.png"))


@pytest.mark.parametrize("by", ["distill", "mae_lite"])
def test_the_verb_makes_a_run_of_a_run(by, photos, tmp_path):
    teacher = unmask.pretrain("mae", str(photos), tmp_path / "teacher", **TINY)
    student = unmask.distill(teacher, str(photos), tmp_path / "student", by=by, **TINY)
    learner = unmask.load(student)
    assert (tmp_path / "student" / "encoder.safetensors").is_file() and unmask.resume(student) == student
    assert learner(pictures(2))["loss"].isfinite()


def test_the_command_reads_the_settings_of_what_it_does():
    words, values = cli.read("distill", ["runs/a", "photos", "--by", "mae_lite", "--out", "x", "--method.attention", "2"])
    assert words == ["runs/a", "photos"] and values["by"] == "mae_lite" and values["method.attention"] == 2.0
    assert cli.method_of("distill", ["runs/a", "photos"]) == "distill" and cli.method_of("distill", ["--by=mae_lite"]) == "mae_lite"
    with pytest.raises(Refused, match="none of distill, mae_lite"):
        cli.read("distill", ["runs/a", "photos", "--by", "mae"])
    with pytest.raises(Refused, match="said twice"):
        unmask.distill("a", "b", "c", **{"method.teacher": "d"})
    with pytest.raises(Refused, match=r"--method\.teacher ENCODER"):
        Distill().build(**SMALL, img_size=(32, 32))
