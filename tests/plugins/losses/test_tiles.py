"""The loss in tiles against the dense formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muco.core.pairs import equal_pairs, num_equal_pairs
from muco.plugins.losses import tiles
from muco.plugins.losses.tiles import Excluded, negatives_logsumexp, negatives_softplus
from tests.helpers.turns import random_turns


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
    limit=st.sampled_from([None, 0.5]),
    boost=st.sampled_from([1.0, 1.3]),
)
def test_value_and_gradient_are_those_of_the_dense_formula(
    num_queries, num_targets, tile, seed, with_contents, limit, boost
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
    dense = (query @ target.T / 0.1).masked_fill(barred, float("-inf"))
    limits = None if limit is None else torch.full((num_queries,), limit, dtype=torch.float64)
    beyond = torch.zeros_like(barred) if limit is None else dense > limit
    kept = (dense + (boost - 1) * dense.detach()).masked_fill(barred | beyond, float("-inf"))
    alive = torch.isfinite(kept).any(1)
    weights = torch.randn(num_queries, dtype=torch.float64, generator=generator) * alive
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_ROWS", tile[0])
        patch.setattr(tiles, "TILE_COLUMNS", tile[1])
        found = negatives_logsumexp(query, target, excluded, temperature=0.1, limit_N=limits, boost=boost)
        torch.testing.assert_close(found.logsumexp, kept.logsumexp(1), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.top, dense.amax(1), rtol=1e-10, atol=1e-10)
        assert found.num_beyond.tolist() == beyond.sum(1).tolist()
        if alive.any():
            expected = torch.autograd.grad((kept[alive].logsumexp(1) * weights[alive]).sum(), (query, target))
            gradients = torch.autograd.grad((found.logsumexp[alive] * weights[alive]).sum(), (query, target))
            torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-10)


@given(tile=st.tuples(st.integers(1, 7), st.integers(1, 7)), seed=st.integers(0, 2**16))
def test_the_sigmoid_sum_is_that_of_the_dense_formula(tile, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(5, 3, dtype=torch.float64, generator=generator).mul(9).requires_grad_()
    target = torch.randn(6, 3, dtype=torch.float64, generator=generator).requires_grad_()
    barred = torch.rand(5, 6, generator=generator) < 0.4
    weights = torch.randn(5, dtype=torch.float64, generator=generator)
    dense = (query @ target.T).exp().log1p().masked_fill(barred, 0).sum(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_ROWS", tile[0])
        patch.setattr(tiles, "TILE_COLUMNS", tile[1])
        summed, top = negatives_softplus(query, target, Excluded(*barred.nonzero(as_tuple=True), None))
        gradients = torch.autograd.grad((summed * weights).sum(), (query, target))
    torch.testing.assert_close(summed, dense, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(top, (query @ target.T).masked_fill(barred, float("-inf")).amax(1))
    expected = torch.autograd.grad((dense * weights).sum(), (query, target))
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-10)


LOSSES = [
    *(("multiturn_infonce", {"duplicates": duplicates}) for duplicates in ("keep", "mask", "merge")),
    ("multiturn_infonce", {"forms": "separate", "mask": "none", "false_negative_margin": 0.05}),
    ("multiturn_infonce", {"mask": "none", "duplicates": "keep", "false_negative_margin": 0.05}),
    ("infonce", {"duplicates": "mask"}),
    ("hardness_weighted", {}),
    ("hardness_weighted", {"false_negative_margin": 0.05, "mask": "none"}),
    ("siglip", {}),
    ("siglip", {"mask": "none", "duplicates": "merge", "scale": 5}),
    ("matryoshka", {"loss": "siglip", "dims": [6, 3]}),
]


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_a_loss_does_not_depend_on_the_tiles(registry, name, settings, monkeypatch):
    query, target = random_turns([3, 1, 4, 2, 2], 0, num_contents=6, num_negatives=3, num_forms=2)
    cls = registry.component("loss", name)
    loss = cls(cls.Config.model_validate(settings)).double()

    def run():
        terms = loss(query, target)
        trained = (query.vectors, target.vectors, *loss.parameters())
        return terms, torch.autograd.grad(terms.per_turn.sum(), trained)

    whole, whole_gradients = run()
    monkeypatch.setattr(tiles, "TILE_ROWS", 5)
    monkeypatch.setattr(tiles, "TILE_COLUMNS", 3)
    tiled, tiled_gradients = run()
    torch.testing.assert_close(tiled.per_turn, whole.per_turn, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tiled_gradients, whole_gradients, rtol=1e-10, atol=1e-10)
    assert {name: int(count) for name, count in tiled.counts.items()} == {
        name: int(count) for name, count in whole.counts.items()
    }
