"""From a recipe to the untrained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch

from muco.config.recipe import Recipe
from muco.core.backbone import Backbone
from muco.core.component_ref import ComponentRef
from muco.core.encoder import TurnEncoder
from muco.core.loss import Loss
from muco.core.pooler import Pooler
from muco.data.shards.reader import ShardReader

_TEXTS_FROM = 2000
"""Samples of each data set that a backbone may learn its tokenizer from."""


def make(ref: ComponentRef[Any]) -> Any:
    """Return the component of a kind that is built from its settings alone."""
    return ref.make()


@dataclass(frozen=True)
class Model:
    """What is trained: the encoder, and the loss where it has parameters."""

    encoder: TurnEncoder
    loss: Loss


def build_model(recipe: Recipe, readers: Mapping[str, ShardReader]) -> Model:
    """Return the untrained model; random weights follow from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    backbone: Backbone = cast(Any, recipe.backbone.cls).build(recipe.backbone.config, texts=_texts(readers))
    return Model(with_pooler(recipe, backbone), make(recipe.loss))


def with_pooler(recipe: Recipe, backbone: Backbone) -> TurnEncoder:
    """Return the encoder of a backbone and the recipe's pooler."""
    pooler: Pooler = cast(Any, recipe.pooler.cls)(recipe.pooler.config, hidden_dim=backbone.hidden_dim)
    return TurnEncoder(backbone, pooler)


def _texts(readers: Mapping[str, ShardReader]) -> Iterator[str]:
    for reader in readers.values():
        for number in islice(range(len(reader)), _TEXTS_FROM):
            for pair in reader[number].pairs:
                yield from (query.text for query in pair.queries)
                yield pair.target.text
