from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis.strategies import booleans, integers

from muco.evaluation.metrics import score
from muco.evaluation.search import scan, search
from muco.evaluation.search.search import rank_all, top_k
from tests.helpers.tasks import task_of

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def levels_of(seed, levels, *shapes):
    """Return tensors of small whole numbers: their products are exact, and many tie."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(levels, shape, generator=generator).float() for shape in shapes], generator


@pytest.mark.parametrize("scale", [1.0, 3e-3])
def test_equal_vectors_score_chance(scale):
    """A collapsed model: every tie shares the credit, wherever the candidates lie."""
    vector = F.normalize(torch.randn(96), dim=0) * scale
    task = task_of(40, 1037, [list(range(i, i + 12)) for i in range(40)], [[i] for i in range(40)])
    found = rank_all(task, vector.expand(40, -1), vector.expand(1037, -1))
    assert {score(ranking, "precision@1", "share") for ranking in found} == {1 / 12}
    assert {score(ranking, "precision@1", "first") for ranking in found} == {1.0}
    whole = rank_all(task_of(3, 1037, None, [[5]] * 3), vector.expand(3, -1), vector.expand(1037, -1))
    assert [score(ranking, "precision@1", "share") for ranking in whole] == [1 / 1037] * 3
    assert [score(ranking, "precision@1", "first") for ranking in whole] == [0.0] * 3
    _, rows = top_k(vector.expand(3, -1), vector.expand(1037, -1), 7)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 3


@given(seed=integers(0, 2**16), levels=integers(2, 6), own_lists=booleans())
def test_standings_are_those_of_a_full_sort(seed, levels, own_lists):
    (query, pool), generator = levels_of(seed, levels, (6, 3), (11, 3))
    lists = [torch.randperm(11, generator=generator)[:7].tolist() for _ in range(6)]
    right = [row[: 1 + position % 3] for position, row in enumerate(lists)]
    if not own_lists:
        lists = [list(range(11))] * 6
    task = task_of(6, 11, lists if own_lists else None, right)
    for row, ranking in enumerate(rank_all(task, query, pool, num_top=5, top_queries=4)):
        scores = {position: float(query[row] @ pool[position]) for position in lists[row]}
        order = sorted(lists[row], key=lambda position: (-scores[position], lists[row].index(position)))
        wrong = [position for position in lists[row] if position not in right[row]]
        assert ranking.num_candidates == len(lists[row])
        for position, relevant_rank in zip(
            [position for position in order if position in right[row]], ranking.right, strict=True
        ):
            assert relevant_rank.score == scores[position]
            assert relevant_rank.above == sum(scores[other] > scores[position] for other in wrong)
            assert relevant_rank.tied == sum(scores[other] == scores[position] for other in wrong)
            ahead = lists[row][: lists[row].index(position)]
            assert relevant_rank.tied_before == sum(
                scores[other] == scores[position] for other in wrong if other in ahead
            )
        assert [position for position, _ in ranking.top] == (order[:5] if row < 4 else [])


@given(seed=integers(0, 2**16), levels=integers(2, 40), block=integers(1, 30), number=integers(1, 40))
def test_the_best_are_those_of_a_full_sort(seed, levels, block, number):
    (query, pool), _ = levels_of(seed, levels, (5, 4), (29, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "BLOCK_ROWS", block)
        scores, rows = top_k(query, pool, number)
    for row in range(5):
        order = sorted(range(29), key=lambda index: (-float(query[row] @ pool[index]), index))[:number]
        assert rows[row].tolist() == order
        assert scores[row].tolist() == [float(query[row] @ pool[index]) for index in order]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_blocks_and_near_ties_do_not_change_a_ranking(monkeypatch, dtype):
    """Vectors so close that float32 products would order them at random."""
    generator = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(9, 64, generator=generator), dim=1)
    near = query[torch.arange(300) % 9] + 1e-4 * torch.randn(300, 64, generator=generator)
    pool = F.normalize(near, dim=1).to(dtype)
    pool[200:] = pool[:100]
    task = task_of(9, 300, None, [[i, i + 200] for i in range(9)])
    whole = rank_all(task, query, pool, num_top=5, top_queries=9)
    for row, ranking in enumerate(whole):
        exact = (query[row].double() @ pool.double().T).float()
        best = exact[[row, row + 200]].max()
        assert ranking.right[0].above == int((exact > best).sum())
        assert ranking.right[0].tied == int((exact == best).sum()) - 2
    monkeypatch.setattr(scan, "BLOCK_ROWS", 7)
    assert rank_all(task, query, pool, num_top=5, top_queries=9) == whole
    monkeypatch.setattr(search, "_QUERIES", 2)
    assert rank_all(task, query, pool, num_top=5, top_queries=9) == whole


@pytest.mark.parametrize("width", [1, 8, 13, 2032, 2040, 2048])
def test_right_answers_are_counted_whatever_their_number(width):
    random = torch.rand(5, width, generator=torch.Generator().manual_seed(0)) < 0.5
    for mask in (random, torch.ones(5, width, dtype=torch.bool), torch.zeros(5, width, dtype=torch.bool)):
        assert torch.equal(scan.count_true(mask), mask.sum(1))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])])
@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
def test_whole_blocks_are_counted_and_searched_as_a_full_sort_would(noise, device):
    """Blocks of the size that is used: right answers at the top of a pool, and anywhere in it."""
    generator = torch.Generator().manual_seed(0)
    pool = F.normalize(torch.randn(2 * scan.BLOCK_ROWS + 5, 24, generator=generator), dim=1)
    pool[3000:3100] = pool[:100]
    positions = torch.randperm(len(pool), generator=generator)[:40]
    query = F.normalize(pool[positions] + noise * torch.randn(40, 24, generator=generator), dim=1)
    exact = (query.double() @ pool.double().T).float()
    right = exact[torch.arange(40), positions][:, None]
    task = task_of(40, len(pool), None, [[index] for index in positions.tolist()])
    ranked = rank_all(task, query, pool, device=device)
    assert [each.right[0].above for each in ranked] == (exact > right).sum(1).tolist()
    assert [each.right[0].tied for each in ranked] == ((exact == right).sum(1) - 1).tolist()
    scores, rows = top_k(query, pool, 7, device=device)
    order = exact.sort(dim=1, descending=True, stable=True)
    assert torch.equal(rows, order.indices[:, :7])
    assert torch.equal(scores, order.values[:, :7])


@pytest.mark.parametrize("lists", [None, [list(range(9))] * 3])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_vector_that_is_not_finite_is_reported_and_never_ranked(lists, broken, side):
    """It compares as neither more nor less than anything, so that all would seem to be found."""
    both, _ = levels_of(0, 5, (3, 4), (29, 4))
    both[side][1, 2] = broken
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="not finite"):
        rank_all(task_of(3, 29, lists, [[0], [1], [2]]), *both)
    with pytest.raises(ValueError, match="not finite"):
        top_k(*both, 3)
    assert torch.get_num_threads() == threads


def test_scores_are_computed_once_whatever_the_number_of_right_answers(monkeypatch):
    (query, pool), _ = levels_of(0, 9, (6, 4), (29, 4))
    right = [list(range(1 + 4 * row)) for row in range(6)]
    found = rank_all(task_of(6, 29, None, right), query, pool)
    assert found == rank_all(task_of(6, 29, [list(range(29))] * 6, right), query, pool)
    computed = []
    scored = scan.Scorer.scored
    monkeypatch.setattr(scan.Scorer, "scored", lambda *args: computed.append(1) or scored(*args))
    rank_all(task_of(6, 29, None, right), query, pool)
    assert len(computed) == 1


@pytest.mark.parametrize(
    ("candidates", "message"),
    [([[0, 1, 0]], "a candidate twice"), ([[0, 9]], "not in the pool"), ([[-1, 0]], "not in the pool"),
     ([[]], "no candidate")],
)  # fmt: skip
def test_positions_that_are_no_candidates_are_errors(candidates, message):
    with pytest.raises(ValueError, match=message):
        task_of(1, 5, candidates, [[0]])
    assert task_of(1, 5, [range(5)], [[0]]).candidates == [range(5)]
