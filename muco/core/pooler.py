"""Interface of poolers: they reduce the hidden states of each turn to one embedding of unit length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from muco.core.component import Component, Kind
from muco.core.errors import MucoError
from muco.core.exported import PooledState
from muco.core.turns import TurnEmbeddings, TurnSpans, TurnStates


@dataclass(frozen=True)
class ExportedPooler:
    """A pooler in terms that other tools have: a state of the turn, then a linear map."""

    pooled: PooledState
    projection: nn.Linear | None


class Pooler(Component, nn.Module, ABC):
    """Reduce hidden states to embeddings; built from its `Config` and the backbone's hidden size."""

    kind: ClassVar[Kind] = "pooler"
    embedding_dim: int
    """D of the embeddings."""

    @classmethod
    def embedding_dim_of(cls, config: Any, hidden_dim: int | None) -> int | None:
        """Return the D of these settings and the backbone's H; None, by default: it is not known.

        `hidden_dim` is None if the backbone's settings do not determine it.
        """
        return None

    def forward(self, states: TurnStates) -> TurnEmbeddings:
        """Return one embedding a turn, of unit length; raise PluginError if `pool` returns another shape."""
        vectors = self.pool(states)
        expected = (len(states.ids), self.embedding_dim)
        if vectors.shape != expected:
            raise self.contract_error(f"returns vectors of shape {list(vectors.shape)}, not {list(expected)}")
        return TurnEmbeddings.join(F.normalize(vectors, dim=-1), states.ids)

    def reads(self, spans: TurnSpans) -> Tensor | None:
        """Return the tokens whose hidden states `pool` reads, int64 [M], each once; None, by default: any.

        The last layer of a decoder is computed for these tokens only.
        """
        return None

    @abstractmethod
    def pool(self, states: TurnStates) -> Tensor:
        """Return one vector a turn, float [N, D], of any length but zero."""

    def export(self) -> ExportedPooler:
        """Return what this pooler does in terms that other tools have. By default this raises MucoError.

        Raises:
            MucoError: it does something else.
        """
        raise MucoError(
            f"pooler {type(self).__name__} cannot be exported: other tools take one state and a linear map"
        )
