"""A pooler that gives later tokens more weight: a causal model has read more of the turn at that point."""

import torch
from torch import Tensor

from muco.core import ComponentConfig, Pooler, TurnStates


class WeightedMean(Pooler):
    """Weight the n-th token of a turn's span by n (Muennighoff 2022, arXiv:2202.08904)."""

    class Config(ComponentConfig):
        """No settings."""

    def __init__(self, config: Config, *, hidden_dim: int) -> None:
        super().__init__()
        self.embedding_dim = hidden_dim

    def pool(self, states: TurnStates) -> Tensor:
        """Return [N, H]. There is no division by the sum of the weights, because the interface normalizes."""
        spans = zip(states.spans.start.tolist(), states.spans.stop.tolist(), strict=True)
        return torch.stack([self._mean(states.hidden[start:stop]) for start, stop in spans])

    def _mean(self, hidden: Tensor) -> Tensor:
        return torch.arange(1, len(hidden) + 1, device=hidden.device, dtype=hidden.dtype) @ hidden
