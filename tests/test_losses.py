"""Losses a row."""

import pytest
import torch
from torch.testing import assert_close

from unmask import losses


@pytest.mark.parametrize(("loss", "of"), [(losses.mse, torch.square), (losses.l1, torch.abs)])
def test_one_number_a_row(loss, of):
    prediction, truth = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    assert_close(loss(prediction, truth), of(prediction - truth).mean(-1))
    assert loss(prediction.bfloat16(), truth).dtype == torch.float32
