"""Muon in the precision of the weights: with bfloat16, runs that differ in the last bits drift apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

_MAX_STACKED = 2**22
"""Numbers of the matrices that are orthogonalized at once: few calls for small ones, little more memory."""


class PreciseMuon(Muon):
    """`torch.optim.Muon`, but orthogonalizing in the dtype of the weights, not in bfloat16.

    States and settings are those of `torch.optim.Muon`. Small matrices of one shape are updated together.

    References:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the weights by their gradients."""
        assert closure is None
        for group in self.param_groups:
            for weights in _of_one_shape(weight for weight in group["params"] if weight.grad is not None):
                self._update(weights, group)

    def _update(self, weights: Sequence[Tensor], group: dict[str, Any]) -> None:
        updates = torch.stack([self._direction(weight, group) for weight in weights])
        updates = orthogonalized(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = weights[0].shape
        rate = group["lr"] * math.sqrt(max(1, rows / columns))
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update, alpha=-rate)

    def _direction(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the momentum, with the gradient added."""
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum


def orthogonalized(
    matrices: Tensor, coefficients: tuple[float, float, float], num_rounds: int, eps: float
) -> Tensor:
    """Return matrices with about the same singular vectors and singular values near 1.

    Args:
        matrices: float [G, rows, columns].
        coefficients: of the Newton-Schulz iteration, an odd polynomial of degree five.
        num_rounds: of the iteration.
        eps: a norm below it is divided by it.
    """
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(num_rounds):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if is_tall else wide


def _of_one_shape(weights: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the weights in groups of one shape, of at most `_MAX_STACKED` numbers or one weight."""
    groups: list[list[Tensor]] = []
    open_groups: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        group = open_groups.get(weight.shape)
        if group is None or (len(group) + 1) * weight.numel() > _MAX_STACKED:
            group = open_groups[weight.shape] = []
            groups.append(group)
        group.append(weight)
    return groups
