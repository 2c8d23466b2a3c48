"""Interface of losses: they score the query turns of this rank against the target turns of all ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from muco.core.component import Component, Kind
from muco.core.pairs import equal_pairs
from muco.core.turns import TurnEmbeddings, TurnIds


@dataclass(frozen=True)
class LossTerms:
    """The loss of each query turn, before any average."""

    per_turn: Tensor
    """float [N], in nats."""
    counts: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Scalar tensors by name, logged under `counts` as the sum over all ranks, a step on average."""
    rates: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Scalar tensors by name: how many of the N query turns have a property. Logged by this name as a share
    of all ranks' query turns: `in_batch_accuracy`."""


@dataclass(frozen=True)
class Candidates:
    """What a loss compares each query turn with: N queries, C candidates."""

    scores: Tensor
    """Similarities [N, C], float32 or finer."""
    is_positive: Tensor
    """bool [N, C]"""
    is_negative: Tensor
    """bool [N, C]; what is neither is not compared."""


def positive_pairs(query: TurnIds, target: TurnIds) -> tuple[Tensor, Tensor]:
    """Return (query rows, target rows) of equal sample and turn, hard negatives excluded; int64 [P] each."""
    rows, columns = equal_pairs(query.sample_ids, target.sample_ids)
    is_positive = (query.turn_ids[rows] == target.turn_ids[columns]) & ~target.is_negative[columns]
    return rows[is_positive], columns[is_positive]


def check_sides(query: TurnEmbeddings, target: TurnEmbeddings) -> None:
    """Raise ValueError unless both sides have vectors of one size and each query has a positive."""
    if query.vectors.shape[-1] != target.vectors.shape[-1]:
        raise ValueError(
            f"queries have {query.vectors.shape[-1]} dimensions and targets {target.vectors.shape[-1]}"
        )
    rows, _ = positive_pairs(query, target)
    without = rows.bincount(minlength=len(query)) == 0
    if without.any():
        raise ValueError(f"query turn {int(without.nonzero()[0])} has no positive among the targets")


class Loss(Component, nn.Module, ABC):
    """Score query turns against target turns, from embeddings and ids only."""

    kind: ClassVar[Kind] = "loss"
    symmetric: bool = False
    """Whether the step also calls `per_turn` with the sides exchanged (targets of this rank without hard
    negatives, queries of all ranks), and takes the mean of both directions."""
    nested_dims: tuple[int, ...] = ()
    """Sizes, ascending, at which the first numbers of an embedding are trained as embeddings of their own."""

    @classmethod
    def min_embedding_dim(cls, config: Any) -> int:
        """Return how many dimensions the embeddings must have at least with these settings."""
        return 1

    def forward(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        """Return `per_turn`.

        Raise ValueError if a query turn has no positive or no negative, PluginError unless there is one
        number a query turn.
        """
        check_sides(query, target)
        terms: Any = self.per_turn(query, target)
        if not isinstance(terms, LossTerms):
            raise self.contract_error(f"returns {type(terms).__name__}, not LossTerms")
        if terms.per_turn.shape != (len(query),):
            raise self.contract_error(
                f"returns per_turn of shape {list(terms.per_turn.shape)} for {len(query)} query turns; it "
                "must be one number a turn, before any average"
            )
        return terms

    @abstractmethod
    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        """Return the loss of each query turn.

        Args:
            query: the turns of this rank. `vectors` [N, D], any float dtype, unit length; ids int64 [N].
            target: the turns of all ranks, M rows. Rows with a query's sample and turn id are its
                positives, in any form; rows with `is_negative` are negatives of every query.

        Returns:
            `per_turn` float [N], in nats, with `counts` and `rates` by name. The caller averages over the
            batch.
        """

    def candidates(self, query: TurnEmbeddings, target: TurnEmbeddings) -> Candidates:
        """Return what the loss compares each query with: by default its positives, and all other targets.

        The arguments are those of `per_turn`.
        """
        scores = query.vectors.float() @ target.vectors.float().T
        is_positive = torch.zeros_like(scores, dtype=torch.bool)
        is_positive[positive_pairs(query, target)] = True
        return Candidates(scores, is_positive, ~is_positive)
