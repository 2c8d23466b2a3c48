"""InfoNCE for several turns of one image: the loss of both stages of MuCo."""

from __future__ import annotations

from muco.core.loss import LossTerms
from muco.core.turns import TurnEmbeddings
from muco.plugins.losses.softmax import ContrastiveConfig, Forms, Mask, PairingLoss, contrast


class MultiTurnInfoNCE(PairingLoss):
    """InfoNCE that leaves an image's other turns out of the denominator.

    The logit mask of the paper: only targets of other images and hard negatives are negatives.

    References:
        van den Oord et al. 2018, arXiv:1807.03748: InfoNCE.
        Gu et al. 2026, arXiv:2602.06393: several turns of one image, masked logits.
    """

    class Config(ContrastiveConfig):
        mask: Mask = "same_group"
        """same_group: the other targets of a query's images are not negatives, nor is the other form of its
        own target. none: they are negatives (table 7 of the paper)."""
        forms: Forms = "joint"
        """If targets have two forms. joint: a positive is compared with both forms of others, as in the
        paper. separate: with those of its own form, as in the public code, whose value is 4 times this."""

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        return contrast(query, target, self.config, mask=self.config.mask, forms=self.config.forms)
