"""One pass over a pool in blocks, by several threads, with float32 scores and a bound on their error.

Only candidates that are nearer to a threshold than the bound are summed again in float64.

Q queries, P candidates of the pool, B of one block, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from muco.evaluation.search.vectors import Vectors

T = TypeVar("T")

BLOCK_ROWS = 8192
"""Candidates that are scored at once."""
_MOST_THREADS = 16
"""Each has scores of its own in memory, and they share the memory bandwidth."""
_NUMBERS = 1 << 17
"""Products of two numbers that are in memory in float64 at once: as many as stay in the cache."""
_MOST_PAIRS = 1 << 18
"""Pairs near a threshold that are summed again at once."""
_PART_ROWS = 256
"""Candidates that are scored at once where most lie near a threshold."""
_DENSE = 1 / 64
"""If a larger share of the pairs is near a threshold, all pairs are summed again."""
NOT_FINITE = "a vector of the queries or of the candidates is not finite"


def scores_of(query_QD: Tensor, pool_PD: Tensor) -> Tensor:
    """Return all scores, float32 [Q, P]."""
    return (query_QD.double() @ pool_PD.double().T).float()


def in_parts(scan: Callable[[range], T], number: int, device: torch.device) -> list[T]:
    """Return the result of `scan` on each part of `number` rows, in order; on a CPU in a thread each.

    Each thread computes and searches scores of its own, so that none waits for another.
    """
    threads = min(torch.get_num_threads(), _MOST_THREADS, -(-number // BLOCK_ROWS))
    if device.type != "cpu" or threads < 2:
        return [scan(range(number))]
    edges = [number * part // threads for part in range(threads + 1)]
    with _one_thread_each(), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(scan, map(range, edges, edges[1:])))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(number)


def blocks(pool: Vectors, rows: range, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield the blocks of some rows of a pool, each with its first row, on a device."""
    for first in rows[::BLOCK_ROWS]:
        yield first, pool.block(first, min(first + BLOCK_ROWS, rows.stop)).to(device)


@dataclass(frozen=True)
class ScoredBlock:
    """Consecutive candidates of a pool with their float32 scores."""

    first: int
    """Row of the first one in the pool."""
    vectors: Tensor
    """[B, D]"""
    scores: Tensor
    """float32 [Q, B]"""
    bound: float
    """The most that a score may differ from the true score rounded to float32."""

    def is_crowded(self, num_pairs: int) -> bool:
        """Return whether so many pairs to sum again would take too much memory at once."""
        return len(self.vectors) > _PART_ROWS and num_pairs > _MOST_PAIRS

    def parts(self) -> Iterator[ScoredBlock]:
        """Yield smaller blocks, for one that is crowded."""
        for start in range(0, len(self.vectors), _PART_ROWS):
            rows = slice(start, start + _PART_ROWS)
            yield ScoredBlock(self.first + start, self.vectors[rows], self.scores[:, rows], self.bound)


