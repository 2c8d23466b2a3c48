"""Muon without bfloat16: torch's steps, to torch's rounding."""

from __future__ import annotations

import pytest
import torch
from torch.optim import Muon

from muco.training.muon import PreciseMuon, orthogonalized

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


@pytest.mark.parametrize("shape", [(5, 12), (12, 5)])
def test_turns_a_matrix_to_singular_values_near_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    turned = orthogonalized(matrix, COEFFICIENTS, 5, 1e-7)
    values = torch.linalg.svdvals(turned)
    assert ((values > 0.6) & (values < 1.3)).all()
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    core = left.T @ turned @ right.T
    torch.testing.assert_close(core, torch.diag(core.diagonal()), rtol=0, atol=1e-9)
