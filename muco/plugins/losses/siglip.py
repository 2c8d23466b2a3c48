"""The sigmoid loss: a binary classification of each pair of a query and a target."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn

from muco.core.loss import LossTerms
from muco.core.turns import TurnEmbeddings
from muco.plugins.losses.softmax import (
    Mask,
    PairingConfig,
    PairingLoss,
    max_per_query,
    pair_up,
    require_negatives,
)
from muco.plugins.losses.tiles import negatives_softplus


class SigLIP(PairingLoss):
    """Binary cross-entropy of every pair, with a learned scale and a learned bias.

    References:
        Zhai et al. 2023, arXiv:2303.15343.
    """

    class Config(PairingConfig):
        scale: PositiveFloat = 10.0
        """Initial factor of the cosine similarities; its logarithm is learned."""
        bias: float = -10.0
        """Initial bias, added to the scaled similarities; negative because most pairs do not match."""
        mask: Mask = "same_group"
        """same_group: the other targets of a query's images are not negatives. none: they are."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.bias = nn.Parameter(torch.tensor(config.bias))

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        pairing = pair_up(query, target, mask=self.config.mask, duplicates=self.config.duplicates)
        scaled_ND = pairing.queries * self.log_scale.exp()
        # The bias is one more dimension of the vectors, so that the tiles compute its gradient too.
        query_NE = _append_column(scaled_ND, self.bias)
        target_ME = _append_column(pairing.targets, torch.ones(()))
        sum_N, top_N = negatives_softplus(query_NE, target_ME, pairing.excluded)
        require_negatives(torch.isneginf(top_N).nonzero().flatten())
        logit_P = (scaled_ND[pairing.rows] * pairing.targets[pairing.columns]).sum(1) + self.bias
        per_turn = sum_N.index_add(0, pairing.rows, -F.logsigmoid(logit_P))
        rates = {"in_batch_accuracy": (max_per_query(pairing, logit_P) > top_N).sum()}
        return LossTerms(per_turn, pairing.counts, rates)


def _append_column(rows_ND: Tensor, value: Tensor) -> Tensor:
    """Return the rows with `value` as one more column."""
    return torch.cat([rows_ND, value.to(rows_ND).expand(len(rows_ND), 1)], dim=1)
