"""The hidden state of the turn's `<|emb|>` token: the pooling of MuCo."""

from __future__ import annotations

from torch import Tensor

from muco.core.turns import TurnSpans, TurnStates
from muco.plugins.poolers.projection import ProjectedPooler


class TurnToken(ProjectedPooler):
    """Take the state of each turn's embedding token.

    References:
        Gu et al. 2026, arXiv:2602.06393, section 3.
    """

    pooled = "turn_token"

    def reads(self, spans: TurnSpans) -> Tensor:
        return spans.token

    def reduce(self, states: TurnStates) -> Tensor:
        return states.hidden[states.spans.token]
