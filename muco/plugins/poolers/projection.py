"""What the poolers share: a linear map between the pooled hidden state and the embedding."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn

from muco.core.component import ComponentConfig
from muco.core.exported import PooledState
from muco.core.pooler import ExportedPooler, Pooler
from muco.core.turns import TurnStates


class Projection(nn.Linear):
    """A linear map without bias that computes in the dtype of its own weights."""

    def __init__(self, hidden_dim: int, embedding_dim: int) -> None:
        super().__init__(hidden_dim, embedding_dim, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class ProjectedPooler(Pooler):
    """A pooler with an optional projection. A subclass writes `reduce`."""

    pooled: ClassVar[PooledState | None] = None
    """The state that `reduce` returns, for export; None for another one."""

    class Config(ComponentConfig):
        projection_dim: PositiveInt | None = None
        """Project to this many dimensions by a linear map that is trained with the model; None keeps the
        backbone's hidden size."""

    @classmethod
    def embedding_dim_of(cls, config: Any, hidden_dim: int | None) -> int | None:
        return config.projection_dim or hidden_dim

    def __init__(self, config: Config, *, hidden_dim: int) -> None:
        super().__init__()
        dim = config.projection_dim
        self.embedding_dim = dim or hidden_dim
        self.project = nn.Identity() if dim is None else Projection(hidden_dim, dim)

    def pool(self, states: TurnStates) -> Tensor:
        return self.project(self.reduce(states))

    def export(self) -> ExportedPooler:
        if self.pooled is None:
            return super().export()
        return ExportedPooler(self.pooled, self.project if isinstance(self.project, nn.Linear) else None)

    @abstractmethod
    def reduce(self, states: TurnStates) -> Tensor:
        """Return one hidden state for each turn, [N, H]."""
