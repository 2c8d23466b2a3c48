"""InfoNCE: the target among all targets of the batch."""

from __future__ import annotations

from muco.core.component import Feature
from muco.core.loss import Loss, LossTerms
from muco.core.turns import TurnEmbeddings
from muco.plugins._shared.contrastive import ContrastiveConfig, contrast, needs_of


class InfoNCE(Loss):
    """Cross-entropy of each query's target against every other target of the batch.

    References:
        van den Oord et al. 2018, arXiv:1807.03748.
    """

    class Config(ContrastiveConfig):
        pass

    @classmethod
    def needs(cls, config: ContrastiveConfig) -> frozenset[Feature]:
        return needs_of(config)

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        self.symmetric = config.symmetric

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        return contrast(query, target, self.config)
