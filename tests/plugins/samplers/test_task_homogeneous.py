"""Plans of the task_homogeneous sampler."""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muco.core import MucoError, SampleRef
from muco.plugins.samplers.task_homogeneous import TaskHomogeneous
from muco.testing import check_sampler

CATALOGS = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(
    lambda sizes: {f"set{number}": size for number, size in enumerate(sizes)}
)


def sampler(run_length: int, weights: dict[str, float] | None = None) -> TaskHomogeneous:
    return TaskHomogeneous(TaskHomogeneous.Config(run_length=run_length, weights=weights))


def epoch_of(
    made: TaskHomogeneous, catalog: dict[str, int], *, batch_size: int, seed: int = 0, epoch: int = 0
) -> list[SampleRef]:
    batches = range(made.num_batches(catalog, batch_size=batch_size))
    plans = [made.plan(catalog, batch_size=batch_size, seed=seed, epoch=epoch, position=n) for n in batches]
    return list(chain.from_iterable(plan.samples for plan in plans))


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 3.0}])
def test_keeps_the_contract(registry, weights):
    settings = {"run_length": 1, "weights": weights}
    check_sampler(registry, "task_homogeneous", settings, catalog={"a": 13, "b": 5})


@given(CATALOGS, st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**64), st.integers(0, 3))
def test_an_epoch_holds_every_sample_once(catalog, run_length, runs_a_batch, seed, epoch):
    drawn = epoch_of(
        sampler(run_length), catalog, batch_size=run_length * runs_a_batch, seed=seed, epoch=epoch
    )
    assert Counter(drawn) == Counter(
        SampleRef(name, i) for name, size in catalog.items() for i in range(size)
    )


@given(CATALOGS, st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**64))
def test_whole_runs_are_of_one_data_set_and_the_rests_come_last(catalog, run_length, runs_a_batch, seed):
    drawn = epoch_of(sampler(run_length), catalog, batch_size=run_length * runs_a_batch, seed=seed)
    num_runs = sum(size // run_length for size in catalog.values())
    for run in range(num_runs):
        assert len({ref.dataset for ref in drawn[run * run_length : (run + 1) * run_length]}) == 1
    rest = Counter(ref.dataset for ref in drawn[num_runs * run_length :])
    assert rest == Counter({name: size % run_length for name, size in catalog.items() if size % run_length})


def test_a_run_as_long_as_a_batch_makes_batches_of_one_data_set_each():
    made, catalog = sampler(8), {"a": 64, "b": 32}
    found = [
        {ref.dataset for ref in made.plan(catalog, batch_size=8, seed=0, epoch=0, position=n).samples}
        for n in range(12)
    ]
    assert all(len(names) == 1 for names in found)
    order = [names.pop() for names in found]
    assert order.count("b") == 4
    assert order != sorted(order)


def test_epochs_and_seeds_draw_other_orders():
    made, catalog = sampler(4), {"a": 40, "b": 40}
    first = epoch_of(made, catalog, batch_size=8)
    assert first == epoch_of(made, catalog, batch_size=8)
    assert first != epoch_of(made, catalog, batch_size=8, epoch=1)
    assert first != epoch_of(made, catalog, batch_size=8, seed=1)


def test_weights_set_the_shares_and_no_sample_falls_behind():
    made, catalog = sampler(5, {"a": 1, "b": 3}), {"a": 100, "b": 20}
    seen = Counter(chain.from_iterable(epoch_of(made, catalog, batch_size=10, epoch=e) for e in range(4)))
    by_set = Counter({name: sum(seen[ref] for ref in seen if ref.dataset == name) for name in catalog})
    assert by_set == {"a": 120, "b": 360}
    for name in catalog:
        times = [seen[SampleRef(name, index)] for index in range(catalog[name])]
        assert max(times) - min(times) <= 1


def test_a_far_position_costs_what_a_near_one_does():
    made, catalog = sampler(8), {"a": 10**9, "b": 10**8}

    def seconds(position: int) -> float:
        began = time.process_time()
        for _ in range(20):
            made.plan(catalog, batch_size=64, seed=0, epoch=0, position=position)
        return time.process_time() - began

    seconds(0)
    assert seconds(10**7) < 5 * seconds(10)


def test_a_run_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(MucoError, match=r"run_length: 5 does not divide train\.global_batch_size 8"):
        sampler(5).num_batches({"a": 10}, batch_size=8)
    with pytest.raises(ValueError, match="outside an epoch of 10"):
        sampler(5).plan({"a": 10}, batch_size=5, seed=0, epoch=0, position=2)
    with pytest.raises(MucoError, match="no data set named 'c'"):
        sampler(5, {"c": 1}).num_batches({"a": 10}, batch_size=5)
