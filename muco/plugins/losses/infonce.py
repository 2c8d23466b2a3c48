"""InfoNCE: each query's target among all targets of the batch."""

from __future__ import annotations

from muco.core.loss import LossTerms
from muco.core.turns import TurnEmbeddings
from muco.plugins.losses.softmax import ContrastiveConfig, PairingLoss, contrast


class InfoNCE(PairingLoss):
    """Cross-entropy of each query's target against every other target of the batch.

    References:
        van den Oord et al. 2018, arXiv:1807.03748.
    """

    class Config(ContrastiveConfig):
        pass

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        return contrast(query, target, self.config)
