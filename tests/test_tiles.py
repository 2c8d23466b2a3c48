"""The loss in tiles against the dense formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muco.core.pairs import equal_pairs, num_equal_pairs
from muco.plugins._shared import tiles
from muco.plugins._shared.tiles import Excluded, negatives_logsumexp
from muco.plugins.losses.multiturn_infonce import MultiTurnInfoNCE
from tests.turns import random_turns


@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12))
def test_equal_pairs_are_those_of_the_dense_comparison(query, target):
    query_N, target_M = torch.tensor(query, dtype=torch.int64), torch.tensor(target, dtype=torch.int64)
    rows, columns = equal_pairs(query_N, target_M)
    expected = (query_N[:, None] == target_M).nonzero()
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        tuple(pair) for pair in expected.tolist()
    ]
    assert rows.tolist() == sorted(rows.tolist())
    assert num_equal_pairs(query_N, target_M) == len(expected)


@given(
    num_queries=st.integers(1, 9),
    num_targets=st.integers(1, 9),
    tile=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    seed=st.integers(0, 2**16),
    with_contents=st.booleans(),
)
def test_value_and_gradient_are_those_of_the_dense_formula(
    num_queries, num_targets, tile, seed, with_contents
):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(num_queries, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randn(num_targets, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    barred = torch.rand(num_queries, num_targets, generator=generator) < 0.4
    contents = (
        torch.randint(3, (num_queries,), generator=generator),
        torch.randint(3, (num_targets,), generator=generator),
    )
    rows, columns = barred.nonzero(as_tuple=True)
    excluded = Excluded(rows, columns, contents if with_contents else None)
    if with_contents:
        barred = barred | (contents[0][:, None] == contents[1])
    weights = torch.randn(num_queries, dtype=torch.float64, generator=generator)
    weights[barred.all(1)] = 0

    dense = (query @ target.T / 0.1).masked_fill(barred, float("-inf"))
    whole = dense.logsumexp(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_ROWS", tile[0])
        patch.setattr(tiles, "TILE_COLUMNS", tile[1])
        summed, top = negatives_logsumexp(query, target, excluded, temperature=0.1)
        torch.testing.assert_close(summed, whole, rtol=1e-10, atol=1e-10)
        assert torch.equal(torch.isneginf(top), barred.all(1))
        torch.testing.assert_close(top, dense.amax(1), rtol=1e-10, atol=1e-10)
        alive = ~barred.all(1)
        if alive.any():
            expected = torch.autograd.grad(
                (dense[alive].logsumexp(1) * weights[alive]).sum(), (query, target)
            )
            found = torch.autograd.grad((summed[alive] * weights[alive]).sum(), (query, target))
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("duplicates", ["keep", "mask", "merge"])
def test_a_loss_does_not_depend_on_the_tiles(duplicates, monkeypatch):
    query, target = random_turns([3, 1, 4, 2, 2], 0, num_contents=6, num_negatives=3)
    loss = MultiTurnInfoNCE(MultiTurnInfoNCE.Config(duplicates=duplicates))

    def run():
        terms = loss(query, target)
        gradients = torch.autograd.grad(
            terms.per_turn.sum(), (query.vectors, target.vectors), allow_unused=True
        )
        return terms, gradients

    whole, whole_gradients = run()
    monkeypatch.setattr(tiles, "TILE_ROWS", 5)
    monkeypatch.setattr(tiles, "TILE_COLUMNS", 3)
    tiled, tiled_gradients = run()
    torch.testing.assert_close(tiled.per_turn, whole.per_turn, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tiled_gradients, whole_gradients, rtol=1e-10, atol=1e-10)
    assert {name: int(count) for name, count in tiled.counts.items()} == {
        name: int(count) for name, count in whole.counts.items()
    }
