"""Intervals that cover and p values that are uniform, on simulated hits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from muco.ablation.statistics import compare, holm

TASKS = 3
QUERIES = 80
TRIALS = 1000


def hits(rng: np.random.Generator, difference: float) -> list[np.ndarray]:
    """Return per-query differences of two rows, correlated by the query's difficulty; tasks differ."""
    tasks = []
    for task in range(TASKS):
        difficulty = rng.uniform(0.1 + 0.1 * task, 0.6 + 0.05 * task, QUERIES)
        shared = rng.uniform(size=QUERIES)  # half of the queries are answered alike
        own = np.where(rng.uniform(size=(2, QUERIES)) < 0.5, shared, rng.uniform(size=(2, QUERIES)))
        tasks.append((own[0] < difficulty + difference).astype(float) - (own[1] < difficulty))
    return tasks


@pytest.mark.parametrize("difference", [0.0, 0.1])
def test_95_percent_intervals_contain_the_true_difference_in_93_to_97_percent_of_trials(difference):
    rng = np.random.default_rng(20)
    covered = 0
    for trial in range(TRIALS):
        result = compare(hits(rng, difference), draws=500, seed=trial)
        covered += result.low <= difference <= result.high
    assert 0.93 <= covered / TRIALS <= 0.97


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(0)
    p_values = [
        compare([rng.normal(size=12) * rng.uniform(0.5, 2) for _ in range(2)], draws=300, seed=trial).p_value
        for trial in range(TRIALS)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_p_values_of_hits_are_rarely_small_under_the_null():
    """Sums of hits tie, and a tie counts as extreme: p values are a little too large, not too small."""
    rng = np.random.default_rng(0)
    p_values = np.array([compare(hits(rng, 0.0), draws=300, seed=trial).p_value for trial in range(TRIALS)])
    for level in (0.05, 0.1, 0.5):
        assert 0.6 * level <= np.mean(p_values <= level) <= level + 0.02


def test_agrees_with_scipy_on_one_task():
    difference = np.random.default_rng(1).choice([-1.0, 0.0, 0.5, 1.0], p=[0.1, 0.5, 0.2, 0.2], size=150)
    ours = compare([difference], draws=20_000)
    bootstrap = stats.bootstrap((difference,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    test = stats.permutation_test(
        (difference, np.zeros(150)), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples",
        n_resamples=20_000, rng=0,
    )  # fmt: skip
    assert ours.mean == pytest.approx(difference.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(bootstrap.confidence_interval), abs=0.005)
    assert ours.p_value == pytest.approx(test.pvalue, abs=0.003)


def test_a_task_counts_once_whatever_its_number_of_queries():
    result = compare([np.ones(10), np.zeros(1000)], draws=100)
    assert (result.mean, result.low, result.high) == (0.5, 0.5, 0.5)


def test_rows_that_answer_alike_have_no_difference():
    result = compare([np.zeros(20)], draws=100)
    assert (result.mean, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_equal_seeds_give_equal_results():
    differences = hits(np.random.default_rng(3), 0.05)
    assert compare(differences, seed=7) == compare(differences, seed=7)
    assert compare(differences, seed=7) != compare(differences, seed=8)


def test_holm_is_that_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
