"""InfoNCE for several turns of one image: MuCo's loss."""

from __future__ import annotations

from muco.core.component import Feature
from muco.core.loss import Loss, LossTerms
from muco.core.pairs import equal_pairs
from muco.core.turns import TurnEmbeddings
from muco.plugins._shared.contrastive import ContrastiveConfig, contrast, needs_of


class MultiTurnInfoNCE(Loss):
    """InfoNCE that leaves an image's other turns out of the denominator.

    The logit mask of the paper: only targets of other images, and hard negatives, are negatives.

    References:
        van den Oord et al. 2018, arXiv:1807.03748: InfoNCE.
        Gu et al. 2026, arXiv:2602.06393: several turns of one image, masked logits.
    """

    class Config(ContrastiveConfig):
        pass

    @classmethod
    def needs(cls, config: ContrastiveConfig) -> frozenset[Feature]:
        return needs_of(config)

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        # Turns of one image: a sibling's target may answer this query too.
        rows, columns = equal_pairs(query.group_ids, target.group_ids)
        sibling = ~target.is_negative[columns]
        return contrast(query, target, (rows[sibling], columns[sibling]), self.config)
