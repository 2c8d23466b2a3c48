"""InfoNCE whose negatives count the more, the harder they are: LLaVE's loss."""

from __future__ import annotations

from pydantic import NonNegativeFloat

from muco.core.loss import LossTerms
from muco.core.turns import TurnEmbeddings
from muco.plugins.losses.softmax import ContrastiveConfig, ContrastiveLoss, Mask, contrast


class HardnessWeighted(ContrastiveLoss):
    """InfoNCE with every negative weighted by the exponential of its similarity.

    The weight takes no gradient. It makes most of the negatives that are closest to the query, false ones
    among them: the masks matter more than in InfoNCE.

    References:
        Lan et al. 2025, arXiv:2503.04812: LLaVE.
    """

    class Config(ContrastiveConfig):
        alpha: NonNegativeFloat = 9.0
        """A negative of similarity s weighs exp(alpha * s); 0 is `multiturn_infonce`."""
        symmetric: bool = True
        """Score the targets against all queries too, and take the mean of both directions; as LLaVE does."""
        mask: Mask = "same_group"
        """same_group: the other targets of a query's images are no negatives. none: they are."""

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        return contrast(query, target, self.config, mask=self.config.mask, hardness=self.config.alpha)
