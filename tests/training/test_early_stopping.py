from __future__ import annotations

from muco.config.recipe import EarlyStopping
from muco.training.early_stopping import Best, best_of, best_with, must_stop

PATIENT = EarlyStopping(metric="a/mean", patience=2, min_delta=0.1)


def after(*scores: float, min_delta: float = 0.0) -> Best:
    best = None
    for step, score in enumerate(scores, start=1):
        best = best_with(best, "a/mean", step, score, min_delta=min_delta)
    assert best is not None
    return best


def test_the_first_of_equal_scores_is_the_best():
    assert after(0.2, 0.5, 0.5, 0.4) == Best("a/mean", 2, 0.5, num_since=2)


def test_small_steps_add_up_to_an_improvement():
    assert after(0.5, 0.55, 0.59, min_delta=0.1) == Best("a/mean", 1, 0.5, num_since=2)
    assert after(0.5, 0.55, 0.62, min_delta=0.1) == Best("a/mean", 3, 0.62)


def test_training_stops_after_so_many_validations_without_an_improvement():
    assert not must_stop(PATIENT, None)
    assert not must_stop(PATIENT, after(0.5, 0.5))
    assert must_stop(PATIENT, after(0.5, 0.5, 0.5))
    assert not must_stop(None, after(0.5, 0.5, 0.5))


def test_another_metric_begins_without_a_best():
    best = after(0.5, 0.5, 0.5)
    other = EarlyStopping(metric="b/mean", patience=1)
    assert best_of(best, "b/mean") is None
    assert not must_stop(other, best)
    assert best_with(best, "b/mean", 9, 0.1) == Best("b/mean", 9, 0.1)
