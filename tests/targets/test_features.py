"""A frozen teacher's features: whatever network it is, at our grid, in its own numbers."""

import pytest
import torch
from torch.testing import assert_close

from unmask.errors import Refused
from unmask.interchange.encoder import load_encoder, save_encoder
from unmask.targets.features import digest, frozen
from unmask.testing import pictures


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """A small encoder with statistics of its own."""
    from unmask.encoders.build import create_trunk

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "encoder.safetensors"
    save_encoder(path, create_trunk("vit_tiny_patch16_224", (64, 64), 3, 16, 48, 2, 3), {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)})
    return str(path)


def test_a_patch_of_the_teacher_for_each_of_ours(teacher_file):
    """At twice the size a teacher with patches of 16 has one for each of our patches of 8; its answer is timm's."""
    target, x = frozen(teacher_file, (32, 48), (8, 8), 3, "eva"), pictures(2, 3, (32, 48))
    model = load_encoder(teacher_file, img_size=(64, 96)).model
    target.sees((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))  # its own numbers: nothing is changed
    wanted = model.forward_features(torch.nn.functional.interpolate(x, (64, 96), mode="bicubic", antialias=True))[:, 1:]
    assert target(x).shape == (2, 24, 48)
    assert_close(target(x), wanted, rtol=1e-4, atol=1e-5)


def test_pictures_are_shown_in_the_teachers_own_numbers(teacher_file):
    """The same pictures, normalised in two ways, have the same truth."""
    pixels = torch.rand(2, 3, 32, 32)
    answers = []
    for mean, std in (((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ((0.45, 0.45, 0.4), (0.25, 0.2, 0.3)), ((0.5,), (0.5,))):
        target = frozen(teacher_file, (32, 32), (8, 8), 3, "eva")
        target.sees(mean, std)
        given = [torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (mean, std)]
        answers.append(target((pixels - given[0]) / given[1]))
    assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-5)
    assert_close(answers[2], answers[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["random:beit_base_patch16_224", "random:swin_tiny_patch4_window7_224", "random:vit_small_patch16_rope_224"])
def test_any_tower_gives_one_feature_a_patch(name):
    target = frozen(name, (32, 32), (8, 8), 3, "eva")
    assert target(pictures(2)).shape == (2, 16, target.width)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "convnextv2_atto", "swin_tiny_patch4_window7_224"])
def test_features_of_stages_lie_where_the_teacher_saw_them(name):
    """What changes in one corner of a picture moves the truth there most."""
    target, x = frozen(f"random:{name}", (224, 224), (32, 32), 3, "eva"), pictures(1, 3, (224, 224))
    other = x.clone()
    other[..., :32, 192:] += 3
    moved = (target(other) - target(x)).norm(dim=-1)[0]  # (49,)
    assert moved.argmax() == 6


def test_another_size_at_run_time(teacher_file):
    assert frozen(teacher_file, (32, 32), (8, 8), 3, "eva")(pictures(2, 3, (48, 32))).shape == (2, 24, 48)


def test_what_does_not_fit_is_refused(teacher_file):
    with pytest.raises(Refused, match="3 channels, and the pictures have 5"):
        frozen(teacher_file, (32, 32), (8, 8), 5, "eva")
    with pytest.raises(Refused, match="no ENCODER 'nothing'"):
        frozen("nothing", (32, 32), (8, 8), 3, "eva")


def test_a_digest_tells_weights_apart(teacher_file):
    one, other = (load_encoder("random:vit_tiny_patch16_224", seed=seed, random=True).model for seed in (0, 1))
    assert digest(one) != digest(other) and digest(one) == digest(load_encoder("random:vit_tiny_patch16_224", seed=0, random=True).model)
