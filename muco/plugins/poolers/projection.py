"""A linear head between hidden states and embeddings, the same for every pooler."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor, nn

from muco.core.component import ComponentConfig


class ProjectedConfig(ComponentConfig):
    """The settings of every pooler."""

    projection_dim: PositiveInt | None = None
    """Project what is pooled to this many dimensions, by a linear map that is trained with the model; None
    leaves the backbone's hidden size."""


class Projection(nn.Linear):
    """A linear map without bias; it computes in the dtype of its own weights."""

    def __init__(self, hidden_dim: int, embedding_dim: int) -> None:
        super().__init__(hidden_dim, embedding_dim, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


def projection(config: ProjectedConfig, hidden_dim: int) -> tuple[nn.Module, int]:
    """Return the head, the identity where none is asked for, and the size of what it gives."""
    if config.projection_dim is None:
        return nn.Identity(), hidden_dim
    return Projection(hidden_dim, config.projection_dim), config.projection_dim
