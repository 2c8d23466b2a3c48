"""A loss on the first dimensions of the embeddings, for several sizes at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from muco.core.component import ComponentConfig, Feature
from muco.core.component_ref import ComponentRef
from muco.core.errors import MucoError
from muco.core.loss import Candidates, Loss, LossTerms
from muco.core.turns import TurnEmbeddings


class Matryoshka(Loss):
    """Sum a loss over embeddings cut to several sizes, so that each size can be used without the others.

    A cut embedding is normalized again. Counts and rates are those of the largest size. The count
    `hits_<size>` of each other size is how many queries rank a positive first at that size.

    References:
        Kusupati et al. 2022, arXiv:2205.13147.
    """

    class Config(ComponentConfig):
        loss: ComponentRef[Loss]
        """The loss and its settings. It is built once; all sizes share its parameters."""
        dims: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
        """Sizes, from the first dimension on. Include the full size to train the whole embedding."""
        weights: tuple[PositiveFloat, ...] | None = None
        """Of each size; None gives each the weight 1."""

        @model_validator(mode="after")
        def _sizes_fit(self) -> Matryoshka.Config:
            if len(set(self.dims)) < len(self.dims):
                raise ValueError("`dims` names a size twice")
            if self.weights is not None and len(self.weights) != len(self.dims):
                raise ValueError(f"{len(self.weights)} `weights` for {len(self.dims)} `dims`")
            return self

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return config.loss.cls.needs(config.loss.config)

    @classmethod
    def min_embedding_dim(cls, config: Any) -> int:
        return max(config.dims)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.loss: Loss = config.loss.make()
        self.symmetric = self.loss.symmetric
        self.nested_dims = tuple(sorted(config.dims))
        weights = config.weights or (1.0,) * len(config.dims)
        self.weights = dict(sorted(zip(config.dims, weights, strict=True), reverse=True))

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        size = query.vectors.shape[1]
        if size < max(self.weights):
            raise MucoError(f"loss.dims: {max(self.weights)} exceeds the {size} dimensions of the embeddings")
        terms = {dim: self.loss(_cut(query, dim), _cut(target, dim)) for dim in self.weights}
        total = sum(weight * terms[dim].per_turn for dim, weight in self.weights.items())
        assert isinstance(total, Tensor)
        largest, *others = terms
        hits = {
            f"hits_{dim}": terms[dim].rates["in_batch_accuracy"]
            for dim in others
            if "in_batch_accuracy" in terms[dim].rates
        }
        return LossTerms(total, {**terms[largest].counts, **hits}, terms[largest].rates)

    def candidates(self, query: TurnEmbeddings, target: TurnEmbeddings) -> Candidates:
        return self.loss.candidates(query, target)


def _cut(turns: TurnEmbeddings, dim: int) -> TurnEmbeddings:
    return replace(turns, vectors=F.normalize(turns.vectors[:, :dim], dim=-1))
