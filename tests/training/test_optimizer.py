from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

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


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.ModuleDict({"trunk": nn.Linear(4, 4), "head": nn.Linear(4, 4)})
        self.text = nn.Linear(4, 4)


def moves(model: nn.Module, settings: TrainSettings, *, resumed: bool = False) -> dict[str, Tensor]:
    """Return how far the second of two equal gradients moves each weight."""
    optimizers = make_optimizers(model, settings)
    for step in range(2):
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        for weight in model.parameters():
            weight.grad = torch.eye(*weight.shape) if weight.ndim == 2 else torch.ones_like(weight)
        optimizers.step(step)
        if resumed:
            states = optimizers.state_dict(keep=True)
            optimizers = make_optimizers(model, settings)
            optimizers.load_state_dict(states)
    return {name: weight.detach() - before[name] for name, weight in model.named_parameters()}


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_scale_multiplies_the_updates_of_the_weights_with_its_name(optimizer, resumed):
    torch.manual_seed(0)
    model = Model()
    update = {"optimizer": optimizer, "weight_decay": 0.0, "learning_rate": 0.01}
    settings = SETTINGS.model_copy(update=update)
    plain = moves(copy.deepcopy(model), settings)
    scales = {"visual": 0.5, "visual.trunk": 0.1}
    scaled = moves(model, settings.model_copy(update={"learning_rate_scale": scales}), resumed=resumed)
    for name, move in plain.items():
        scale = 0.1 if ".trunk." in name else 0.5 if "visual" in name else 1.0
        assert move.abs().sum() > 0
        torch.testing.assert_close(scaled[name], scale * move, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_of_scale_zero_are_not_trained(optimizer):
    model = Model()
    update = {"optimizer": optimizer, "learning_rate_scale": {"visual": 0.0}}
    assert all(
        bool(move.any()) == ("text" in name)
        for name, move in moves(model, SETTINGS.model_copy(update=update)).items()
    )
    assert not any(weight.requires_grad for weight in model.visual.parameters())


def test_a_scale_that_fits_no_trained_weight_is_an_error():
    model = Model()
    model.visual.requires_grad_(False)
    settings = SETTINGS.model_copy(update={"learning_rate_scale": {"text": 0.1, "visual": 0.1}})
    with pytest.raises(MucoError, match=r"learning_rate_scale\.visual: no trained weight .* begin with"):
        make_optimizers(nn.ModuleList([model]), settings)
