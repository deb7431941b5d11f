"""First weights are the papers' at the papers' sizes, and wider in networks that are narrower than those."""

import pytest
import torch

from unmask.encoders.build import build
from unmask.encoders.initial import dino_init, spread


@pytest.mark.parametrize(("width", "papers", "std"), [(768, 768, 0.02), (1024, 768, 0.02), (192, 768, 0.04), (384, 384, 0.02), (96, 384, 0.04)])
def test_narrow_networks_start_wider(width, papers, std):
    assert spread(width, None, papers) == pytest.approx(std)
    assert spread(width, 0.01, papers) == 0.01


@pytest.mark.parametrize(("width", "heads", "asked", "std"), [(384, 6, None, 0.02), (96, 3, None, 0.04), (96, 3, 0.02, 0.02)])
def test_self_distillation_starts_so(width, heads, asked, std):
    torch.manual_seed(0)
    encoder = build("vit_small_patch16_224", (32, 32), 3, 8, width=width, depth=1, heads=heads)
    dino_init(encoder, asked)
    assert encoder.trunk.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(std, rel=0.02)
    assert not encoder.trunk.blocks[0].mlp.fc1.bias.any()
