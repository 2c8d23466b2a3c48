"""Exact search in blocks: where right answers stand, counted over all candidates, and the best of a pool.

Scores are cosines, summed in float64 and rounded once to float32, so that equal vectors score equally
wherever they lie. Over a whole pool a float32 product decides whatever it can decide within its error bound,
and only candidates nearer to a threshold than that are summed again in float64.

Q queries, P candidates of the pool, B of one block, C of one query, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from muco.core.suite import Task
from muco.evaluation.vectors import Vectors, as_vectors

T = TypeVar("T")

BLOCK_ROWS = 8192
"""Candidates that are scored at once."""
_MOST_THREADS = 16
"""Each has scores of its own in memory, and they share its bandwidth."""
_QUERIES = 2048
"""Queries that are scored at once."""
_LISTED = 16384
"""Candidates of own lists that are scored at once."""
_NUMBERS = 1 << 22
"""Products of single numbers that are held in float64 at once."""
_MOST_PAIRS = 1 << 18
"""Scores near a threshold that are settled at once."""
_PART_ROWS = 256
"""Candidates that are scored at once where most lie near a threshold."""
_DENSE = 1 / 64
"""The share of scores near a threshold from which all of them are summed again."""
_NOT_FINITE = "a vector of the queries or of the candidates is not finite"


@dataclass(frozen=True)
class Standing:
    """How one right answer stands among its query's wrong candidates."""

    score: float
    above: int
    """Wrong candidates that score more."""
    tied: int
    """Wrong candidates that score the same."""
    tied_before: int
    """Those of them that come earlier in the list."""


@dataclass(frozen=True)
class Ranking:
    """How one query's right answers stand among its candidates."""

    right: tuple[Standing, ...]
    """At least one, by (-score, position)."""
    num_candidates: int
    top: tuple[tuple[int, float], ...] = ()
    """The best candidates, as (index into the pool, score), by (-score, position), where asked for."""

    @property
    def rank(self) -> int:
        """The best rank that the best right answer can claim, from 1."""
        return 1 + self.right[0].above

    @property
    def is_tied(self) -> bool:
        """Whether a right answer shares the very top with a wrong one."""
        return self.right[0].above == 0 and self.right[0].tied > 0


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

    Args:
        task: says which candidates and which right answers each query has.
        query: the task's queries in order, unit length.
        pool: the task's pool in order, unit length.
        num_top: how many of the best candidates to keep by name.
        top_queries: for how many of the first queries.
        device: where products are computed.

    Raises:
        ValueError: a vector is not finite.
    """
    query, pool = as_vectors(query), as_vectors(pool)
    if task.candidates is not None:
        return list(_rank_lists(task, query, pool, num_top, top_queries))
    found: list[Ranking] = []
    tops = _tops(query, pool, num_top, min(top_queries, len(query)), device)
    for first in range(0, len(query), _QUERIES):
        stop = min(first + _QUERIES, len(query))
        right = task.relevant[first:stop]
        ranked = _rank_pool(query.block(first, stop), pool, right, torch.device(device))
        found += [Ranking(each, len(pool), tops.get(row, ())) for row, each in enumerate(ranked, start=first)]
    return found


def best_of(
    query_QD: Tensor, pool: Vectors | Tensor, num_best: int, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the best candidates of each query, by (-score, position).

    Args:
        query_QD: float32, unit length.
        pool: P candidates.
        num_best: K; fewer are returned where the pool is smaller.
        device: where products are computed.

    Returns:
        scores float32 [Q, K] and rows of the pool int64 [Q, K].

    Raises:
        ValueError: a vector is not finite.
    """
    pool = as_vectors(pool)
    parts = [
        _best(query_QD[first : first + _QUERIES].to(device), pool, num_best)
        for first in range(0, len(query_QD), _QUERIES)
    ]
    return torch.cat([scores for scores, _ in parts]), torch.cat([rows for _, rows in parts])


