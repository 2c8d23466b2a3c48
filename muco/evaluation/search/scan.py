"""One pass over a pool: its blocks, by several threads, and their scores with a bound of the error.

A float32 product decides whatever it can decide within that bound; only candidates nearer to a threshold are
summed again in float64.

Q queries, P candidates of the pool, B of one block, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
"""Each has scores of its own in memory, and they share its bandwidth."""
_NUMBERS = 1 << 22
"""Products of single numbers that are held in float64 at once."""
_MOST_PAIRS = 1 << 18
"""Scores near a threshold that are settled at once."""
PART_ROWS = 256
"""Candidates that are scored at once where most lie near a threshold."""
_DENSE = 1 / 64
"""The share of scores near a threshold from which all of them are summed again."""
NOT_FINITE = "a vector of the queries or of the candidates is not finite"


def scores_of(query_QD: Tensor, pool_PD: Tensor) -> Tensor:
    """Return all scores, float32 [Q, P]."""
    return (query_QD.double() @ pool_PD.double().T).float()


def in_parts(over: Callable[[range], T], number: int, device: torch.device) -> list[T]:
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


def blocks(pool: Vectors, rows: range, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield the blocks of some of a pool's rows on a device, each with its first row."""
    for first in rows[::BLOCK_ROWS]:
        yield first, pool.block(first, min(first + BLOCK_ROWS, rows.stop)).to(device)


class Scorer:
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
            raise ValueError(NOT_FINITE)
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


def at_least(score_QB: Tensor, least_Q1: Tensor) -> Tensor:
    """Return where a score is no less than its query's threshold, bool [Q, B]."""
    if score_QB.device.type == "cpu":  # twice as fast as torch
        return torch.from_numpy(np.greater_equal(score_QB.numpy(), least_Q1.numpy()))
    return score_QB >= least_Q1


def next_above(value: Tensor) -> Tensor:
    """Return the next greater numbers: what is no less than these is greater than `value`."""
    return torch.nextafter(value, torch.full_like(value, torch.inf))


def count_true(mask_QB: Tensor) -> Tensor:
    """Return how many are true in each row, int64 [Q]."""
    if mask_QB.shape[1] % 8:
        return mask_QB.sum(1)
    # Eight at once: the bytes of a word count up to 255 each, so that none runs over into the next.
    parts = mask_QB.contiguous().view(torch.int64).split(255, dim=1)
    return torch.stack([part.sum(1, keepdim=True).view(torch.uint8).sum(1) for part in parts]).sum(0)


def marked(mask_QB: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of what is true, row by row."""
    if mask_QB.device.type == "cpu":  # many times faster than torch
        flat = torch.from_numpy(np.flatnonzero(mask_QB.numpy()))
        return flat // mask_QB.shape[1], flat % mask_QB.shape[1]
    rows, columns = mask_QB.nonzero(as_tuple=True)
    return rows, columns


def is_crowded(num_pairs: int, block_BD: Tensor) -> bool:
    """Say whether a block must be taken in smaller parts, for memory's sake."""
    return len(block_BD) > PART_ROWS and num_pairs > _MOST_PAIRS
