"""The hidden state of the turn's last token, whatever it is."""

from __future__ import annotations

from torch import Tensor

from muco.core.component import ComponentConfig
from muco.core.pooler import Pooler
from muco.core.turns import TurnStates


class LastToken(Pooler):
    """Take the state of the last token of each turn's span: the one that closes the turn."""

    class Config(ComponentConfig):
        pass

    def __init__(self, config: Config, *, hidden_dim: int) -> None:
        super().__init__()
        self.embedding_dim = hidden_dim

    def pool(self, states: TurnStates) -> Tensor:
        return states.hidden[states.places.stop - 1]
