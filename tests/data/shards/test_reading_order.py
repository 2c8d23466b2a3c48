"""In which order samples are read: shuffled, near to each other on the disk, and at one cost at any step."""

from __future__ import annotations

import os
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muco.data.shards.reader import ShardReader
from muco.plugins.samplers.mixture import Mixture
from muco.plugins.samplers.permutation import permute_in_windows
from muco.testing import check_sampler


def order(size: int, window: int, seed: int = 0) -> np.ndarray:
    return permute_in_windows(np.arange(size, dtype=np.int64), size, window=window, seed=seed)


@given(size=st.integers(1, 500), window=st.integers(16, 200), seed=st.integers(0, 2**64))
def test_every_element_comes_once(size, window, seed):
    assert sorted(order(size, window, seed).tolist()) == list(range(size))


@given(size=st.integers(1, 10**9), seed=st.integers(0, 2**64), data=st.data())
def test_any_position_is_computed_as_in_the_whole(size, seed, data):
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8)))
    together = permute_in_windows(indices, size, window=1024, seed=seed)
    separate = [
        permute_in_windows(indices[[it]], size, window=1024, seed=seed)[0] for it in range(len(indices))
    ]
    assert together.tolist() == separate
    assert all(0 <= index < size for index in separate)


def test_a_window_lies_in_sixteen_stretches_and_all_is_shuffled():
    found = order(100_000, 1600)
    blocks = (found - found.min()) // 100
    first = found[:1600]
    stretches = np.split(np.sort(first), np.flatnonzero(np.diff(np.sort(first)) > 1) + 1)
    assert len(stretches) <= 16 + 1, "one may run over the end"
    assert len(set(blocks[:1600].tolist())) <= 2 * 16
    assert np.abs(np.corrcoef(np.arange(100_000), found)[0, 1]) < 0.2, "blocks are shuffled"
    assert np.abs(np.corrcoef(np.arange(1600), first)[0, 1]) < 0.2, "elements of a window are shuffled"
    assert (order(100_000, 1600, seed=1) != found).mean() > 0.99


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 3.0}])
def test_the_sampler_keeps_its_contract(registry, weights):
    check_sampler(registry, "mixture", {"weights": weights, "window": 16}, catalog={"a": 53, "b": 25})


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 1.0}])
def test_an_epoch_in_windows_holds_what_an_epoch_holds(weights):
    sampler = Mixture(Mixture.Config(weights=weights, window=64))
    catalog = {"a": 400, "b": 200}
    seen: Counter = Counter()
    for epoch in range(2):
        for position in range(sampler.num_batches(catalog, batch_size=16)):
            plan = sampler.plan(catalog, batch_size=16, seed=0, epoch=epoch, position=position)
            seen.update((ref.dataset, ref.index) for ref in plan.samples)
    if weights is None:
        assert set(seen.values()) == {2}
        assert len(seen) == 600
    else:
        times = {name: {seen[name, index] for index in range(size)} for name, size in catalog.items()}
        assert times == {"a": {1, 2}, "b": {3}}


def test_batches_read_onwards_from_few_positions():
    """Of 1,024 samples a batch reads on in each of at most 32 stretches; without a window it jumps."""

    def jumps(window: int | None) -> float:
        sampler = Mixture(Mixture.Config(window=window))
        catalog, indices = {"a": 1_000_000}, []
        for position in range(20, 30):
            plan = sampler.plan(catalog, batch_size=256, seed=0, epoch=0, position=position)
            indices.append([ref.index for ref in plan.samples])
        assert all(window is None or batch == sorted(batch) for batch in indices)
        every = np.sort(np.concatenate(indices))
        return float((np.diff(every) > 512).mean())

    assert jumps(8192) < 0.02
    assert jumps(None) > 0.2


def test_the_plan_of_step_a_million_costs_what_that_of_step_ten_does():
    """Promise 4. In operations: both read the same few samples and nothing before them."""
    sampler = Mixture(Mixture.Config(window=65536))
    catalog = {"a": 2_000_000_000, "b": 100_000_000}

    def seconds(position: int) -> float:
        times = []
        for turn in range(15):
            began = time.process_time()
            sampler.plan(catalog, batch_size=1024, seed=turn, epoch=0, position=position)
            times.append(time.process_time() - began)
        return min(times)

    seconds(0)
    assert seconds(1_000_000) < 2 * seconds(10) + 0.002


def test_resuming_reads_no_byte_of_the_steps_before(shards, monkeypatch):
    """The engine resumes by asking for the step: what it reads is that step's samples."""
    reads: list[int] = []
    real = os.pread
    monkeypatch.setattr(
        os, "pread", lambda file, size, offset: reads.append(size) or real(file, size, offset)
    )
    reader = ShardReader(shards)
    sampler = Mixture(Mixture.Config(window=16))
    catalog = {"a": len(reader)}
    per_epoch = sampler.num_batches(catalog, batch_size=8)
    for step in (10, 1_000_000):
        reads.clear()
        epoch, position = divmod(step, per_epoch)
        plan = sampler.plan(catalog, batch_size=8, seed=0, epoch=epoch, position=position)
        for ref in plan.samples:
            reader[ref.index]
        assert len(reads) == len(plan.samples) == 8
