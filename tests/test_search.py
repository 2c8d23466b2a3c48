from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis.strategies import integers

from muco.core import Content, Task
from muco.evaluation import search
from muco.evaluation.metrics import precision_at_1
from muco.evaluation.search import rank_all


def task_of(num_queries, pool, candidates, relevant):
    return Task("t", "vqa", [Content(str(i)) for i in range(num_queries)],
                [Content(str(i)) for i in range(pool)], candidates, relevant)  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 3e-3])
def test_equal_vectors_score_chance(scale):
    """A collapsed model: every tie shares the credit, wherever the candidates lie."""
    vector = F.normalize(torch.randn(96), dim=0) * scale
    task = task_of(40, 1037, [list(range(i, i + 12)) for i in range(40)], [[i] for i in range(40)])
    found = rank_all(task, vector.expand(40, -1), vector.expand(1037, -1))
    assert {precision_at_1(ranking, "share") for ranking in found} == {1 / 12}
    assert {precision_at_1(ranking, "first") for ranking in found} == {1.0}
    whole = rank_all(task_of(3, 1037, None, [[5]] * 3), vector.expand(3, -1), vector.expand(1037, -1))
    assert [precision_at_1(ranking, "share") for ranking in whole] == [1 / 1037] * 3
    assert [precision_at_1(ranking, "first") for ranking in whole] == [0.0] * 3


@given(seed=integers(0, 2**16), levels=integers(2, 6))
def test_ranks_are_those_of_a_full_sort(seed, levels):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(levels, (6, 3), generator=generator).float()
    pool = torch.randint(levels, (11, 3), generator=generator).float()
    lists = [torch.randperm(11, generator=generator)[:7].tolist() for _ in range(6)]
    task = task_of(6, 11, lists, [row[:2] for row in lists])
    for row, ranking in enumerate(rank_all(task, query, pool)):
        scores = [(float(query[row] @ pool[place]), place) for place in lists[row]]
        best = max(score for score, place in scores if place in lists[row][:2])
        assert ranking.above == sum(score > best for score, place in scores)
        assert ranking.tied == sum(score == best for score, place in scores[2:])
        assert ranking.tied_right == sum(score == best for score, place in scores[:2])
        by_score = sorted(range(7), key=lambda place: (-scores[place][0], place))
        assert [place for place, _ in ranking.top] == [lists[row][place] for place in by_score[:5]]


def test_blocks_do_not_change_a_ranking(monkeypatch):
    query, pool = torch.randn(9, 8), torch.randn(20, 8)
    task = task_of(9, 20, None, [[i] for i in range(9)])
    whole = rank_all(task, query, pool)
    monkeypatch.setattr(search, "_BLOCK_SCORES", 40)
    assert rank_all(task, query, pool) == whole
