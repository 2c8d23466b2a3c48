"""Log-sum-exp over the negatives of each query, tile by tile: the logits are never whole in memory.

N query turns, M target turns, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
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


def negatives_logsumexp(
    query_ND: Tensor, target_MD: Tensor, excluded: Excluded, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log-sum-exp and maximum of each query's logits over its negatives; -inf where it has none.

    Args:
        query_ND: float; gradient flows into both sides through the log-sum-exp.
        target_MD: float.
        excluded: what is no negative.
        temperature: divides the dot products.

    Returns:
        (log-sum-exp [N], maximum [N] without gradient).

    References:
        Cheng et al. 2024, arXiv:2410.17243: the contrastive loss in tiles, backward by recomputation.
    """
    return _NegativesLogSumExp.apply(query_ND / temperature, target_MD, excluded)  # type: ignore[return-value]


class _NegativesLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_ND: Tensor, target_MD: Tensor, excluded: Excluded) -> tuple[Tensor, Tensor]:
        sum_N = query_ND.new_full((len(query_ND),), float("-inf"))
        top_N = sum_N.clone()
        for rows, columns in _tiles(len(query_ND), len(target_MD)):
            logits = _logits(query_ND, target_MD, excluded, rows, columns)
            torch.logaddexp(sum_N[rows], logits.logsumexp(1), out=sum_N[rows])
            torch.maximum(top_N[rows], logits.amax(1), out=top_N[rows])
        ctx.save_for_backward(query_ND, target_MD, sum_N)
        ctx.excluded = excluded
        ctx.mark_non_differentiable(top_N)
        return sum_N, top_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _top: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        query_ND, target_MD, sum_N = ctx.saved_tensors
        # A query without negatives has no share to give, rather than one that is not a number.
        sum_N = sum_N.clamp(min=torch.finfo(sum_N.dtype).min)
        grad_query, grad_target = torch.zeros_like(query_ND), torch.zeros_like(target_MD)
        for rows, columns in _tiles(len(query_ND), len(target_MD)):
            share = _logits(query_ND, target_MD, ctx.excluded, rows, columns)
            share.sub_(sum_N[rows, None]).exp_().mul_(grad_N[rows, None])
            grad_query[rows].addmm_(share, target_MD[columns])
            grad_target[columns].addmm_(share.T, query_ND[rows])
        return grad_query, grad_target, None


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
