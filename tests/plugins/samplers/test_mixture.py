"""Plans of the mixture sampler, and the batches that the engine makes of them."""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.data import DataLoader

from muco.core import BatchPlan, EncoderInputs, MucoError, SampleRef
from muco.data.shards.reader import ShardReader
from muco.plugins.backbones.qwen_vl import QwenVL
from muco.plugins.packers.single_turn import SingleTurn
from muco.plugins.samplers.mixture import Mixture
from muco.plugins.samplers.permutation import permute
from muco.testing import check_sampler
from muco.training.batches import StepBatches, StepInputs
from tests.helpers.small import SMALL, TEXTS

SEEDS = st.integers(0, 2**64)
CATALOGS = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(
    lambda sizes: {f"set{number}": size for number, size in enumerate(sizes)}
)


def mixture(**weights: float) -> Mixture:
    return Mixture(Mixture.Config(weights=weights or None))


def plans(
    sampler: Mixture, catalog: dict[str, int], batch_size: int, seed: int, epoch: int
) -> list[BatchPlan]:
    return [
        sampler.plan(catalog, batch_size=batch_size, seed=seed, epoch=epoch, position=position)
        for position in range(sampler.num_batches(catalog, batch_size=batch_size))
    ]


def samples(*batches: BatchPlan) -> list[SampleRef]:
    return list(chain.from_iterable(batch.samples for batch in batches))


def epochs(
    sampler: Mixture, catalog: dict[str, int], *, number: int, batch_size: int = 8, seed: int = 0
) -> list[list[SampleRef]]:
    return [samples(*plans(sampler, catalog, batch_size, seed, epoch)) for epoch in range(number)]


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 3.0}])
def test_keeps_the_contract(registry, weights):
    check_sampler(registry, "mixture", {"weights": weights}, catalog={"a": 13, "b": 5})


# The permutation


@given(size=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70))
def test_the_permutation_is_a_bijection(size, seed):
    assert sorted(permute(np.arange(size), size, seed=seed).tolist()) == list(range(size))


@given(size=st.integers(1, 2**60), seed=SEEDS, data=st.data())
def test_a_position_does_not_depend_on_the_other_positions_of_a_call(size, seed, data):
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    together = permute(np.array(positions), size, seed=seed).tolist()
    assert together == [int(permute(np.array([each]), size, seed=seed)[0]) for each in positions]
    assert all(0 <= index < size for index in together)
    assert len(set(together)) == len(set(positions))


@pytest.mark.parametrize("size", [1000, 1024, 5000])
def test_the_permutation_leaves_neighbours_unrelated(size):
    """As in a true shuffle: positions and indices uncorrelated, neighbours a third of the range apart."""
    for seed in range(5):
        indices = permute(np.arange(size), size, seed=seed)
        assert abs(np.corrcoef(np.arange(size), indices)[0, 1]) < 5 / size**0.5
        assert abs(np.abs(np.diff(indices)).mean() / size - 1 / 3) < 0.05
        assert abs((indices[1:] > indices[:-1]).mean() - 0.5) < 5 / size**0.5
        assert len(set((np.diff(indices) % size).tolist())) > 0.55 * size


def test_small_permutations_are_all_drawn_about_equally_often():
    drawn = Counter(tuple(permute(np.arange(4), 4, seed=seed).tolist()) for seed in range(4800))
    assert len(drawn) == 24
    assert all(120 < count < 300 for count in drawn.values())


# An epoch without weights


