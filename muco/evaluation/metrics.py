"""From rankings to scores.

Where right and wrong candidates tie, `share` gives what a random order of the tied would give on average,
so that a collapsed model scores chance; `first` takes them in the order of the list.
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

_KNOWN = re.compile(r"(precision|hit|recall|ndcg)@([1-9]\d*)|mrr")


def score(ranking: Ranking, metric: str, ties: Ties) -> float:
    """Return one query's score.

    Args:
        ranking: of its right answers.
        metric: precision@k: the share of the best k that is right. hit@k: 1 where a right answer is among
            the best k. recall@k: the share of the right answers that is. ndcg@k: normalised discounted
            gain, of 1 a right answer, as trec_eval counts it. mrr: 1 by the rank of the first right answer.
        ties: share or first, as above.

    Raises:
        ValueError: no such metric.
    """
    found = _KNOWN.fullmatch(metric)
    if not found:
        raise ValueError(
            f"no metric named {metric!r}; there are precision@k, hit@k, recall@k, ndcg@k and mrr"
        )
    groups = _groups(ranking, ties)
    if metric == "mrr":
        return _reciprocal(*groups[0])
    k = int(found[2])
    if found[1] == "hit":
        return _hit(*groups[0], k)
    if found[1] == "ndcg":
        gain = sum(
            right / (right + wrong) * _discounts(at, at + right + wrong, k) for at, right, wrong in groups
        )
        return gain / _discounts(0, len(ranking.right), k)
    within = sum(right * min(max(k - at, 0), right + wrong) / (right + wrong) for at, right, wrong in groups)
    return within / (k if found[1] == "precision" else len(ranking.right))


def chance(ranking: Ranking, metric: str) -> float:
    """Return the score of a blind guess: that of a model to which all candidates are equal."""
    return _chance(ranking.num_candidates, len(ranking.right), metric)


@lru_cache
def _chance(num_candidates: int, num_right: int, metric: str) -> float:
    equal = RelevantRank(score=0.0, above=0, tied=num_candidates - num_right, tied_before=0)
    return score(Ranking((equal,) * num_right, num_candidates), metric, "share")


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return sum(values) / len(values)


def _groups(ranking: Ranking, ties: Ties) -> list[tuple[int, int, int]]:
    """Return (candidates ahead, right ones, wrong ones) of each group whose order is open, best first."""
    if ties == "first":
        return [(place + it.above + it.tied_before, 1, 0) for place, it in enumerate(ranking.right)]
    groups: list[tuple[int, int, int]] = []
    place = 0
    while place < len(ranking.right):
        it = ranking.right[place]
        same = sum(other.score == it.score for other in ranking.right[place:])
        groups.append((place + it.above, same, it.tied))
        place += same
    return groups


def _hit(at: int, right: int, wrong: int, k: int) -> float:
    """Return the chance that one of the group's right ones is among the best `k`."""
    drawn = min(k - at, right + wrong)
    if drawn <= 0:
        return 0.0
    missed = 1.0
    for place in range(drawn):
        missed *= max(wrong - place, 0) / (right + wrong - place)
    return 1 - missed


def _reciprocal(at: int, right: int, wrong: int) -> float:
    """Return the mean of 1 / rank of the group's first right one."""
    if not wrong:
        return 1 / (at + 1)
    # It is number j + 1 of the group where the j before it are wrong.
    ahead = np.arange(wrong)
    still_missed = np.cumprod(np.concatenate([[1.0], (wrong - ahead) / (right + wrong - ahead)]))
    j = np.arange(wrong + 1)
    return float((still_missed * right / (right + wrong - j) / (at + 1 + j)).sum())


def _discounts(first: int, stop: int, k: int) -> float:
    """Return the sum of 1 / log2(rank + 1) over places `first` to before `stop` within the best `k`."""
    table = _table(k)
    return table[min(stop, k)] - table[min(first, k)]


@lru_cache
def _table(k: int) -> list[float]:
    sums = [0.0]
    for place in range(k):
        sums.append(sums[-1] + 1 / log2(place + 2))
    return sums