def scores_of(query_QD: Tensor, pool_PD: Tensor) -> Tensor:
    """Return all scores, float32 [Q, P]."""
    return (query_QD.double() @ pool_PD.double().T).float()


# Lists of their own


def _rank_lists(
    task: Task, query: Vectors, pool: Vectors, num_top: int, top_queries: int
) -> Iterator[Ranking]:
    """Score queries and the union of their candidates, a few queries at once."""
    assert task.candidates is not None
    for first, stop in _portions([len(row) for row in task.candidates], _LISTED):
        lists = [np.asarray(row, dtype=np.int64) for row in task.candidates[first:stop]]
        union = np.unique(np.concatenate(lists))
        query_QD = query.block(first, stop)
        parts = [scores_of(query_QD, pool.take(rows)) for rows in torch.from_numpy(union).split(_LISTED)]
        scores_QU = torch.cat(parts, dim=1).numpy()
        if not np.isfinite(scores_QU).all():
            raise ValueError(_NOT_FINITE)
        for row, places in enumerate(lists, start=first):
            score_C = scores_QU[row - first, np.searchsorted(union, places)]
            keep = num_top if row < top_queries else 0
            yield _rank_list(score_C, places, task.relevant[row], keep)


def _portions(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Split a sequence into runs whose sizes sum up to `most`, or that have one member."""
    first, filled = 0, 0
    for place, size in enumerate(sizes):
        if place > first and filled + size > most:
            yield first, place
            first, filled = place, 0
        filled += size
    yield first, len(sizes)


def _rank_list(
    score_C: NDArray[np.float32], places: NDArray[np.int64], relevant: Sequence[int], num_top: int
) -> Ranking:
    is_right = np.isin(places, np.asarray(relevant))
    right = np.flatnonzero(is_right)
    wrong_scores = np.sort(score_C[~is_right])
    standings: list[Standing] = []
    for place in right[np.argsort(-score_C[right], kind="stable")]:
        score = score_C[place]
        low, high = np.searchsorted(wrong_scores, score), np.searchsorted(wrong_scores, score, "right")
        before = int(((score_C == score) & ~is_right)[:place].sum()) if high > low else 0
        standings.append(Standing(float(score), len(wrong_scores) - int(high), int(high - low), before))
    order = np.argsort(-score_C, kind="stable")[:num_top]
    top = tuple((int(places[place]), float(score_C[place])) for place in order)
    return Ranking(tuple(standings), len(places), top)


# The whole pool


def _tops(
    query: Vectors, pool: Vectors, num_top: int, num_queries: int, device: torch.device | str
) -> dict[int, tuple[tuple[int, float], ...]]:
    if not num_top or not num_queries:
        return {}
    scores, rows = best_of(query.block(0, num_queries), pool, num_top, device=device)
    pairs = zip(rows.tolist(), scores.tolist(), strict=True)
    return {row: tuple(zip(*each, strict=True)) for row, each in enumerate(pairs)}


def _best(query_QD: Tensor, pool: Vectors, num_best: int) -> tuple[Tensor, Tensor]:
    def over(rows: range) -> tuple[Tensor, Tensor]:
        best = _Best(query_QD, num_best)
        for first, block_BD in _blocks(pool, rows, query_QD.device):
            best.merge(block_BD, first)
        return best.kept(len(rows))

    scores, rows = zip(*_in_parts(over, len(pool), query_QD.device), strict=True)
    # Equals stay in the order of their rows, as the parts are.
    score_QK, order_QK = torch.cat(scores, 1).sort(dim=1, descending=True, stable=True)
    return score_QK[:, :num_best], torch.cat(rows, 1).gather(1, order_QK)[:, :num_best]


def _rank_pool(
    query_QD: Tensor, pool: Vectors, relevant: Sequence[Sequence[int]], device: torch.device
) -> list[tuple[Standing, ...]]:
    rights = [_Right.of(row, query_QD, pool, places) for row, places in enumerate(relevant)]
    slots = [
        [each for each in rights if len(each.rows) > slot]
        for slot in range(max(len(each.rows) for each in rights))
    ]

    def over(rows: range) -> list[Tensor]:
        scorer = _Scorer(query_QD.to(device))
        columns = [_Column(scorer, having, slot) for slot, having in enumerate(slots)]
        for first, block_BD in _blocks(pool, rows, device):
            score_QB, bound = scorer.scores(block_BD)
            most_Q = score_QB.amax(1)
            for column in columns:
                column.count(most_Q, score_QB, bound, block_BD, first)
        return [column.counts.cpu() for column in columns]

    tallies: dict[int, list[list[int]]] = {}
    for having, counts in zip(slots, zip(*_in_parts(over, len(pool), device), strict=True), strict=True):
        for each, tally in zip(having, torch.stack(counts).sum(0).T.tolist(), strict=True):
            tallies.setdefault(each.query, []).append(tally)
    return [each.standings(tallies[each.query]) for each in rights]


@dataclass(frozen=True)
class _Right:
    """One query's right answers, by (-score, position)."""

    query: int
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, query: int, query_QD: Tensor, pool: Vectors, places: Sequence[int]) -> _Right:
        rows = np.unique(np.asarray(places, dtype=np.int64))
        found = pool.take(torch.from_numpy(rows))
        scores = (query_QD[query].double() * found.double()).sum(1).float().numpy()
        order = np.argsort(-scores, kind="stable")
        return cls(query, rows[order], scores[order])

    def standings(self, tallies: Sequence[list[int]]) -> tuple[Standing, ...]:
        """Take the right answers themselves out of what was counted over the whole pool."""
        found: list[Standing] = []
        for place, (above, tied, before) in enumerate(tallies):
            score = self.scores[place]
            same = self.scores == score
            found.append(
                Standing(
                    score=float(score),
                    above=above - int((self.scores > score).sum()),
                    tied=tied - int(same.sum()),
                    tied_before=before - int((same & (self.rows < self.rows[place])).sum()),
                )
            )
        return tuple(found)


