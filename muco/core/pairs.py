"""Pairs of rows with equal ids, as indices instead of a dense matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def equal_pairs(query_N: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, columns) of equal ids, int64 [P] each, ordered by row. The ids are int64."""
    sorted_M, order_M = target_M.sort(stable=True)
    left_N = torch.searchsorted(sorted_M, query_N)
    counts_N = torch.searchsorted(sorted_M, query_N, right=True) - left_N
    rows = torch.arange(len(query_N), device=query_N.device).repeat_interleave(counts_N)
    within = torch.arange(len(rows), device=query_N.device) - (counts_N.cumsum(0) - counts_N)[rows]
    return rows, order_M[left_N[rows] + within]


def num_equal_pairs(query_N: Tensor, target_M: Tensor) -> Tensor:
    """Return the number of pairs of `equal_pairs`; int64 scalar."""
    sorted_M = target_M.sort().values
    right_N = torch.searchsorted(sorted_M, query_N, right=True)
    return (right_N - torch.searchsorted(sorted_M, query_N)).sum()
