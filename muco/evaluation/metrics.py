"""From rankings to scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from muco.evaluation.search import Ranking

Ties = Literal["share", "first"]


def precision_at_1(ranking: Ranking, ties: Ties) -> float:
    """Return the credit of one query's top.

    Args:
        ranking: of its best right answer.
        ties: share gives right / tied where several share the top, so that a collapsed model scores
            chance. first gives the whole to whoever is listed first, as public MMEB code does: right
            answers are listed first there.
    """
    if ranking.above:
        return 0.0
    if ties == "first":
        return float(ranking.tied_before == 0)
    return ranking.tied_right / (ranking.tied_right + ranking.tied)


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return sum(values) / len(values)
