"""The hidden state of the turn's last token."""

from __future__ import annotations

from torch import Tensor

from muco.core.turns import TurnSpans, TurnStates
from muco.plugins.poolers.projection import ProjectedPooler


class LastToken(ProjectedPooler):
    """Take the state of the last token of each turn's span: the one that closes the turn."""

    pooled = "last_token"

    def reads(self, spans: TurnSpans) -> Tensor:
        return spans.stop - 1

    def reduce(self, states: TurnStates) -> Tensor:
        return states.hidden[states.spans.stop - 1]
