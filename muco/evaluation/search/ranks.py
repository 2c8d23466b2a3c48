"""The ranks of right answers in a whole pool, counted block by block.

H queries of a block that may have something to count, N pairs of a query and a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muco.evaluation.search.ranking import RelevantRank
from muco.evaluation.search.scan import (
    ScoredBlock,
    Scorer,
    at_least,
    blocks,
    count_true,
    in_parts,
    marked,
    next_above,
)
from muco.evaluation.search.vectors import Vectors


def rank_pool(
    query_QD: Tensor, pool: Vectors, relevant: Sequence[Sequence[int]], device: torch.device
) -> list[tuple[RelevantRank, ...]]:
    """Return the ranks of each query's right answers (their rows: `relevant`), by (-score, position).

    `query_QD` is float32 on the CPU, products are computed on `device`. Raise ValueError if a vector is not
    finite.
    """
    rights = [_Right.of(row, query_QD, pool, rows) for row, rows in enumerate(relevant)]
    slots = [
        [each for each in rights if len(each.rows) > slot]
        for slot in range(max(len(each.rows) for each in rights))
    ]

    def count_part(rows: range) -> list[Tensor]:
        scorer = Scorer(query_QD.to(device))
        columns = [_Column(scorer, having, slot) for slot, having in enumerate(slots)]
        for first, block_BD in blocks(pool, rows, device):
            block = scorer.scored(first, block_BD)
            most_Q = block.scores.amax(1)
            for column in columns:
                column.count(block, most_Q)
        return [column.counts.cpu() for column in columns]

    tallies: dict[int, list[list[int]]] = {}
    for having, counts in zip(slots, zip(*in_parts(count_part, len(pool), device), strict=True), strict=True):
        for each, tally in zip(having, torch.stack(counts).sum(0).T.tolist(), strict=True):
            tallies.setdefault(each.query, []).append(tally)
    return [each.relevant_ranks(tallies[each.query]) for each in rights]


@dataclass(frozen=True)
class _Right:
    """One query's right answers, by (-score, position)."""

    query: int
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, query: int, query_QD: Tensor, pool: Vectors, relevant: Sequence[int]) -> _Right:
        rows = np.unique(np.asarray(relevant, dtype=np.int64))
        vectors = pool.take(torch.from_numpy(rows))
        scores = (query_QD[query].double() * vectors.double()).sum(1).float().numpy()
        order = np.argsort(-scores, kind="stable")
        return cls(query, rows[order], scores[order])

    def relevant_ranks(self, tallies: Sequence[list[int]]) -> tuple[RelevantRank, ...]:
        """Return the ranks, from counts over the whole pool: the right answers are subtracted."""
        ranks: list[RelevantRank] = []
        for row, score, (above, tied, before) in zip(self.rows, self.scores, tallies, strict=True):
            same = self.scores == score
            ranks.append(
                RelevantRank(
                    score=float(score),
                    above=above - int((self.scores > score).sum()),
                    tied=tied - int(same.sum()),
                    tied_before=before - int((same & (self.rows < row)).sum()),
                )
            )
        return tuple(ranks)


class _Column:
    """The counts of the right answer number `slot` of each query that has so many."""

    def __init__(self, scorer: Scorer, rights: Sequence[_Right], slot: int) -> None:
        self.rights = rights
        self._scorer = scorer
        device = scorer.query_QD.device
        self._query = torch.tensor([each.query for each in rights], device=device)
        self._score = torch.tensor([float(each.scores[slot]) for each in rights], device=device)
        self._row = torch.tensor([int(each.rows[slot]) for each in rights], device=device)
        self.counts = torch.zeros(3, len(rights), dtype=torch.int64, device=device)
        """Candidates that score higher, that tie, and that tie and come earlier."""

    def count(self, block: ScoredBlock, most_Q: Tensor) -> None:
        """Add the counts of a block; `most_Q` are at least the queries' greatest scores in it."""
        score_QB, bound = block.scores, block.bound
        (hit_H,) = (most_Q[self._query] >= self._score - bound).nonzero(as_tuple=True)
        if not len(hit_H):
            return
        if len(hit_H) * 2 > len(score_QB) == len(self.rights):  # nearly all: a copy would take longer
            hit_H, score_HB = torch.arange(len(score_QB), device=score_QB.device), score_QB
        else:
            score_HB = score_QB[self._query[hit_H]]
        right_H1 = self._score[hit_H, None]
        above_HB = at_least(score_HB, next_above(right_H1 + bound))
        least_HB = at_least(score_HB, right_H1 - bound)
        above_H = count_true(above_HB)
        near_H = count_true(least_HB) - above_H
        if block.is_crowded(int(near_H.sum())):
            for part in block.parts():
                self.count(part, most_Q)
            return
        self.counts[0, hit_H] += above_H
        (near,) = near_H.nonzero(as_tuple=True)
        if len(near):
            hits_N, rows_N = marked(least_HB[near] ^ above_HB[near])
            self._settle(block, hit_H[near[hits_N]], rows_N)

    def _settle(self, block: ScoredBlock, queries_N: Tensor, rows_N: Tensor) -> None:
        """Count pairs whose order float32 could not decide."""
        exact_N = self._scorer.exactly(block, self._query[queries_N], rows_N)
        right_N = self._score[queries_N]
        tied_N = exact_N == right_N
        before_N = tied_N & (rows_N + block.first < self._row[queries_N])
        for kind, counted in enumerate((exact_N > right_N, tied_N, before_N)):
            self.counts[kind] += torch.bincount(queries_N[counted], minlength=len(self.rights))
