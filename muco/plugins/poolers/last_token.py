"""The hidden state of the turn's last token, whatever it is."""

from __future__ import annotations

from torch import Tensor

from muco.core.pooler import Pooler
from muco.core.turns import TurnStates
from muco.plugins.poolers.projection import ProjectedConfig, projection


class LastToken(Pooler):
    """Take the state of the last token of each turn's span: the one that closes the turn."""

    class Config(ProjectedConfig):
        pass

    def __init__(self, config: Config, *, hidden_dim: int) -> None:
        super().__init__()
        self.project, self.embedding_dim = projection(config, hidden_dim)

    def pool(self, states: TurnStates) -> Tensor:
        return self.project(states.hidden[states.spans.stop - 1])
