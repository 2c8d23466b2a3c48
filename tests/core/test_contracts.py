"""What the interfaces check of a component that a package provides."""

from __future__ import annotations

import pytest
import torch

from muco.core.component import ComponentConfig
from muco.core.errors import PluginError
from muco.core.loss import Loss, LossTerms
from muco.core.pooler import Pooler
from muco.core.turns import TurnEmbeddings, TurnSpans, TurnStates
from tests.helpers.turns import random_turns


class ScalarLoss(Loss):
    Config = ComponentConfig

    def __init__(self, result) -> None:
        super().__init__()
        self.result = result

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        return self.result


class NarrowPooler(Pooler):
    Config = ComponentConfig
    embedding_dim = 8

    def pool(self, states: TurnStates) -> torch.Tensor:
        return states.hidden[states.spans.token, :4]


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (torch.tensor(0.5), "returns Tensor, not LossTerms"),
        (LossTerms(torch.tensor(0.5)), "returns per_turn of shape \\[\\] for 3 query turns"),
    ],
)
def test_a_loss_that_returns_a_scalar_is_named(result, problem):
    query, target = random_turns([1, 2], seed=0)
    with pytest.raises(PluginError, match=f"^loss ScalarLoss of package tests {problem}"):
        ScalarLoss(result)(query, target)


def test_a_pooler_with_other_dimensions_than_it_says_is_named():
    query, _ = random_turns([1, 2], seed=0)
    spans = TurnSpans(token=torch.arange(3), start=torch.arange(3), stop=torch.arange(1, 4))
    states = TurnStates(hidden=torch.ones(3, 8), spans=spans, ids=query.ids())
    with pytest.raises(PluginError, match=r"^pooler NarrowPooler of package tests .*\[3, 4\], not \[3, 8\]"):
        NarrowPooler()(states)
