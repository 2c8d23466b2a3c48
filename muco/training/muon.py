"""Muon in the precision of the weights, so that steps which differ in the last bits stay together."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon


class PreciseMuon(Muon):
    """torch's Muon, which orthogonalizes in bfloat16 whatever the weights are, without that rounding.

    States and settings are those of `torch.optim.Muon`.

    References:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Apply the gradients."""
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
        average = state["momentum_buffer"]
        average.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(average, group["momentum"]) if group["nesterov"] else average
        turned = orthogonalized(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = weight.shape
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(turned, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonalized(
    matrix: Tensor, coefficients: tuple[float, float, float], num_rounds: int, eps: float
) -> Tensor:
    """Return a matrix of about the same singular vectors whose singular values are near 1.

    Args:
        matrix: [rows, columns], float32 or finer.
        coefficients: of Newton-Schulz's odd quintic.
        num_rounds: of it.
        eps: least norm to divide by.
    """
    a, b, c = coefficients
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(num_rounds):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
