"""Muon in the precision of the weights: with bfloat16, runs that differ in the last bits drift apart."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon


class PreciseMuon(Muon):
    """`torch.optim.Muon`, but orthogonalizing in the dtype of the weights, not in bfloat16.

    States and settings are those of `torch.optim.Muon`.

    References:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the weights by their gradients."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = weight.shape
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonalized(
    matrix: Tensor, coefficients: tuple[float, float, float], num_rounds: int, eps: float
) -> Tensor:
    """Return a float matrix with about the same singular vectors and singular values near 1.

    `coefficients` are those of the Newton-Schulz iteration, an odd polynomial of degree five; a norm below
    `eps` is divided by `eps`.
    """
    a, b, c = coefficients
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(num_rounds):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
