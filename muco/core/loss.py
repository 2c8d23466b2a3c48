"""The loss scores this rank's query turns against every rank's target turns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from muco.core.component import Component, Kind
from muco.core.turns import TurnEmbeddings, TurnIds


@dataclass(frozen=True)
class LossTerms:
    """A loss, one number a query turn, before any average."""

    per_turn: Tensor
    """float [N], in nats."""
    counts: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Scalar statistics by name, summed over ranks by the caller: negatives masked, hits, ..."""


def same_turn(query: TurnIds, target: TurnIds) -> Tensor:
    """Return bool [N, M]: the target's sample and turn are the query's."""
    return (query.sample_ids[:, None] == target.sample_ids) & (query.turn_ids[:, None] == target.turn_ids)


def check_sides(query: TurnEmbeddings, target: TurnEmbeddings) -> None:
    """Raise ValueError unless both sides hold vectors of one size and every query a positive."""
    if query.vectors.shape[-1] != target.vectors.shape[-1]:
        raise ValueError(
            f"queries have {query.vectors.shape[-1]} dimensions and targets {target.vectors.shape[-1]}"
        )
    lonely = ~(same_turn(query, target) & ~target.is_negative).any(1)
    if lonely.any():
        raise ValueError(f"query turn {int(lonely.nonzero()[0])} has no positive among the targets")


class Loss(Component, nn.Module, ABC):
    """Score query turns against target turns, from embeddings and ids alone."""

    kind: ClassVar[Kind] = "loss"

    def forward(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        """Return `per_turn`; raise ValueError when a query turn has no positive or no negative."""
        check_sides(query, target)
        return self.per_turn(query, target)

    @abstractmethod
    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        """Return the loss of each query turn.

        Args:
            query: this rank's turns. `vectors` [N, D], any float dtype, unit length; ids int64 [N].
            target: every rank's turns, M rows. Rows with a query's sample and turn id are its
                positives, whatever their form; rows with `is_negative` are negatives for everyone.

        Returns:
            `per_turn` float [N], in nats, and `counts` by name. The caller averages over the batch.
        """
