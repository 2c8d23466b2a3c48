"""InfoNCE with harder negatives weighted more: the loss of LLaVE."""

from __future__ import annotations

from pydantic import NonNegativeFloat

from muco.core.loss import LossTerms
from muco.core.turns import TurnEmbeddings
from muco.plugins.losses.softmax import ContrastiveConfig, Mask, PairingLoss, contrast


class HardnessWeighted(PairingLoss):
    """InfoNCE with every negative weighted by the exponential of its similarity.

    The weight has no gradient. It stresses the negatives that are closest to the query, false negatives
    included, so the masks matter more than in InfoNCE.

    References:
        Lan et al. 2025, arXiv:2503.04812: LLaVE.
    """

    class Config(ContrastiveConfig):
        alpha: NonNegativeFloat = 9.0
        """A negative of similarity s has the weight exp(alpha * s); 0 gives `multiturn_infonce`."""
        symmetric: bool = True
        """Also score the targets against all queries, and take the mean of both directions, as LLaVE does."""
        mask: Mask = "same_group"
        """same_group: the other targets of a query's images are not negatives. none: they are."""

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        return contrast(query, target, self.config, mask=self.config.mask, hardness=self.config.alpha)
