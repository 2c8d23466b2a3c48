"""The hidden state of the turn's `<|emb|>` token: the pooling of MuCo."""

from __future__ import annotations

from torch import Tensor

from muco.core.component import ComponentConfig
from muco.core.pooler import Pooler
from muco.core.turns import TurnStates


class TurnToken(Pooler):
    """Take the state of each turn's embedding token.

    References:
        Gu et al. 2026, arXiv:2602.06393, section 3.
    """

    class Config(ComponentConfig):
        pass

    def __init__(self, config: Config, *, hidden_dim: int) -> None:
        super().__init__()
        self.embedding_dim = hidden_dim

    def pool(self, states: TurnStates) -> Tensor:
        return states.hidden[states.places.token]