class Scorer:
    """Computes the float32 scores of blocks."""

    def __init__(self, query_QD: Tensor) -> None:
        self.query_QD = query_QD
        self._norm = float(query_QD.norm(dim=1).max())
        self._space = query_QD.new_empty(len(query_QD) * BLOCK_ROWS)
        self._mask_space = torch.empty(len(self._space), dtype=torch.bool, device=query_QD.device)
        self._most_hit = True

    def scored(self, first: int, block_BD: Tensor) -> ScoredBlock:
        """Return the scores of a block, the candidates from row `first` on.

        The next call overwrites the scores. Raise ValueError if a vector is not finite.
        """
        longest = float(torch.linalg.vector_norm(block_BD, dim=1).max())
        # D products and sums, each rounded to half a unit of 2^-23, and the rounding of the result.
        bound = (block_BD.shape[1] + 2) * 2.0**-24 * self._norm * longest * 1.01
        if not isfinite(bound):
            raise ValueError(NOT_FINITE)
        number, size = len(self.query_QD), len(block_BD)
        score_QB = self._space[: number * size].view(number, size)
        if block_BD.device.type == "cpu":  # numpy's OpenBLAS: torch's MKL is slower on many processors
            np.matmul(self.query_QD.numpy(), block_BD.numpy().T, out=score_QB.numpy())
        else:
            torch.mm(self.query_QD, block_BD.T, out=score_QB)
        return ScoredBlock(first, block_BD, score_QB, bound)

    def hits(self, score_QB: Tensor, least_Q: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and rows of the scores that are at least `least_Q`, int64 [N], by query and row."""
        if not self._most_hit:
            (hit_H,) = (score_QB.amax(1) >= least_Q).nonzero(as_tuple=True)
            if len(hit_H) * 4 <= len(score_QB):  # a copy of more rows takes longer than to search all
                hits_N, rows_N = marked(at_least(score_QB[hit_H], least_Q[hit_H, None]))
                return hit_H[hits_N], rows_N
        mask_QB = self._mask_space[: score_QB.numel()].view(score_QB.shape)
        queries_N, rows_N = marked(at_least(score_QB, least_Q[:, None], out=mask_QB))
        self._most_hit = len(queries_N) * 4 > len(score_QB)  # probably in the next block too
        return queries_N, rows_N

    def exactly(self, block: ScoredBlock, queries_N: Tensor, rows_N: Tensor) -> Tensor:
        """Return the true scores of pairs of a query and a row of the block, float32 [N]."""
        if len(rows_N) > _DENSE * block.scores.numel():
            return scores_of(self.query_QD, block.vectors)[queries_N, rows_N]
        return scores_of_pairs(self.query_QD, block.vectors.__getitem__, queries_N, rows_N)


def scores_of_pairs(
    query_QD: Tensor, take: Callable[[Tensor], Tensor], queries_N: Tensor, rows_N: Tensor
) -> Tensor:
    """Return the true scores of pairs of a query and a row, float32 [N]; `take` reads rows."""
    size = max(1, _NUMBERS // query_QD.shape[1])
    parts = [
        (query_QD[queries].double() * take(rows).double()).sum(1).float()
        for queries, rows in zip(queries_N.split(size), rows_N.split(size), strict=True)
    ]
    return torch.cat(parts)


def at_least(score_QB: Tensor, least_Q1: Tensor, out: Tensor | None = None) -> Tensor:
    """Return whether each score is at least its query's threshold, bool [Q, B], in `out` if given."""
    if score_QB.device.type == "cpu":  # twice as fast as torch
        mask = None if out is None else out.numpy()
        return torch.from_numpy(np.greater_equal(score_QB.numpy(), least_Q1.numpy(), out=mask))
    return torch.ge(score_QB, least_Q1, out=out)


def next_above(value: Tensor) -> Tensor:
    """Return the next greater float of each: to be at least that is to be greater than `value`."""
    return torch.nextafter(value, torch.full_like(value, torch.inf))


def count_true(mask_QB: Tensor) -> Tensor:
    """Return how many are true in each row, int64 [Q]."""
    if mask_QB.shape[1] % 8:
        return mask_QB.sum(1)
    # Eight at once, as the bytes of a word; 255 words at most are added, so that no byte overflows.
    parts = mask_QB.contiguous().view(torch.int64).split(255, dim=1)
    return torch.stack([part.sum(1, keepdim=True).view(torch.uint8).sum(1) for part in parts]).sum(0)


def marked(mask_QB: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of true elements, in the order of rows."""
    if mask_QB.device.type == "cpu":  # many times faster than torch
        flat = torch.from_numpy(np.flatnonzero(mask_QB.numpy()))
        return flat // mask_QB.shape[1], flat % mask_QB.shape[1]
    rows, columns = mask_QB.nonzero(as_tuple=True)
    return rows, columns
