"""Metrics against trec_eval on the same rankings, and against the average over all orders of the tied."""

from __future__ import annotations

from itertools import permutations
from math import log2

import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers

from muco.core import Content, Task
from muco.evaluation.metrics import chance, mean, score
from muco.evaluation.search.search import rank_all

TREC = {
    "precision@1": "P_1",
    "hit@1": "success_1",
    "hit@5": "success_5",
    "recall@5": "recall_5",
    "recall@10": "recall_10",
    "ndcg@10": "ndcg_cut_10",
    "mrr": "recip_rank",
}


@given(seed=integers(0, 2**16))
def test_metrics_are_those_of_trec_eval(seed):
    generator = torch.Generator().manual_seed(seed)
    query, pool = torch.randn(6, 4, generator=generator), torch.randn(25, 4, generator=generator)
    right = [torch.randperm(25, generator=generator)[: 1 + row].tolist() for row in range(6)]
    task = Task("t", "retrieval", [Content(str(i)) for i in range(6)],
                [Content(str(i)) for i in range(25)], None, right)  # fmt: skip
    judged = {str(row): {str(index): 1 for index in indices} for row, indices in enumerate(right)}
    scores = {
        str(row): {str(index): float(value) for index, value in enumerate(query[row] @ pool.T)}
        for row in range(6)
    }
    measures = {"P.1", "success.1,5", "recall.5,10", "ndcg_cut.10", "recip_rank"}
    expected = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(scores)
    for row, ranking in enumerate(rank_all(task, query, pool)):
        for ours, theirs in TREC.items():
            for ties in ("share", "first"):
                assert score(ranking, ours, ties) == pytest.approx(expected[str(row)][theirs], abs=1e-5)


def slow(order: list[bool], metric: str, num_right: int) -> float:
    """Score an order of candidates, each right or wrong, from the definitions."""
    name, _, at = metric.partition("@")
    best = order[: int(at)] if at else order
    gains = [right / log2(rank + 2) for rank, right in enumerate(best)]
    return {
        "precision": lambda: sum(best) / int(at),
        "hit": lambda: float(any(best)),
        "recall": lambda: sum(best) / num_right,
        "ndcg": lambda: sum(gains) / sum(1 / log2(rank + 2) for rank in range(min(num_right, int(at)))),
        "mrr": lambda: 1 / (1 + order.index(True)),
    }[name]()


@settings(max_examples=20)
@given(seed=integers(0, 2**16), num_right=integers(1, 3))
def test_sharing_a_tie_is_the_average_over_all_orders_of_the_tied(seed, num_right):
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randint(3, (6, 1), generator=generator).float()
    task = Task("t", "vqa", [Content("q")], [Content(str(i)) for i in range(6)], None, [range(num_right)])
    (ranking,) = rank_all(task, torch.ones(1, 1), pool)
    orders = [
        [index < num_right for index in order]
        for order in permutations(range(6))
        if [float(pool[index]) for index in order] == sorted(pool.flatten().tolist(), reverse=True)
    ]
    for metric in ("precision@1", "precision@2", "hit@2", "recall@2", "ndcg@3", "mrr"):
        expected = mean([slow(order, metric, num_right) for order in orders])
        assert score(ranking, metric, "share") == pytest.approx(expected), metric
        blind = mean(
            [slow([p < num_right for p in order], metric, num_right) for order in permutations(range(6))]
        )
        assert chance(ranking, metric) == pytest.approx(blind), metric


def test_an_unknown_metric_is_reported():
    task = Task("t", "vqa", [Content("q")], [Content("a")], None, [[0]])
    (ranking,) = rank_all(task, torch.ones(1, 1), torch.ones(1, 1))
    for wrong in ("precision", "recall@0", "f1@1", "map"):
        with pytest.raises(ValueError, match="no metric named"):
            score(ranking, wrong, "share")
