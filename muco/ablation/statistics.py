"""Compare two rows query by query: a paired bootstrap interval and a paired permutation test.

D draws, Q queries of a task, U different values of their differences. The resampled mean of a task depends on
how often each value is drawn, so draws are of U counts, not of Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How much more one row scores than another."""

    mean: float
    """The unweighted mean over tasks of the mean over a task's queries."""
    low: float
    high: float
    """Ends of the interval."""
    p_value: float
    """Two-sided."""


def compare(
    differences: Sequence[Array], *, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Return the mean difference, a percentile bootstrap interval and the p value of a permutation test.

    The bootstrap draws queries within each task. The permutation test exchanges the two rows of a query at
    random. Both take the trained models as given: they say how far the score depends on the queries, not on
    the seed of the training.

    Args:
        differences: [Q] of each task: the score of each query, minus the other row's score of it.
        draws: of each.
        level: of the interval.
        seed: of the draws; the same gives the same result.
    """
    rng = np.random.default_rng(seed)
    mean = float(np.mean([each.mean() for each in differences]))
    resampled_D, flipped_D = np.zeros(draws), np.zeros(draws)
    for each in differences:
        resampled_D += _bootstrap_means(each, draws, rng) / len(differences)
        flipped_D += _permutation_means(each, draws, rng) / len(differences)
    low, high = np.quantile(resampled_D, [(1 - level) / 2, (1 + level) / 2])
    # The observed assignment is one of the permutations; rounding must not set it apart.
    extreme = int((np.abs(flipped_D) >= abs(mean) - 1e-12).sum())
    return Difference(mean, float(low), float(high), (1 + extreme) / (1 + draws))


def _bootstrap_means(difference_Q: Array, draws: int, rng: np.random.Generator) -> Array:
    value_U, count_U = np.unique(difference_Q, return_counts=True)
    num_queries = len(difference_Q)
    return rng.multinomial(num_queries, count_U / num_queries, size=draws) @ value_U / num_queries


def _permutation_means(difference_Q: Array, draws: int, rng: np.random.Generator) -> Array:
    value_U, count_U = np.unique(np.abs(difference_Q), return_counts=True)
    plus_DU = rng.binomial(count_U, 0.5, size=(draws, len(count_U)))
    return (2 * plus_DU - count_U) @ value_U / len(difference_Q)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number by Holm's method, in the same order."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    return adjusted[np.argsort(order, kind="stable")].tolist()