@given(catalog=CATALOGS, batch_size=st.integers(1, 50), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_an_epoch_covers_every_sample_once(catalog, batch_size, seed, epoch):
    batches = plans(mixture(), catalog, batch_size, seed, epoch)
    everything = [SampleRef(name, index) for name, size in catalog.items() for index in range(size)]
    assert sorted(samples(*batches), key=str) == sorted(everything, key=str)
    assert [len(batch.samples) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(batches[-1].samples) == (len(everything) - 1) % batch_size + 1
    assert [(batch.epoch, batch.position) for batch in batches] == [(epoch, i) for i in range(len(batches))]


@given(catalog=CATALOGS, batch_size=st.integers(1, 9), seed=SEEDS)
@settings(max_examples=30)
def test_the_order_of_an_epoch_does_not_depend_on_the_batch_size(catalog, batch_size, seed):
    assert samples(*plans(mixture(), catalog, batch_size, seed, 3)) == samples(
        *plans(mixture(), catalog, 1, seed, 3)
    )


def test_other_epochs_and_other_seeds_have_other_orders():
    catalog = {"a": 60, "b": 40}
    orders = [tuple(epoch) for seed in (0, 1) for epoch in epochs(mixture(), catalog, number=4, seed=seed)]
    assert len(set(orders)) == 8
    agreeing = [sum(x == y for x, y in zip(orders[0], other, strict=True)) for other in orders[1:]]
    assert max(agreeing) < 10


def test_a_batch_mixes_the_data_sets():
    batches = plans(mixture(), {"a": 500, "b": 500}, 50, 0, 0)
    shares = [Counter(ref.dataset for ref in batch.samples)["a"] / 50 for batch in batches]
    assert all(0.2 < share < 0.8 for share in shares)


@pytest.mark.parametrize("weights", [{}, {"a": 1.0, "b": 1.0}])
def test_a_late_position_of_a_large_catalog_costs_what_an_early_one_of_a_small_one_does(weights):
    def cost(catalog: dict[str, int], epoch: int, position: int) -> float:
        """Return seconds, the best of nine."""

        def once() -> float:
            began = time.perf_counter()
            sampler.plan(catalog, batch_size=64, seed=0, epoch=epoch, position=position)
            return time.perf_counter() - began

        return min(once() for _ in range(9))

    sampler = mixture(**weights)
    small = cost({"a": 600, "b": 400}, 0, 10)
    large = cost({"a": 60_000_000, "b": 40_000_000}, 1000, 1_000_000)
    assert large < 5 * small


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_outside_the_epoch_is_refused(position):
    with pytest.raises(ValueError, match=f"position {position} is outside an epoch of 20 samples"):
        mixture().plan({"a": 20}, batch_size=8, seed=0, epoch=0, position=position)


# An epoch with weights


@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    batch_size=st.integers(1, 20),
    seed=SEEDS,
)
@settings(max_examples=40)
def test_each_data_set_fills_its_share_and_is_gone_through_evenly(sizes, weights, batch_size, seed):
    catalog = {f"set{number}": size for number, size in enumerate(sizes)}
    shares = dict(zip(catalog, weights, strict=False))
    seen = Counter()
    for epoch in epochs(mixture(**shares), catalog, number=3, batch_size=batch_size, seed=seed):
        counts = Counter(ref.dataset for ref in epoch)
        for name, share in shares.items():
            assert abs(counts[name] - sum(sizes) * share / sum(shares.values())) <= 0.5 + 1e-9
        # After an epoch all samples of a data set were seen equally often, or once more.
        seen.update(epoch)
        for name, size in catalog.items():
            visits = [seen[SampleRef(name, index)] for index in range(size)]
            assert max(visits) - min(visits) <= 1


def test_a_large_data_set_goes_on_in_the_next_epoch_where_it_stopped():
    catalog = {"small": 10, "large": 90}
    first, second = epochs(mixture(small=5, large=5), catalog, number=2)
    large = [{ref.index for ref in epoch if ref.dataset == "large"} for epoch in (first, second)]
    assert len(large[0]) == 50
    assert len(large[0] | large[1]) == 90
    small = Counter(ref.index for ref in first if ref.dataset == "small")
    assert small == dict.fromkeys(range(10), 5)


def test_a_data_set_without_weight_is_left_out():
    (epoch,) = epochs(mixture(a=1), {"a": 10, "b": 30}, number=1)
    assert Counter(ref.dataset for ref in epoch) == {"a": 40}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"scene": 1}, "no data set named 'scene'. Did you mean 'scenes'? Data sets: scenes"),
        ({"scenes": 0}, "at least one data set needs a weight above zero"),
    ],
)
def test_weights_that_fit_no_data_set_are_refused(weights, message):
    with pytest.raises(MucoError) as caught:
        mixture(**weights).num_batches({"scenes": 10}, batch_size=2)
    assert message in str(caught.value)


# Real batches of real shards


