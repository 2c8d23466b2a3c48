"""The sigmoid loss: every pair of a query and a target is a question of its own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn

from muco.core.loss import LossTerms
from muco.core.turns import TurnEmbeddings
from muco.plugins.losses.softmax import Mask, PairingConfig, PairingLoss, best_of, pair_up, refuse_lonely
from muco.plugins.losses.tiles import negatives_softplus


class SigLIP(PairingLoss):
    """Binary cross-entropy of every pair, under a scale and a bias that are learnt.

    References:
        Zhai et al. 2023, arXiv:2303.15343.
    """

    class Config(PairingConfig):
        scale: PositiveFloat = 10.0
        """Multiplies the cosine similarities, at the start; its logarithm is learnt."""
        bias: float = -10.0
        """Added then, at the start: most pairs are no match."""
        mask: Mask = "same_group"
        """same_group: the other targets of a query's images are no negatives. none: they are."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.bias = nn.Parameter(torch.tensor(config.bias))

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        pairing = pair_up(query, target, mask=self.config.mask, duplicates=self.config.duplicates)
        scaled_ND = pairing.queries * self.log_scale.exp()
        # The bias rides along as one more dimension, so that the tiles give its gradient like any other.
        sum_N, top_N = negatives_softplus(
            _beside(scaled_ND, self.bias), _beside(pairing.targets, torch.ones(())), pairing.excluded
        )
        refuse_lonely(torch.isneginf(top_N).nonzero().flatten())
        logit_P = (scaled_ND[pairing.rows] * pairing.targets[pairing.columns]).sum(1) + self.bias
        per_turn = sum_N.index_add(0, pairing.rows, -F.logsigmoid(logit_P))
        rates = {"in_batch_accuracy": (best_of(pairing, logit_P) > top_N).sum()}
        return LossTerms(per_turn, pairing.counts, rates)


def _beside(rows_ND: Tensor, value: Tensor) -> Tensor:
    """Return the rows with `value` as one more column."""
    return torch.cat([rows_ND, value.to(rows_ND).expand(len(rows_ND), 1)], dim=1)
