"""The mean of a turn's hidden states, later ones with more weight: a causal model has read more by then."""

import torch
from torch import Tensor

from muco.core import ComponentConfig, Pooler, TurnStates


class WeightedMean(Pooler):
    """Weigh the n-th token of a turn's span by n (Muennighoff 2022, arXiv:2202.08904)."""

    class Config(ComponentConfig):
        """No settings."""

    def __init__(self, config: Config, *, hidden_dim: int) -> None:
        super().__init__()
        self.embedding_dim = hidden_dim

    def pool(self, states: TurnStates) -> Tensor:
        """Return [N, H], not divided by the sum of the weights: the interface divides by the length."""
        spans = zip(states.spans.start.tolist(), states.spans.stop.tolist(), strict=True)
        return torch.stack([self._mean(states.hidden[start:stop]) for start, stop in spans])

    def _mean(self, hidden: Tensor) -> Tensor:
        return torch.arange(1, len(hidden) + 1, device=hidden.device, dtype=hidden.dtype) @ hidden
