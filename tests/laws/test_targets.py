"""The contract of a target: a new one joins by a row of `TARGETS`."""

import pytest
import torch
from vocabularies import vocabulary

from unmask import losses
from unmask.encoders.build import build
from unmask.targets.codes import Codes, open_tokenizer
from unmask.targets.features import frozen
from unmask.targets.hog import HOG
from unmask.targets.pixels import Pixels
from unmask.targets.teacher import Momentum, Teacher, mean_of_layers
from unmask.testing import SMALL, check_target, pictures


def teacher(say, **words):
    torch.manual_seed(0)
    return Teacher(build(**SMALL, img_size=(32, 48), **words), say, Momentum(0.99, 0.99))


TARGETS = {  # the target, the pictures, how many patches they have, its loss, and how many numbers an answer has where that is not the truth's size
    "normalised pixels, squared": (Pixels((8, 8)), pictures(4, 3, (32, 48)), 24, losses.mse),
    "pixels normalised by channel, squared": (Pixels((8, 8), by_channel="unbiased"), pictures(4, 3, (32, 48)), 24, losses.mse),
    "raw pixels, squared": (Pixels((8, 8), normalize=False), pictures(4, 3, (32, 48)), 24, losses.mse),
    "raw pixels, absolute": (Pixels((8, 4), normalize=False), pictures(5, 2, (32, 48)), 48, losses.l1),
    "normalised pixels of 13 bands": (Pixels((4, 4)), pictures(3, 13, (16, 8)), 8, losses.mse),
    "pixels of a clip": (Pixels((2, 4, 4)), pictures(2, 3, (8, 8)).unsqueeze(2).repeat(1, 1, 4, 1, 1) * torch.arange(1, 5).view(4, 1, 1), 8, losses.mse),
    "histograms of gradients": (HOG((16, 16)), pictures(4, 3, (32, 48)), 6, losses.mse),
    "histograms of gradients, one cell a patch, 13 bands": (HOG((4, 4)), pictures(2, 13, (16, 8)), 8, losses.mse),
    "a teacher's last layers": (teacher(mean_of_layers, layers=(-2, -1)), pictures(4, 3, (32, 48)), 24, losses.smooth_l1),
    "a frozen teacher's features": (frozen("random:vit_tiny_patch16_224", (32, 48), (8, 8), 3, "eva"), pictures(4, 3, (32, 48)), 24, losses.negative_cosine),
    "a tokenizer's codes": (Codes(open_tokenizer(vocabulary(), 3, "beit"), (8, 8), 3), pictures(4, 3, (32, 48)), 24, losses.cross_entropy, 12),
    "pixels as half precision": (Pixels((8, 8)), pictures(4).bfloat16(), 16, losses.mse),
}


@pytest.mark.parametrize("name", TARGETS)
def test_target(name):
    check_target(*TARGETS[name])
