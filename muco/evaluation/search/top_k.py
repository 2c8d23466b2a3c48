"""The best candidates of a whole pool, updated block by block.

Float32 scores find the contenders: candidates whose score is so near the K-th best that its error may hide
one of the K best. Only their scores are summed again in float64. A query with more contenders than slots, as
where a pool holds copies, is searched again with exact scores of every candidate that may be among the best.

K candidates wanted of each query, S slots, H queries of a block that may have better ones, N pairs of a query
and a candidate, M of these with those kept, T columns of a table of both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muco.evaluation.search.scan import ScoredBlock, Scorer, blocks, in_parts, scores_of_pairs
from muco.evaluation.search.vectors import Vectors

_MOST_CELLS = 1 << 18
"""Of a table of the rows that are merged at once."""
_SPARE = 16
"""Slots of a query for contenders beyond the K best."""


def top_k_of_pool(query_QD: Tensor, pool: Vectors, num_best: int) -> tuple[Tensor, Tensor]:
    """Return scores float32 [Q, K] and rows int64 [Q, K], on the CPU, by (-score, position)."""
    rows_QS, overflow_Q = _contenders(query_QD, pool, num_best)
    score_QK, rows_QK = _best_of(query_QD.cpu(), pool, rows_QS, num_best)
    if overflow_Q.any():
        score_QK[overflow_Q], rows_QK[overflow_Q] = _exact_top_k(query_QD[overflow_Q], pool, num_best)
    return score_QK, rows_QK


def _contenders(query_QD: Tensor, pool: Vectors, num_best: int) -> tuple[Tensor, Tensor]:
    """Return rows int64 [Q, S], -1 where a slot is empty, and whether a query has too many, bool [Q]."""

    def scan_part(rows: range) -> tuple[Tensor, Tensor]:
        best = _Contenders(query_QD, num_best)
        best.scan(pool, rows)
        return best.rows_QS.cpu(), best.overflow_Q.cpu()

    rows, overflows = zip(*in_parts(scan_part, len(pool), query_QD.device), strict=True)
    return torch.cat(rows, 1), torch.stack(overflows).any(0)


def _best_of(query_QD: Tensor, pool: Vectors, rows_QS: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    """Return the best of the rows, as `top_k_of_pool` does."""
    rows_QS = rows_QS.sort(dim=1).values  # a stable sort by score then has equal scores by row
    queries_N, slots_N = (rows_QS >= 0).nonzero(as_tuple=True)
    score_QS = torch.full(rows_QS.shape, -torch.inf)
    rows_N = rows_QS[queries_N, slots_N]
    score_QS[queries_N, slots_N] = scores_of_pairs(query_QD, pool.take, queries_N, rows_N)
    score_QS, order_QS = score_QS.sort(dim=1, descending=True, stable=True)
    number = min(num_best, len(pool))
    return score_QS[:, :number], rows_QS.gather(1, order_QS)[:, :number]


def _exact_top_k(query_QD: Tensor, pool: Vectors, num_best: int) -> tuple[Tensor, Tensor]:
    """Return what `top_k_of_pool` does, with exact scores of all that may be among the best."""

    def scan_part(rows: range) -> tuple[Tensor, Tensor]:
        best = _Best(query_QD, num_best)
        best.scan(pool, rows)
        return best.score_QS[:, : len(rows)].cpu(), best.rows_QS[:, : len(rows)].cpu()

    scores, rows = zip(*in_parts(scan_part, len(pool), query_QD.device), strict=True)
    # Stable: candidates with equal scores stay in the order of their rows.
    score_QK, order_QK = torch.cat(scores, 1).sort(dim=1, descending=True, stable=True)
    return score_QK[:, :num_best], torch.cat(rows, 1).gather(1, order_QK)[:, :num_best]


class _Best(Scorer):
    """The best candidates of each query so far, by exact scores."""

    margin = 1
    """How many errors of float32 scores a candidate may be below the K-th best and yet belong to them."""

    def __init__(self, query_QD: Tensor, num_best: int, num_slots: int | None = None) -> None:
        super().__init__(query_QD)
        self.num_best = num_best
        self._is_empty = True
        shape, device = (len(query_QD), num_slots or num_best), query_QD.device
        self.score_QS = torch.full(shape, -torch.inf, device=device)
        self.rows_QS = torch.full(shape, -1, dtype=torch.int64, device=device)

    def scan(self, pool: Vectors, rows: range) -> None:
        """Read the candidates of some rows, in their order."""
        for first, block_BD in blocks(pool, rows, self.query_QD.device):
            self._merge(first, block_BD)

    def _merge(self, first: int, block_BD: Tensor) -> None:
        block = self.scored(first, block_BD)
        least_Q = self.score_QS[:, self.num_best - 1] - self.margin * block.bound
        if self._is_empty and len(block_BD) > self.num_best:
            least_Q = block.scores.topk(self.num_best, dim=1).values[:, -1] - 2 * block.bound
        queries_N, rows_N = self.hits(block.scores, least_Q)
        if not len(queries_N):
            return
        if block.is_crowded(len(queries_N)):
            for part in block.parts():  # scored anew: the best of earlier parts leave fewer pairs
                self._merge(part.first, part.vectors)
            return
        self._is_empty = False
        self._keep(block, queries_N, rows_N)

    def _keep(self, block: ScoredBlock, queries_N: Tensor, rows_N: Tensor) -> None:
        """Merge candidates of a block into the best of their queries, which are in order."""
        scores_N = self.exactly(block, queries_N, rows_N)
        self._insert(queries_N, rows_N + block.first, scores_N)

    def _insert(self, queries_N: Tensor, rows_N: Tensor, scores_N: Tensor) -> Tensor:
        """Merge rows of the pool into the best of their queries; return these queries, int64 [H]."""
        num_slots = self.score_QS.shape[1]
        hit_H, hits_N = queries_N.unique_consecutive(return_inverse=True)
        indices_H = torch.arange(len(hit_H), device=rows_N.device)
        hits_M = torch.cat([indices_H.repeat_interleave(num_slots), hits_N])
        scores_M = torch.cat([self.score_QS[hit_H].flatten(), scores_N])
        rows_M = torch.cat([self.rows_QS[hit_H].flatten(), rows_N])
        # By query, then by score; equal scores stay in the order of their rows, in which they came.
        order = torch.sort(scores_M, descending=True, stable=True).indices
        order = order[torch.sort(hits_M[order], stable=True).indices]
        starts = torch.searchsorted(hits_M[order], indices_H)
        best = order[starts[:, None] + torch.arange(num_slots, device=rows_N.device)]
        self.score_QS[hit_H], self.rows_QS[hit_H] = scores_M[best], rows_M[best]
        return hit_H


class _Contenders(_Best):
    """The candidates that may be among the best, by float32 scores."""

    margin = 2  # the error of the candidate's score, and of the K-th best

    def __init__(self, query_QD: Tensor, num_best: int) -> None:
        super().__init__(query_QD, num_best, num_best + _SPARE)
        self.overflow_Q = torch.zeros(len(query_QD), dtype=torch.bool, device=query_QD.device)

    def _keep(self, block: ScoredBlock, queries_N: Tensor, rows_N: Tensor) -> None:
        added = queries_N, rows_N + block.first, block.scores[queries_N, rows_N]
        hit_H = self._insert_by_table(*added)
        if hit_H is None:
            hit_H = self._insert(*added)
        last_H, least_H = self.score_QS[hit_H, -1], self.score_QS[hit_H, self.num_best - 1] - 2 * block.bound
        self.overflow_Q[hit_H] |= (last_H >= least_H) & (last_H > -torch.inf)

    def _insert_by_table(self, queries_N: Tensor, rows_N: Tensor, scores_N: Tensor) -> Tensor | None:
        """Do what `_insert` does, faster, if no query has many rows; the order of equal scores is open."""
        hit_H, hits_N, counts_H = queries_N.unique_consecutive(return_inverse=True, return_counts=True)
        num_slots, width = self.score_QS.shape[1], int(counts_H.max())
        if len(hit_H) * width > _MOST_CELLS:
            return None
        starts_H = counts_H.cumsum(0) - counts_H
        columns_N = num_slots + torch.arange(len(rows_N), device=rows_N.device) - starts_H[hits_N]
        score_HT = self.score_QS.new_full((len(hit_H), num_slots + width), -torch.inf)
        row_HT = self.rows_QS.new_full(score_HT.shape, -1)
        score_HT[:, :num_slots], row_HT[:, :num_slots] = self.score_QS[hit_H], self.rows_QS[hit_H]
        score_HT[hits_N, columns_N], row_HT[hits_N, columns_N] = scores_N, rows_N
        best_HS, order_HS = score_HT.topk(num_slots, dim=1)
        self.score_QS[hit_H], self.rows_QS[hit_H] = best_HS, row_HT.gather(1, order_HS)
        return hit_H
