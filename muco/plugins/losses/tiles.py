"""Sums over the negatives of each query, tile by tile: the logits are never in memory as a whole.

N query turns, M target turns, D embedding size.

References:
    Cheng et al. 2024, arXiv:2410.17243: the contrastive loss in tiles, recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ROWS, TILE_COLUMNS = 2048, 4096
"""Logits in memory at once: a few tensors of 32 MiB in float32."""


@dataclass(frozen=True)
class Excluded:
    """The pairs that are not negatives."""

    rows: Tensor
    """int64 [P], ascending."""
    columns: Tensor
    """int64 [P]"""
    contents: tuple[Tensor, Tensor] | None
    """Content ids [N] and [M], if pairs of equal content are not negatives either."""

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return bool [rows, columns]: true for pairs that are not negatives."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        edges = torch.tensor([rows.start, rows.stop], device=self.rows.device)
        first, last = torch.searchsorted(self.rows, edges).tolist()
        row, column = self.rows[first:last] - rows.start, self.columns[first:last] - columns.start
        inside = (column >= 0) & (column < shape[1])
        excluded = torch.zeros(shape, dtype=torch.bool, device=self.rows.device)
        excluded[row[inside], column[inside]] = True
        if self.contents is not None:
            query_N, target_M = self.contents
            excluded |= query_N[rows, None] == target_M[columns]
        return excluded


class NegativesSum(NamedTuple):
    """Sums over the negatives of each query, for a softmax loss."""

    logsumexp: Tensor
    """[N], -inf without a negative; with gradient to both sides."""
    top: Tensor
    """[N], the greatest logit, also of those above the limit; -inf without a negative."""
    num_beyond: Tensor
    """int64 [N], how many are above the limit and not in the sum."""


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
        excluded: the pairs that are not negatives.
        temperature: divides the dot products.
        limit_N: greater logits are excluded too; it has no gradient.
        boost: multiplies the logits in the sum; the gradient is that of the logits before.
    """
    sums = _LogSumExp.apply(query_ND / temperature, target_MD, excluded, limit_N, boost)
    return NegativesSum(*sums)  # type: ignore[misc]


def negatives_softplus(query_ND: Tensor, target_MD: Tensor, excluded: Excluded) -> tuple[Tensor, Tensor]:
    """Return the sum of softplus over each query's negatives, and their greatest logit; both [N], float.

    A logit is a dot product. The sum has a gradient to both sides, and is 0 without a negative. The greatest
    logit has none, and is -inf without a negative.
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
        for rows, _, logits in _tiles(query_ND, target_MD, excluded):
            torch.maximum(top_N[rows], logits.amax(1), out=top_N[rows])
            if limit_N is not None:
                beyond_N[rows] += _exclude_beyond(logits, limit_N[rows])
            logits = logits if boost == 1 else logits.mul_(boost)
            torch.logaddexp(sum_N[rows], logits.logsumexp(1), out=sum_N[rows])
        ctx.save_for_backward(query_ND, target_MD, sum_N, limit_N)
        ctx.excluded, ctx.boost = excluded, boost
        ctx.mark_non_differentiable(top_N, beyond_N)
        return sum_N, top_N, beyond_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query_ND, target_MD, sum_N, limit_N = ctx.saved_tensors
        # A query without negatives has a gradient of zero, not NaN.
        sum_N = sum_N.clamp(min=torch.finfo(sum_N.dtype).min)

        def gradient(logits: Tensor, rows: slice) -> Tensor:
            if limit_N is not None:
                _exclude_beyond(logits, limit_N[rows])
            logits = logits if ctx.boost == 1 else logits.mul_(ctx.boost)
            return logits.sub_(sum_N[rows, None]).exp_().mul_(grad_N[rows, None])

        return *_gradients(query_ND, target_MD, ctx.excluded, gradient), None, None, None


class _Softplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_ND: Tensor, target_MD: Tensor, excluded: Excluded) -> tuple[Tensor, Tensor]:
        sum_N = query_ND.new_zeros(len(query_ND))
        top_N = query_ND.new_full((len(query_ND),), float("-inf"))
        for rows, _, logits in _tiles(query_ND, target_MD, excluded):
            torch.maximum(top_N[rows], logits.amax(1), out=top_N[rows])
            sum_N[rows] -= F.logsigmoid(-logits).sum(1)  # softplus, which torch replaces by a line above 20
        ctx.save_for_backward(query_ND, target_MD)
        ctx.excluded = excluded
        ctx.mark_non_differentiable(top_N)
        return sum_N, top_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _top: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query_ND, target_MD = ctx.saved_tensors

        def gradient(logits: Tensor, rows: slice) -> Tensor:
            return logits.sigmoid_().mul_(grad_N[rows, None])

        return *_gradients(query_ND, target_MD, ctx.excluded, gradient), None


def _tiles(query_ND: Tensor, target_MD: Tensor, excluded: Excluded) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the rows and columns of each tile with its logits, -inf for pairs that are not negatives."""
    num_rows, num_columns = len(query_ND), len(target_MD)
    for row in range(0, num_rows, TILE_ROWS):
        rows = slice(row, min(row + TILE_ROWS, num_rows))
        for column in range(0, num_columns, TILE_COLUMNS):
            columns = slice(column, min(column + TILE_COLUMNS, num_columns))
            logits = query_ND[rows] @ target_MD[columns].T
            yield rows, columns, logits.masked_fill_(excluded.tile(rows, columns), float("-inf"))


def _exclude_beyond(logits: Tensor, limit_N: Tensor) -> Tensor:
    """Set logits above the limit to -inf, in place; return how many each row had, int64."""
    beyond = logits > limit_N[:, None]
    logits.masked_fill_(beyond, float("-inf"))
    return beyond.sum(1)


def _gradients(
    query_ND: Tensor, target_MD: Tensor, excluded: Excluded, gradient: Callable[[Tensor, slice], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of both sides; `gradient` turns the logits of a tile into their gradients."""
    grad_query, grad_target = torch.zeros_like(query_ND), torch.zeros_like(target_MD)
    for rows, columns, logits in _tiles(query_ND, target_MD, excluded):
        grad_tile = gradient(logits, rows)
        grad_query[rows].addmm_(grad_tile, target_MD[columns])
        grad_target[columns].addmm_(grad_tile.T, query_ND[rows])
    return grad_query, grad_target