def _in_parts(over: Callable[[range], T], number: int, device: torch.device) -> list[T]:
    """Return what is found over each part of a pool's rows, in their order; on a CPU by a thread each.

    A thread multiplies and looks through its own scores, so that none waits for another's.
    """
    threads = min(torch.get_num_threads(), _MOST_THREADS, -(-number // BLOCK_ROWS))
    if device.type != "cpu" or threads < 2:
        return [over(range(number))]
    edges = [number * part // threads for part in range(threads + 1)]
    with _one_thread_each(), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(over, map(range, edges, edges[1:])))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(number)


def _blocks(pool: Vectors, rows: range, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield the blocks of some of a pool's rows on a device, each with its first row."""
    for first in rows[::BLOCK_ROWS]:
        yield first, pool.block(first, min(first + BLOCK_ROWS, rows.stop)).to(device)


class _Scorer:
    """Float32 scores of blocks, and the bound of their error."""

    def __init__(self, query_QD: Tensor) -> None:
        self.query_QD = query_QD
        self._norm = float(query_QD.norm(dim=1).max())
        self._space = query_QD.new_empty(len(query_QD) * BLOCK_ROWS)

    def scores(self, block_BD: Tensor) -> tuple[Tensor, float]:
        """Return float32 [Q, B], and how far one may lie from the true score rounded to float32.

        The scores are overwritten by the next block's.

        Raises:
            ValueError: a vector is not finite.
        """
        longest = float(torch.linalg.vector_norm(block_BD, dim=1).max())
        # D products and sums, each rounded to half a unit of 2^-23, and the rounding of the result.
        bound = (block_BD.shape[1] + 2) * 2.0**-24 * self._norm * longest * 1.01
        if not isfinite(bound):
            raise ValueError(_NOT_FINITE)
        number, size = len(self.query_QD), len(block_BD)
        score_QB = self._space[: number * size].view(number, size)
        if block_BD.device.type == "cpu":  # numpy's OpenBLAS: torch's MKL is slower on many processors
            np.matmul(self.query_QD.numpy(), block_BD.numpy().T, out=score_QB.numpy())
        else:
            torch.mm(self.query_QD, block_BD.T, out=score_QB)
        return score_QB, bound

    def exactly(self, block_BD: Tensor, queries_N: Tensor, rows_N: Tensor) -> Tensor:
        """Return the true scores of pairs of a query and a row of the block, float32 [N]."""
        if len(rows_N) > _DENSE * len(block_BD) * len(self.query_QD):
            return scores_of(self.query_QD, block_BD)[queries_N, rows_N]
        size = max(1, _NUMBERS // self.query_QD.shape[1])
        parts = [
            (self.query_QD[queries].double() * block_BD[rows].double()).sum(1).float()
            for queries, rows in zip(queries_N.split(size), rows_N.split(size), strict=True)
        ]
        return torch.cat(parts)


def _at_least(score_QB: Tensor, least_Q1: Tensor) -> Tensor:
    """Return where a score is no less than its query's threshold, bool [Q, B]."""
    if score_QB.device.type == "cpu":  # twice as fast as torch
        return torch.from_numpy(np.greater_equal(score_QB.numpy(), least_Q1.numpy()))
    return score_QB >= least_Q1


def _next(value: Tensor) -> Tensor:
    """Return the next greater numbers: what is no less than these is greater than `value`."""
    return torch.nextafter(value, torch.full_like(value, torch.inf))


def _count(mask_QB: Tensor) -> Tensor:
    """Return how many are true in each row, int64 [Q]."""
    if mask_QB.shape[1] % 8:
        return mask_QB.sum(1)
    # Eight at once: the bytes of a word count up to 255 each, so that none runs over into the next.
    parts = mask_QB.contiguous().view(torch.int64).split(255, dim=1)
    return torch.stack([part.sum(1, keepdim=True).view(torch.uint8).sum(1) for part in parts]).sum(0)


def _marked(mask_QB: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of what is true, row by row."""
    if mask_QB.device.type == "cpu":  # many times faster than torch
        flat = torch.from_numpy(np.flatnonzero(mask_QB.numpy()))
        return flat // mask_QB.shape[1], flat % mask_QB.shape[1]
    rows, columns = mask_QB.nonzero(as_tuple=True)
    return rows, columns


def _is_crowded(num_pairs: int, block_BD: Tensor) -> bool:
    """Say whether a block must be taken in smaller parts, for memory's sake."""
    return len(block_BD) > _PART_ROWS and num_pairs > _MOST_PAIRS


class _Column:
    """The counts of one right answer of each query that has so many."""

    def __init__(self, scorer: _Scorer, rights: Sequence[_Right], slot: int) -> None:
        self.rights = rights
        self._scorer = scorer
        device = scorer.query_QD.device
        self._query = torch.tensor([each.query for each in rights], device=device)
        self._score = torch.tensor([float(each.scores[slot]) for each in rights], device=device)
        self._row = torch.tensor([int(each.rows[slot]) for each in rights], device=device)
        self.counts = torch.zeros(3, len(rights), dtype=torch.int64, device=device)
        """Candidates above, tied, and tied but earlier."""

    def count(self, most_Q: Tensor, score_QB: Tensor, bound: float, block_BD: Tensor, first: int) -> None:
        """Add a block's candidates above, tied, and tied but earlier; `most_Q` are each query's maxima."""
        (hit_H,) = (most_Q[self._query] >= self._score - bound).nonzero(as_tuple=True)
        if not len(hit_H):
            return
        if len(hit_H) * 2 > len(score_QB) == len(self.rights):  # nearly all: a copy would take longer
            hit_H, score_HB = torch.arange(len(score_QB), device=score_QB.device), score_QB
        else:
            score_HB = score_QB[self._query[hit_H]]
        wanted_H1 = self._score[hit_H, None]
        surely_HB = _at_least(score_HB, _next(wanted_H1 + bound))
        maybe_HB = _at_least(score_HB, wanted_H1 - bound)
        surely_H = _count(surely_HB)
        near_H = _count(maybe_HB) - surely_H
        if _is_crowded(int(near_H.sum()), block_BD):
            for part in range(0, len(block_BD), _PART_ROWS):
                rows = slice(part, part + _PART_ROWS)
                self.count(most_Q, score_QB[:, rows], bound, block_BD[rows], first + part)
            return
        self.counts[0, hit_H] += surely_H
        (near,) = near_H.nonzero(as_tuple=True)
        if len(near):
            places_N, rows_N = _marked(maybe_HB[near] ^ surely_HB[near])
            self._settle(block_BD, hit_H[near[places_N]], rows_N, first)

    def _settle(self, block_BD: Tensor, queries_N: Tensor, rows_N: Tensor, first: int) -> None:
        """Count pairs that float32 could not decide."""
        exact_N = self._scorer.exactly(block_BD, self._query[queries_N], rows_N)
        wanted_N = self._score[queries_N]
        tied_N = exact_N == wanted_N
        before_N = tied_N & (rows_N + first < self._row[queries_N])
        for place, counted in enumerate((exact_N > wanted_N, tied_N, before_N)):
            self.counts[place] += torch.bincount(queries_N[counted], minlength=len(self.rights))


class _Best(_Scorer):
    """The best candidates of each query so far."""

    def __init__(self, query_QD: Tensor, num_best: int) -> None:
        super().__init__(query_QD)
        self.num_best = num_best
        self._is_empty = True
        number, device = len(query_QD), query_QD.device
        self._best_QK = torch.full((number, num_best), -torch.inf, device=device)
        self._rows_QK = torch.full((number, num_best), -1, dtype=torch.int64, device=device)

    def kept(self, number: int) -> tuple[Tensor, Tensor]:
        """Return scores [Q, K] and rows [Q, K] on the CPU, K at most the number of candidates there were."""
        return self._best_QK[:, :number].cpu(), self._rows_QK[:, :number].cpu()

    def merge(self, block_BD: Tensor, first: int) -> None:
        """Take a block's candidates in; blocks come in the order of their rows."""
        score_QB, bound = self.scores(block_BD)
        least_Q = self._best_QK[:, -1] - bound
        if self._is_empty and len(block_BD) > self.num_best:
            least_Q = score_QB.topk(self.num_best, dim=1).values[:, -1] - 2 * bound
        (hit_H,) = (score_QB.amax(1) >= least_Q).nonzero(as_tuple=True)
        if not len(hit_H):
            return
        places_N, rows_N = _marked(_at_least(score_QB[hit_H], least_Q[hit_H, None]))
        if _is_crowded(len(places_N), block_BD):
            for part in range(0, len(block_BD), _PART_ROWS):
                self.merge(block_BD[part : part + _PART_ROWS], first + part)
            return
        self._is_empty = False
        self._take(hit_H, places_N, rows_N + first, self.exactly(block_BD, hit_H[places_N], rows_N))

    def _take(self, hit_H: Tensor, places_N: Tensor, rows_N: Tensor, exact_N: Tensor) -> None:
        """Put rows N, each of the query at a place of `hit_H`, among the best of these queries."""
        places = torch.arange(len(hit_H), device=rows_N.device)
        places_M = torch.cat([places.repeat_interleave(self.num_best), places_N])
        scores_M = torch.cat([self._best_QK[hit_H].flatten(), exact_N])
        rows_M = torch.cat([self._rows_QK[hit_H].flatten(), rows_N])
        # By query, then by score; equals stay in the order of their rows, in which they came.
        order = torch.sort(scores_M, descending=True, stable=True).indices
        order = order[torch.sort(places_M[order], stable=True).indices]
        starts = torch.searchsorted(places_M[order], places)
        kept = order[starts[:, None] + torch.arange(self.num_best, device=rows_N.device)]
        self._best_QK[hit_H], self._rows_QK[hit_H] = scores_M[kept], rows_M[kept]
