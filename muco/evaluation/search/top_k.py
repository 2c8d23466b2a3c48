"""The best candidates of a whole pool, updated block by block.

K candidates kept of each query, H queries of a block that may have better ones, N pairs of a query and a
candidate, M of these with those kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muco.evaluation.search.scan import PART_ROWS, Scorer, blocks, in_parts, is_crowded
from muco.evaluation.search.vectors import Vectors


def top_k_of_pool(query_QD: Tensor, pool: Vectors, num_best: int) -> tuple[Tensor, Tensor]:
    """Return scores float32 [Q, K] and rows int64 [Q, K], on the CPU, by (-score, position)."""

    def scan_part(rows: range) -> tuple[Tensor, Tensor]:
        best = _Best(query_QD, num_best)
        for first, block_BD in blocks(pool, rows, query_QD.device):
            best.merge(block_BD, first)
        return best.result(len(rows))

    scores, rows = zip(*in_parts(scan_part, len(pool), query_QD.device), strict=True)
    # Stable: candidates with equal scores stay in the order of their rows.
    score_QK, order_QK = torch.cat(scores, 1).sort(dim=1, descending=True, stable=True)
    return score_QK[:, :num_best], torch.cat(rows, 1).gather(1, order_QK)[:, :num_best]


class _Best(Scorer):
    """The best candidates of each query so far."""

    def __init__(self, query_QD: Tensor, num_best: int) -> None:
        super().__init__(query_QD)
        self.num_best = num_best
        self._is_empty = True
        number, device = len(query_QD), query_QD.device
        self._best_QK = torch.full((number, num_best), -torch.inf, device=device)
        self._rows_QK = torch.full((number, num_best), -1, dtype=torch.int64, device=device)

    def result(self, num_candidates: int) -> tuple[Tensor, Tensor]:
        """Return scores [Q, K] and rows [Q, K] on the CPU; K is at most the number of candidates."""
        return self._best_QK[:, :num_candidates].cpu(), self._rows_QK[:, :num_candidates].cpu()

    def merge(self, block_BD: Tensor, first: int) -> None:
        """Add the candidates of a block; blocks come in the order of their rows."""
        score_QB, bound = self.scores(block_BD)
        least_Q = self._best_QK[:, -1] - bound
        if self._is_empty and len(block_BD) > self.num_best:
            least_Q = score_QB.topk(self.num_best, dim=1).values[:, -1] - 2 * bound
        queries_N, rows_N = self.hits(score_QB, least_Q)
        if not len(queries_N):
            return
        if is_crowded(len(queries_N), block_BD):
            for part in range(0, len(block_BD), PART_ROWS):
                self.merge(block_BD[part : part + PART_ROWS], first + part)
            return
        self._is_empty = False
        self._add(queries_N, rows_N + first, self.exactly(block_BD, queries_N, rows_N))

    def _add(self, queries_N: Tensor, rows_N: Tensor, exact_N: Tensor) -> None:
        """Merge rows N into the best of their queries, which are in order."""
        hit_H, hits_N = queries_N.unique_consecutive(return_inverse=True)
        indices_H = torch.arange(len(hit_H), device=rows_N.device)
        hits_M = torch.cat([indices_H.repeat_interleave(self.num_best), hits_N])
        scores_M = torch.cat([self._best_QK[hit_H].flatten(), exact_N])
        rows_M = torch.cat([self._rows_QK[hit_H].flatten(), rows_N])
        # By query, then by score; equal scores stay in the order of their rows, in which they came.
        order = torch.sort(scores_M, descending=True, stable=True).indices
        order = order[torch.sort(hits_M[order], stable=True).indices]
        starts = torch.searchsorted(hits_M[order], indices_H)
        best = order[starts[:, None] + torch.arange(self.num_best, device=rows_N.device)]
        self._best_QK[hit_H], self._rows_QK[hit_H] = scores_M[best], rows_M[best]
