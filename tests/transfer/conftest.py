"""What tests of transfer share: pictures whose colour tells the class, and a small encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unmask import api

SMALL = {"model": "vit_tiny_patch16_224", "width": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": (32, 32)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Smooth pictures whose colour tells the class."""
    path = tmp_path_factory.mktemp("data") / "x.npz"
    dice, labels = np.random.default_rng(0), np.arange(80) % 4
    smooth = np.cumsum(np.cumsum(dice.normal(size=(80, 32, 32, 3)), 1), 2)
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    tint = np.array([[1, 0.3, 0.3], [0.3, 1, 0.3], [0.3, 0.3, 1], [1, 1, 0.2]])[labels][:, None, None, :]
    np.savez(path, images=((smooth - low) / (high - low) * 255 * tint).astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="module")
def encoder(data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("encoder") / "run"
    return api.pretrain("mae", str(data), run, **SMALL, steps=4, batch_size=8, accelerator="cpu", workers=0, **{"method.decoder_width": 32, "method.decoder_depth": 1})
