"""The mean of a turn's own hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from muco.core.turns import TurnStates
from muco.plugins.poolers.projection import ProjectedPooler


class Mean(ProjectedPooler):
    """Average the states of each turn's span; the shared prefix is not in it."""

    pooled = "mean"

    def reduce(self, states: TurnStates) -> Tensor:
        spans = states.spans
        length_N = spans.stop - spans.start
        # T: all turns' own tokens, laid end to end; token t belongs to turn `owner_T[t]`.
        owner_T = torch.repeat_interleave(length_N)
        first_N = length_N.cumsum(0) - length_N
        within_T = torch.arange(len(owner_T), device=owner_T.device) - first_N[owner_T]
        token_TH = states.hidden[spans.start[owner_T] + within_T]
        token_TH = token_TH.to(torch.promote_types(token_TH.dtype, torch.float32))
        sum_NH = token_TH.new_zeros(len(length_N), token_TH.shape[1]).index_add_(0, owner_T, token_TH)
        return sum_NH / length_N[:, None]
