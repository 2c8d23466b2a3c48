"""Exact search: where the right answer ranks, counted over all candidates.

Q queries, P candidates of the pool, C candidates of one query, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muco.core.suite import Task

_BLOCK_SCORES = 2**22
"""Scores held at once."""


@dataclass(frozen=True)
class Ranking:
    """How one query's best right answer stands among its candidates."""

    above: int
    """Wrong candidates that score more."""
    tied: int
    """Wrong candidates that score the same."""
    tied_before: int
    """Those of them that come earlier in the list."""
    tied_right: int
    """Right candidates that score the same, the best itself among them."""
    num_candidates: int
    num_relevant: int
    top: tuple[tuple[int, float], ...]
    """The best candidates, as (index into the pool, score), by (-score, position)."""

    @property
    def rank(self) -> int:
        """The best rank that the right answer can claim, from 1."""
        return 1 + self.above

    @property
    def chance(self) -> float:
        """The precision@1 of a blind guess."""
        return self.num_relevant / self.num_candidates


def scores_of(query_QD: Tensor, pool_PD: Tensor) -> Tensor:
    """Return cosine similarities, float32 [Q, P].

    The products are summed in float64 and rounded once, so that equal vectors score equally wherever
    they lie: float32 sums depend on the place in the matrix, and would break ties at random.
    """
    return (query_QD.double() @ pool_PD.double().T).float()


def rank_all(task: Task, query_QD: Tensor, pool_PD: Tensor, *, num_top: int = 5) -> list[Ranking]:
    """Rank the right answer of every query.

    Args:
        task: says which candidates and which right answers each query has.
        query_QD: float32, unit length.
        pool_PD: float32, unit length, the task's pool in order.
        num_top: how many of the best candidates to keep by name.
    """
    size = max(1, _BLOCK_SCORES // len(pool_PD))
    found: list[Ranking] = []
    for first in range(0, len(query_QD), size):
        block = scores_of(query_QD[first : first + size], pool_PD)
        for row, score_P in enumerate(block, start=first):
            candidates = None if task.candidates is None else task.candidates[row]
            found.append(_rank(score_P, candidates, task.relevant[row], num_top))
    return found


def _rank(
    score_P: Tensor, candidates: Sequence[int] | None, relevant: Sequence[int], num_top: int
) -> Ranking:
    places = torch.arange(len(score_P)) if candidates is None else torch.tensor(candidates)
    score_C = score_P[places]
    right_C = torch.isin(places, torch.tensor(relevant))
    best = score_C[right_C].max()
    equal_C = score_C == best
    first_right = int((equal_C & right_C).nonzero()[0])
    order = torch.sort(score_C, descending=True, stable=True).indices[:num_top]
    return Ranking(
        above=int((score_C > best).sum()),
        tied=int((equal_C & ~right_C).sum()),
        tied_before=int((equal_C & ~right_C)[:first_right].sum()),
        tied_right=int((equal_C & right_C).sum()),
        num_candidates=len(places),
        num_relevant=int(right_C.sum()),
        top=tuple((int(places[place]), float(score_C[place])) for place in order),
    )
