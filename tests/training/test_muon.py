"""Muon without bfloat16: torch's steps, to torch's rounding."""

from __future__ import annotations

import pytest
import torch
from torch.optim import Muon

from muco.config.recipe import TrainSettings
from muco.core import MucoError
from muco.training.muon import PreciseMuon, orthogonalized
from muco.training.optimizer import make_optimizers

COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_takes_the_steps_of_torch_to_the_rounding_of_bfloat16(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(4, *shape)
    ends = []
    for kind in (Muon, PreciseMuon):
        weight = torch.nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.02, momentum=0.85, weight_decay=0.1)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach())
    moved = float((ends[0] - start).abs().max())
    assert 0 < float((ends[1] - ends[0]).abs().max()) < 0.02 * moved


def test_matrices_that_are_updated_together_take_the_steps_of_each(monkeypatch):
    torch.manual_seed(0)
    starts = [torch.randn(shape, dtype=torch.float64) for shape in [(4, 6), (6, 4), (4, 6), (4, 6), (4, 4)]]
    gradients = [torch.randn_like(start) * 10**index for index, start in enumerate(starts)]
    ends = []
    for max_stacked in (0, 2 * 4 * 6):  # each alone; the first two of three
        monkeypatch.setattr("muco.training.muon._MAX_STACKED", max_stacked)
        weights = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = PreciseMuon(weights, lr=0.02, momentum=0.85, weight_decay=0.1)
        for _ in range(2):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
        ends.append([weight.detach() for weight in weights])
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5)])
def test_turns_a_matrix_to_singular_values_near_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    (turned,) = orthogonalized(matrix[None], COEFFICIENTS, 5, 1e-7)
    values = torch.linalg.svdvals(turned)
    assert ((values > 0.6) & (values < 1.3)).all()
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    core = left.T @ turned @ right.T
    torch.testing.assert_close(core, torch.diag(core.diagonal()), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("module", "kinds"),
    [
        (torch.nn.Linear(3, 2, bias=False), ["PreciseMuon"]),
        (torch.nn.LayerNorm(3), ["AdamW"]),
        (torch.nn.Linear(3, 2), ["PreciseMuon", "AdamW"]),
    ],
    ids=["matrices", "vectors", "both"],
)
def test_each_optimizer_is_made_where_it_has_weights(module, kinds):
    settings = TrainSettings(num_steps=1, global_batch_size=2, learning_rate=0.1, optimizer="muon")
    found = make_optimizers(module, settings)
    assert [type(part).__name__ for part, _ in found.parts] == kinds
    assert len(found.weights()) == len(list(module.parameters()))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_nothing_to_train_is_an_error(optimizer):
    settings = TrainSettings(num_steps=1, global_batch_size=2, learning_rate=0.1, optimizer=optimizer)
    with pytest.raises(MucoError, match="nothing would be trained"):
        make_optimizers(torch.nn.Linear(3, 2).requires_grad_(False), settings)