@pytest.fixture(scope="module")
def processor():
    return QwenVL.build(QwenVL.Config.model_validate(SMALL), texts=TEXTS).processor


@pytest.fixture(scope="module")
def batches_of(shards: Path, processor):
    """Make the steps of one rank; 48 samples of one data set and the same again under another name."""

    def batches_of(rank: int = 0, num_ranks: int = 1) -> StepBatches:
        return StepBatches(
            readers={"first": ShardReader(shards), "again": ShardReader(shards)},
            sampler=mixture(),
            packer=SingleTurn(SingleTurn.Config()),
            processor=processor,
            global_batch_size=36,
            seed=5,
            rank=rank,
            num_ranks=num_ranks,
        )

    return batches_of


def load(batches: StepBatches, steps: range, num_workers: int) -> list[StepInputs]:
    return list(DataLoader(batches, sampler=steps, batch_size=None, num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_workers_and_ranks_together_make_each_batch_once(batches_of, num_workers, num_ranks):
    """Two epochs of three steps; the last of an epoch has 24 of the 36 samples."""
    planned = plans(mixture(), {"first": 48, "again": 48}, 36, 5, 0)
    ranks = [load(batches_of(rank, num_ranks), range(6), num_workers) for rank in range(num_ranks)]
    for step, shares in enumerate(zip(*ranks, strict=True)):
        assert {(share.step, share.epoch) for share in shares} == {(step, step // 3)}
        sizes = [len(share.samples) for share in shares]
        assert sum(sizes) == (36, 36, 24)[step % 3]
        assert max(sizes) - min(sizes) <= 1
    for epoch in (0, 1):
        names = [name for rank in ranks for step in rank[3 * epoch : 3 * epoch + 3] for name in step.samples]
        assert len(set(names)) == len(names) == 96
    reader = ShardReader(batches_of().readers["first"].index.folder)
    for step, plan in enumerate(planned):
        expected = {f"{ref.dataset}/{reader.name(ref.index)}" for ref in plan.samples}
        assert {name for rank in ranks for name in rank[step].samples} == expected


def test_a_step_is_the_same_whichever_worker_makes_it(batches_of):
    """Promise 4: what is read, drawn, packed and tokenized depends on the step alone."""
    separate, shared = load(batches_of(), range(4), 0), load(batches_of(), range(4), 2)
    later = load(batches_of(), range(2, 4), 1)
    for one, other in zip(separate + separate[2:], shared + later, strict=True):
        assert one.samples == other.samples
        for ours, theirs in ((one.queries, other.queries), (one.targets, other.targets)):
            assert ours.row_index.equal(theirs.row_index)
            assert ours.ids.sample_ids.equal(theirs.ids.sample_ids)
            assert ours.ids.turn_ids.equal(theirs.ids.turn_ids)
            for mine, yours in zip(ours.chunks, theirs.chunks, strict=True):
                assert same(mine, yours)


def test_a_rank_may_get_no_sample_of_a_small_last_batch(batches_of):
    batches = batches_of(rank=40, num_ranks=41)
    share = batches[0]
    assert (share.samples, share.queries.chunks, len(share.queries.ids)) == ((), (), 0)


def same(one: EncoderInputs, other: EncoderInputs) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        one.tensors[name].equal(other.tensors[name]) for name in one.tensors
    )


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1, (900, 90, 9)), (2, (705, 223, 71)), (1e6, (333, 333, 333)), (1e-3, (999, 0, 0))],
)
def test_temperature_sets_shares_between_the_sizes_and_equal_ones(temperature, expected):
    catalog = {"a": 900, "b": 90, "c": 9}
    made = Mixture(Mixture.Config(temperature=temperature))
    number = made.num_batches(catalog, batch_size=37)
    drawn = Counter(
        ref.dataset
        for position in range(number)
        for ref in made.plan(catalog, batch_size=37, seed=0, epoch=0, position=position).samples
    )
    assert tuple(drawn[name] for name in catalog) == expected


def test_weights_and_temperature_exclude_each_other():
    with pytest.raises(ValidationError, match="give `weights` or `temperature`, not both"):
        Mixture.Config(weights={"a": 1}, temperature=2)
