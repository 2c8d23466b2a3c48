"""Metrics of a ranking.

If right and wrong candidates tie, `share` gives the average over all orders of the tied, so that a collapsed
model scores chance; `first` takes them in the order of the list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from math import log2
from typing import Literal

import numpy as np

from muco.evaluation.search.ranking import Ranking, RelevantRank

Ties = Literal["share", "first"]

_METRIC = re.compile(r"(precision|hit|recall|ndcg)@([1-9]\d*)|mrr")


def score(ranking: Ranking, metric: str, ties: Ties) -> float:
    """Return one query's score.

    Args:
        ranking: of its right answers.
        metric: precision@k: the share of right answers among the best k. hit@k: 1 if a right answer is among
            the best k, else 0. recall@k: the share of all right answers that are among the best k. ndcg@k:
            normalized discounted cumulative gain with binary relevance, as in trec_eval. mrr: 1 divided by
            the rank of the first right answer.
        ties: `share` or `first`, see above.

    Raises:
        ValueError: no such metric.
    """
    match = _METRIC.fullmatch(metric)
    if not match:
        raise ValueError(
            f"no metric named {metric!r}; there are precision@k, hit@k, recall@k, ndcg@k and mrr"
        )
    groups = _groups(ranking, ties)
    if metric == "mrr":
        return _reciprocal(*groups[0])
    k = int(match[2])
    if match[1] == "hit":
        return _hit(*groups[0], k)
    if match[1] == "ndcg":
        gain = sum(
            right / (right + wrong) * _discounts(ahead, ahead + right + wrong, k)
            for ahead, right, wrong in groups
        )
        return gain / _discounts(0, len(ranking.right), k)
    num_found = sum(
        right * min(max(k - ahead, 0), right + wrong) / (right + wrong) for ahead, right, wrong in groups
    )
    return num_found / (k if match[1] == "precision" else len(ranking.right))


def chance(ranking: Ranking, metric: str) -> float:
    """Return the score of a random order: that of a model which scores all candidates equally."""
    return _chance(ranking.num_candidates, len(ranking.right), metric)


@lru_cache
def _chance(num_candidates: int, num_right: int, metric: str) -> float:
    equal = RelevantRank(score=0.0, above=0, tied=num_candidates - num_right, tied_before=0)
    return score(Ranking((equal,) * num_right, num_candidates), metric, "share")


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return sum(values) / len(values)


def _groups(ranking: Ranking, ties: Ties) -> list[tuple[int, int, int]]:
    """Return the groups of tied candidates, best first.

    Of each the number of candidates ahead of it, and how many in it are right and wrong.
    """
    if ties == "first":
        return [(index + each.above + each.tied_before, 1, 0) for index, each in enumerate(ranking.right)]
    groups: list[tuple[int, int, int]] = []
    index = 0
    while index < len(ranking.right):
        first = ranking.right[index]
        num_right = sum(other.score == first.score for other in ranking.right[index:])
        groups.append((index + first.above, num_right, first.tied))
        index += num_right
    return groups


def _hit(ahead: int, right: int, wrong: int, k: int) -> float:
    """Return the probability that a right candidate of the group is among the best `k`."""
    missed = 1.0
    for drawn in range(min(k - ahead, right + wrong)):
        missed *= max(wrong - drawn, 0) / (right + wrong - drawn)
    return 1 - missed


def _reciprocal(ahead: int, right: int, wrong: int) -> float:
    """Return the mean of 1 / rank of the group's first right candidate."""
    if not wrong:
        return 1 / (ahead + 1)
    # It is candidate j + 1 of the group if the j before it are wrong.
    j = np.arange(wrong + 1)
    missed = np.cumprod(np.concatenate([[1.0], (wrong - j[:-1]) / (right + wrong - j[:-1])]))
    return float((missed * right / (right + wrong - j) / (ahead + 1 + j)).sum())


def _discounts(first: int, stop: int, k: int) -> float:
    """Return the sum of 1 / log2(rank + 1) over the ranks from `first` + 1 to `stop` that are at most `k`."""
    sums = _discount_sums(k)
    return sums[min(stop, k)] - sums[min(first, k)]


@lru_cache
def _discount_sums(k: int) -> list[float]:
    sums = [0.0]
    for rank in range(1, k + 1):
        sums.append(sums[-1] + 1 / log2(rank + 1))
    return sums
