from __future__ import annotations

import pytest
import torch
from torch import nn

from muco.config.recipe import TrainSettings
from muco.core import MucoError
from muco.training.optimizer import make_optimizers

SETTINGS = TrainSettings.model_validate({"num_steps": 20, "global_batch_size": 1, "learning_rate": 1e-5})


def moved_share(layer: nn.Linear) -> float:
    """Return the share of weights that 20 steps in bfloat16 autocast change."""
    before = layer.weight.detach().clone()
    optimizers = make_optimizers(layer, SETTINGS)
    inputs = torch.randn(32, 64)
    for step in range(20):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (layer(inputs) - 1).square().mean()
        loss.backward()
        optimizers.step(step)
    return float((layer.weight != before).float().mean())


def test_float32_weights_all_move_where_the_compute_is_bfloat16():
    torch.manual_seed(0)
    assert moved_share(nn.Linear(64, 64)) > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_trained_in_16_bits_are_refused(dtype):
    frozen = nn.Linear(4, 4).requires_grad_(False).to(dtype)
    model = nn.Sequential(frozen, nn.Linear(4, 4))
    assert len(make_optimizers(model, SETTINGS).weights()) == 2
    frozen.bias.requires_grad = True
    with pytest.raises(MucoError, match=r"0\.bias is trained in b?float16.*dtype: float32.*adapter: "):
        make_optimizers(model, SETTINGS)
