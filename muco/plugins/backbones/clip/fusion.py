"""One embedding from a turn's image and text. Q turns with both, D embedding size."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

FusionName = Literal["sum", "learned_sum", "mlp"]


class WeightedSum(nn.Module):
    """The weighted sum of two unit vectors; the weight can be learned."""

    def __init__(self, image_weight: float, *, learned: bool) -> None:
        super().__init__()
        self.image_weight = image_weight
        logit = torch.tensor(math.log(image_weight / (1 - image_weight)))
        self.logit = nn.Parameter(logit) if learned else None

    def forward(self, image_QD: Tensor, text_QD: Tensor) -> Tensor:
        """Return [Q, D]."""
        weight = self.image_weight if self.logit is None else self.logit.sigmoid()
        return weight * image_QD + (1 - weight) * text_QD


class FusionMLP(nn.Module):
    """The weighted sum plus the output of a small network, which is zero at initialization."""

    def __init__(self, dim: int, hidden_dim: int, image_weight: float) -> None:
        super().__init__()
        self.sum = WeightedSum(image_weight, learned=False)
        self.norm = nn.LayerNorm(2 * dim)
        self.up = nn.Linear(2 * dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, dim)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, image_QD: Tensor, text_QD: Tensor) -> Tensor:
        """Return [Q, D]."""
        both = torch.cat((image_QD, text_QD), dim=1).to(self.norm.weight.dtype)
        added = self.down(nn.functional.gelu(self.up(self.norm(both))))
        return self.sum(image_QD, text_QD) + added


def make_fusion(name: FusionName, *, dim: int, hidden_dim: int, image_weight: float) -> nn.Module:
    """Return the module that combines image and text."""
    if name == "mlp":
        return FusionMLP(dim, hidden_dim, image_weight)
    return WeightedSum(image_weight, learned=name == "learned_sum")
