"""Sums over the negatives of each query, tile by tile: the logits are never whole in memory.

N query turns, M target turns, D embedding size.

References:
    Cheng et al. 2024, arXiv:2410.17243: the contrastive loss in tiles, backward by recomputation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ROWS, TILE_COLUMNS = 2048, 4096
"""Logits held at once: 32 MiB in float32, a few times over."""


@dataclass(frozen=True)
class Excluded:
    """The pairs that are no negatives."""

    rows: Tensor
    """int64 [P], ascending."""
    columns: Tensor
    """int64 [P]"""
    contents: tuple[Tensor, Tensor] | None
    """Content ids [N] and [M], where pairs of equal content are no negatives either."""

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return bool [rows, columns]: true for what is no negative."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        edges = torch.tensor([rows.start, rows.stop], device=self.rows.device)
        first, last = torch.searchsorted(self.rows, edges).tolist()
        row, column = self.rows[first:last] - rows.start, self.columns[first:last] - columns.start
        inside = (column >= 0) & (column < shape[1])
        found = torch.zeros(shape, dtype=torch.bool, device=self.rows.device)
        found[row[inside], column[inside]] = True
        if self.contents is not None:
            query_N, target_M = self.contents
            found |= query_N[rows, None] == target_M[columns]
        return found


class NegativesSum(NamedTuple):
    """What a softmax loss needs to know of each query's negatives."""

    logsumexp: Tensor
    """[N], -inf where there is none; gradient flows into both sides."""
    top: Tensor
    """[N], the greatest logit, those beyond the limit among them; -inf where there is none."""
    num_beyond: Tensor
    """int64 [N], how many lie beyond the limit and were left out of the sum."""


def negatives_logsumexp(
    query_ND: Tensor,
    target_MD: Tensor,
    excluded: Excluded,
    *,
    temperature: float,
    limit_N: Tensor | None = None,
    boost: float = 1.0,
) -> NegativesSum:
    """Return the log-sum-exp of each query's logits over its negatives.

    Args:
        query_ND: float.
        target_MD: float.
        excluded: what is no negative.
        temperature: divides the dot products.
        limit_N: a greater logit is left out too; no gradient flows into it.
        boost: multiplies the logits in the sum, by a factor that the gradient does not see.
    """
    found = _LogSumExp.apply(query_ND / temperature, target_MD, excluded, limit_N, boost)
    return NegativesSum(*found)  # type: ignore[misc]


def negatives_softplus(query_ND: Tensor, target_MD: Tensor, excluded: Excluded) -> tuple[Tensor, Tensor]:
    """Return the sum of softplus over each query's negatives, and their greatest logit.

    Args:
        query_ND: float; a logit is a dot product. Gradient flows into both sides through the sum.
        target_MD: float.
        excluded: what is no negative.

    Returns:
        (sum [N], 0 where there is no negative; greatest logit [N] without gradient, -inf there).
    """
    return _Softplus.apply(query_ND, target_MD, excluded)  # type: ignore[return-value]


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_ND: Tensor,
        target_MD: Tensor,
        excluded: Excluded,
        limit_N: Tensor | None,
        boost: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sum_N = query_ND.new_full((len(query_ND),), float("-inf"))
        top_N = sum_N.clone()
        beyond_N = torch.zeros(len(query_ND), dtype=torch.int64, device=query_ND.device)
        for rows, columns in _tiles(len(query_ND), len(target_MD)):
            logits = _logits(query_ND, target_MD, excluded, rows, columns)
            torch.maximum(top_N[rows], logits.amax(1), out=top_N[rows])
            if limit_N is not None:
                beyond_N[rows] += _leave_out(logits, limit_N[rows])
            logits = logits if boost == 1 else logits.mul_(boost)
            torch.logaddexp(sum_N[rows], logits.logsumexp(1), out=sum_N[rows])
        ctx.save_for_backward(query_ND, target_MD, sum_N, limit_N)
        ctx.excluded, ctx.boost = excluded, boost
        ctx.mark_non_differentiable(top_N, beyond_N)
        return sum_N, top_N, beyond_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query_ND, target_MD, sum_N, limit_N = ctx.saved_tensors
        # A query without negatives has no share to give, rather than one that is not a number.
        sum_N = sum_N.clamp(min=torch.finfo(sum_N.dtype).min)

        def share(logits: Tensor, rows: slice) -> Tensor:
            if limit_N is not None:
                _leave_out(logits, limit_N[rows])
            logits = logits if ctx.boost == 1 else logits.mul_(ctx.boost)
            return logits.sub_(sum_N[rows, None]).exp_().mul_(grad_N[rows, None])

        return *_gradients(query_ND, target_MD, ctx.excluded, share), None, None, None


class _Softplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_ND: Tensor, target_MD: Tensor, excluded: Excluded) -> tuple[Tensor, Tensor]:
        sum_N = query_ND.new_zeros(len(query_ND))
        top_N = query_ND.new_full((len(query_ND),), float("-inf"))
        for rows, columns in _tiles(len(query_ND), len(target_MD)):
            logits = _logits(query_ND, target_MD, excluded, rows, columns)
            torch.maximum(top_N[rows], logits.amax(1), out=top_N[rows])
            sum_N[rows] -= F.logsigmoid(-logits).sum(1)  # softplus, without its threshold
        ctx.save_for_backward(query_ND, target_MD)
        ctx.excluded = excluded
        ctx.mark_non_differentiable(top_N)
        return sum_N, top_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _top: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query_ND, target_MD = ctx.saved_tensors

        def share(logits: Tensor, rows: slice) -> Tensor:
            return logits.sigmoid_().mul_(grad_N[rows, None])

        return *_gradients(query_ND, target_MD, ctx.excluded, share), None


def _tiles(num_rows: int, num_columns: int) -> Iterator[tuple[slice, slice]]:
    for row in range(0, num_rows, TILE_ROWS):
        for column in range(0, num_columns, TILE_COLUMNS):
            yield (
                slice(row, min(row + TILE_ROWS, num_rows)),
                slice(column, min(column + TILE_COLUMNS, num_columns)),
            )


def _logits(query_ND: Tensor, target_MD: Tensor, excluded: Excluded, rows: slice, columns: slice) -> Tensor:
    logits = query_ND[rows] @ target_MD[columns].T
    return logits.masked_fill_(excluded.tile(rows, columns), float("-inf"))


def _leave_out(logits: Tensor, limit_N: Tensor) -> Tensor:
    """Set the logits beyond the limit to -inf, in place; return how many each row had, int64."""
    beyond = logits > limit_N[:, None]
    logits.masked_fill_(beyond, float("-inf"))
    return beyond.sum(1)


def _gradients(
    query_ND: Tensor, target_MD: Tensor, excluded: Excluded, share: Callable[[Tensor, slice], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return both sides' gradients; `share` turns a tile's logits into the gradient of each of them."""
    grad_query, grad_target = torch.zeros_like(query_ND), torch.zeros_like(target_MD)
    for rows, columns in _tiles(len(query_ND), len(target_MD)):
        each = share(_logits(query_ND, target_MD, excluded, rows, columns), rows)
        grad_query[rows].addmm_(each, target_MD[columns])
        grad_target[columns].addmm_(each.T, query_ND[rows])
    return grad_query, grad_target
