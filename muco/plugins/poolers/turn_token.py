"""The hidden state of the turn's `<|emb|>` token: the pooling of MuCo."""

from __future__ import annotations

from torch import Tensor

from muco.core.pooler import Pooler
from muco.core.turns import TurnStates
from muco.plugins.poolers.projection import ProjectedConfig, projection


class TurnToken(Pooler):
    """Take the state of each turn's embedding token.

    References:
        Gu et al. 2026, arXiv:2602.06393, section 3.
    """

    class Config(ProjectedConfig):
        pass

    def __init__(self, config: Config, *, hidden_dim: int) -> None:
        super().__init__()
        self.project, self.embedding_dim = projection(config, hidden_dim)

    def pool(self, states: TurnStates) -> Tensor:
        return self.project(states.hidden[states.spans.token])
