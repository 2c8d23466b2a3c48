"""Exact search in blocks: the ranks of right answers among all candidates, and the best candidates of a pool.

Scores are cosines, summed in float64 and rounded once to float32, so that equal vectors score equally
wherever they are. Over a whole pool float32 products decide all that they can within their error bound; only
candidates that are nearer to a threshold are summed again in float64.

C candidates of one query, U of several queries together, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muco.core.suite import Task
from muco.evaluation.search.ranking import Ranking, RelevantRank
from muco.evaluation.search.ranks import rank_pool
from muco.evaluation.search.scan import NOT_FINITE, scores_of
from muco.evaluation.search.top_k import top_k_of_pool
from muco.evaluation.search.vectors import Vectors, as_vectors

_QUERIES = 2048
"""Queries that are scored at once."""
_LISTED = 16384
"""Candidates that are scored at once if each query has a list of its own."""


def rank_all(
    task: Task,
    query: Vectors | Tensor,
    pool: Vectors | Tensor,
    *,
    num_top: int = 0,
    top_queries: int = 0,
    device: torch.device | str = "cpu",
) -> list[Ranking]:
    """Rank the right answers of every query.

    The vectors of the task's queries and pool are in its order, unit length; products are computed on
    `device`. `Ranking.top` has the `num_top` best candidates of the first `top_queries` queries. Raise
    ValueError if a vector is not finite.
    """
    query, pool = as_vectors(query), as_vectors(pool)
    if task.candidates is not None:
        return list(_rank_lists(task, query, pool, num_top, top_queries))
    rankings: list[Ranking] = []
    tops = _tops(query, pool, num_top, min(top_queries, len(query)), device)
    for first in range(0, len(query), _QUERIES):
        stop = min(first + _QUERIES, len(query))
        right = task.relevant[first:stop]
        ranked = rank_pool(query.block(first, stop), pool, right, torch.device(device))
        rankings += [
            Ranking(each, len(pool), tops.get(row, ())) for row, each in enumerate(ranked, start=first)
        ]
    return rankings


def top_k(
    query_QD: Tensor, pool: Vectors | Tensor, num_best: int, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the best candidates of each query by (-score, position).

    `query_QD` is float32 of unit length; products are computed on `device`. Returns scores float32 [Q, K] and
    rows of the pool int64 [Q, K], K at most the size of the pool. Raise ValueError if a vector is not finite.
    """
    pool = as_vectors(pool)
    parts = [
        top_k_of_pool(query_QD[first : first + _QUERIES].to(device), pool, num_best)
        for first in range(0, len(query_QD), _QUERIES)
    ]
    return torch.cat([scores for scores, _ in parts]), torch.cat([rows for _, rows in parts])


def _tops(
    query: Vectors, pool: Vectors, num_top: int, num_queries: int, device: torch.device | str
) -> dict[int, tuple[tuple[int, float], ...]]:
    if not num_top or not num_queries:
        return {}
    scores, rows = top_k(query.block(0, num_queries), pool, num_top, device=device)
    pairs = zip(rows.tolist(), scores.tolist(), strict=True)
    return {row: tuple(zip(*each, strict=True)) for row, each in enumerate(pairs)}


def _rank_lists(
    task: Task, query: Vectors, pool: Vectors, num_top: int, top_queries: int
) -> Iterator[Ranking]:
    """Score some queries at once with the union of their candidates."""
    assert task.candidates is not None
    for first, stop in _portions([len(row) for row in task.candidates], _LISTED):
        lists = [np.asarray(row, dtype=np.int64) for row in task.candidates[first:stop]]
        union = np.unique(np.concatenate(lists))
        query_QD = query.block(first, stop)
        parts = [scores_of(query_QD, pool.take(rows)) for rows in torch.from_numpy(union).split(_LISTED)]
        scores_QU = torch.cat(parts, dim=1).numpy()
        if not np.isfinite(scores_QU).all():
            raise ValueError(NOT_FINITE)
        for row, candidates in enumerate(lists, start=first):
            score_C = scores_QU[row - first, np.searchsorted(union, candidates)]
            yield _rank_list(score_C, candidates, task.relevant[row], num_top if row < top_queries else 0)


def _portions(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of portions whose sizes add up to `most` at most; a larger one has one member."""
    first, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > first and filled + size > most:
            yield first, index
            first, filled = index, 0
        filled += size
    yield first, len(sizes)


def _rank_list(
    score_C: NDArray[np.float32], candidates: NDArray[np.int64], relevant: Sequence[int], num_top: int
) -> Ranking:
    is_right = np.isin(candidates, np.asarray(relevant))
    right = np.flatnonzero(is_right)
    wrong_scores = np.sort(score_C[~is_right])
    ranks: list[RelevantRank] = []
    for position in right[np.argsort(-score_C[right], kind="stable")]:
        score = score_C[position]
        low, high = np.searchsorted(wrong_scores, score), np.searchsorted(wrong_scores, score, "right")
        before = int(((score_C == score) & ~is_right)[:position].sum()) if high > low else 0
        ranks.append(RelevantRank(float(score), len(wrong_scores) - int(high), int(high - low), before))
    order = np.argsort(-score_C, kind="stable")[:num_top]
    top = tuple((int(candidates[position]), float(score_C[position])) for position in order)
    return Ranking(tuple(ranks), len(candidates), top)
