"""Batches of near neighbours, and the file that says which are near."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from muco.config.load import load_recipe
from muco.core import DataError, MucoError, RecipeError, SampleRef
from muco.data.shards.reader import ShardReader
from muco.io.neighbor_graph import NeighbourGraph
from muco.plugins.samplers.communities import communities
from muco.plugins.samplers.mined import Mined
from muco.testing import check_sampler
from muco.training.data import make_sampler


def planted(num_communities: int, size: int, *, seed: int = 0) -> np.ndarray:
    """Return the neighbours of samples whose nearest are those of their own community, scattered."""
    owner = np.random.default_rng(seed).permutation(num_communities * size) % num_communities
    rows = [np.flatnonzero(owner == owner[i]) for i in range(len(owner))]
    return np.array([row[row != i] for i, row in enumerate(rows)], dtype=np.int32)


def scattered(number: int, ranks: int, *, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    rows = [draw.permutation(np.delete(np.arange(number), i))[:ranks] for i in range(number)]
    return np.array([np.pad(row, (0, ranks - len(row)), constant_values=-1) for row in rows], dtype=np.int32)


def write(folder: Path, **neighbours: np.ndarray) -> dict[str, str]:
    for name, rows in neighbours.items():
        NeighbourGraph(rows, data=f"data of {name}", teacher="a model").write(folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in neighbours}


DEFAULTS = {"range_min": 0, "range_max": 3, "community_size": 4}


def mined(graphs: dict[str, str], **others) -> Mined:
    return Mined(Mined.Config(graphs=graphs, **DEFAULTS | others))


def epoch_of(
    made: Mined, catalog: dict[str, int], *, batch_size: int, seed=0, epoch=0
) -> list[list[SampleRef]]:
    return [
        list(made.plan(catalog, batch_size=batch_size, seed=seed, epoch=epoch, position=position).samples)
        for position in range(made.num_batches(catalog, batch_size=batch_size))
    ]


def test_keeps_the_contract(registry, tmp_path):
    graphs = write(tmp_path, a=scattered(13, 5), b=scattered(5, 5))
    config = {"graphs": graphs, "range_min": 1, "range_max": 4, "community_size": 2}
    check_sampler(registry, "mined", config, catalog={"a": 13, "b": 5})


@given(number=st.integers(1, 40), ranks=st.integers(1, 6), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_communities_part_the_samples(number, ranks, size, seed):
    order = communities(scattered(number, ranks, seed=seed), size)
    assert sorted(order.tolist()) == list(range(number))


@given(size=st.integers(2, 6), number=st.integers(1, 8), seed=st.integers(0, 99))
def test_communities_that_are_there_are_found(size, number, seed):
    neighbours = planted(number, size, seed=seed)
    order = communities(neighbours, size)
    for group in order.reshape(number, size):
        assert set(neighbours[group[0]]) == set(group[1:])


def test_what_falls_short_of_a_community_stays_together():
    pairs = np.array([[1], [0], [3], [2], [5], [4], [-1]], dtype=np.int32)
    assert communities(pairs, 4).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert communities(pairs, 2).tolist() == [0, 1, 2, 3, 4, 5, 6]


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=3),
    community_size=st.integers(1, 5),
    in_a_batch=st.integers(1, 3),
    seed=st.integers(0, 2**64),
    epoch=st.integers(0, 3),
)
def test_an_epoch_holds_every_sample_once(tmp_path_factory, sizes, community_size, in_a_batch, seed, epoch):
    catalog = {f"set{number}": size for number, size in enumerate(sizes)}
    graphs = write(
        tmp_path_factory.mktemp("graphs"), **{n: scattered(size, 3) for n, size in catalog.items()}
    )
    made = mined(graphs, community_size=community_size)
    batches = epoch_of(made, catalog, batch_size=community_size * in_a_batch, seed=seed, epoch=epoch)
    assert Counter(chain.from_iterable(batches)) == Counter(
        SampleRef(name, index) for name, size in catalog.items() for index in range(size)
    )
    whole = sum(size // (community_size * in_a_batch) for size in sizes)
    assert all(len({ref.dataset for ref in batch}) == 1 for batch in batches[:whole]), (
        "a batch of two data sets"
    )


def test_a_batch_is_made_of_whole_communities_drawn_anew_each_epoch(tmp_path):
    neighbours = planted(12, 4)
    made = mined(write(tmp_path, a=neighbours))
    first, second = (epoch_of(made, {"a": 48}, batch_size=8, epoch=epoch) for epoch in (0, 1))
    for batch in chain(first, second):
        found = Counter(frozenset([ref.index, *neighbours[ref.index].tolist()]) for ref in batch)
        assert sorted(found.values()) == [4, 4]
    assert first != second
    assert epoch_of(made, {"a": 48}, batch_size=8, seed=1) != first
    assert epoch_of(mined(write(tmp_path, a=neighbours)), {"a": 48}, batch_size=8) == first


def test_the_nearest_are_skipped(tmp_path):
    """Of 6 planted neighbours the first 2, one community of three with the sample, are left out."""
    near, far = planted(8, 3), planted(8, 3, seed=1)
    graphs = write(tmp_path, a=np.concatenate([near, far], axis=1))
    together = {
        first: epoch_of(
            mined(graphs, range_min=first, range_max=first + 2, community_size=3), {"a": 24}, batch_size=3
        )
        for first in (0, 2)
    }
    for first, neighbours in ((0, near), (2, far)):
        for batch in together[first]:
            indices = [ref.index for ref in batch]
            assert set(neighbours[indices[0]]) == set(indices[1:])


def test_a_far_position_costs_what_a_near_one_does(tmp_path):
    number = 2**15
    made = mined(write(tmp_path, a=np.roll(np.arange(number, dtype=np.int32), -1)[:, None]), range_max=1)

    def seconds(position: int) -> float:
        began = time.process_time()
        for epoch in range(10):
            made.plan({"a": number}, batch_size=64, seed=0, epoch=epoch, position=position)
        return time.process_time() - began

    seconds(0)
    assert seconds(500) < 5 * seconds(3)


def test_the_file_is_what_its_page_says(tmp_path):
    rows = scattered(7, 3)
    graph = NeighbourGraph(rows, data="abc", teacher="a model")
    graph.write(tmp_path / "g.safetensors")
    with safe_open(tmp_path / "g.safetensors", framework="np") as file:
        assert file.metadata() == {
            "format": "muco.neighbours",
            "version": "1",
            "data": "abc",
            "teacher": "a model",
        }
        assert list(file.keys()) == ["neighbours"]
    again = NeighbourGraph.read(tmp_path / "g.safetensors")
    assert (again.data, again.teacher) == ("abc", "a model")
    assert np.array_equal(again.neighbours, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]


KILLED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from muco.io.neighbor_graph import NeighbourGraph
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
NeighbourGraph(np.full((1000, 1), -1, np.int32), data="d", teacher="t").write(Path(sys.argv[1]))
"""


def test_what_a_kill_within_a_write_leaves_is_removed_by_the_next(tmp_path):
    """The system kills a process that writes beyond the limit on a file's size."""
    path = tmp_path / "g.safetensors"
    killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert killed.returncode == -signal.SIGXFSZ
    assert list(tmp_path.iterdir())
    NeighbourGraph(scattered(7, 3), data="d", teacher="t").write(path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_graph_is_reported(tmp_path):
    path = tmp_path / "g.safetensors"
    with pytest.raises(DataError, match="no such file"):
        NeighbourGraph.read(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="the graph is broken"):
        NeighbourGraph.read(path)
    save_file({"neighbours": scattered(4, 2)}, path)
    with pytest.raises(DataError, match="no neighbour graph of version 1"):
        NeighbourGraph.read(path)
    about = {"format": "muco.neighbours", "version": "1", "data": "d", "teacher": "t"}
    save_file({"neighbours": scattered(4, 2) + 2}, path, metadata=about)
    with pytest.raises(DataError, match="a neighbour lies outside the 4 samples"):
        NeighbourGraph.read(path)
    with pytest.raises(ValueError, match="int32"):
        NeighbourGraph(np.zeros((2, 2)), data="", teacher="").write(path)


def test_a_graph_of_other_data_is_refused(shards, tmp_path):
    reader = ShardReader(shards)
    rows = scattered(len(reader), 3)
    recipe = [
        f"data={{scenes: {{shards: {shards}}}}}",
        "train.global_batch_size=8",
        f"sampler={DEFAULTS | {'name': 'mined', 'graphs': {'scenes': f'{tmp_path}/g'}}}",
    ]
    NeighbourGraph(rows, data=reader.index.fingerprint, teacher="t").write(tmp_path / "g")
    make_sampler(load_recipe("quickstart", recipe), {"scenes": reader})
    NeighbourGraph(rows, data="0123456789abcdef", teacher="t").write(tmp_path / "g")
    with pytest.raises(
        MucoError, match=r"sampler\.graphs\.scenes: .*g was made of other data .*0123456789abcdef"
    ):
        make_sampler(load_recipe("quickstart", recipe), {"scenes": reader})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("skip: 2, keep: 3", ["sampler.skip: this key is now `range_min`",
                              "sampler.keep: this key is now `range_max: skip + keep`"]),
        ("range_min: 5, range_max: 5", ["`range_max` 5 must be greater than `range_min` 5"]),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_problems_of_the_recipe(given, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe("quickstart", [f"sampler={{name: mined, graphs: {{}}, {given}}}"])
    assert all(part in str(caught.value) for part in message)


def test_settings_that_do_not_fit_the_data_are_refused(tmp_path):
    graphs = write(tmp_path, a=scattered(9, 4))
    with pytest.raises(MucoError, match=r"community_size: 4 does not divide train\.global_batch_size 6"):
        mined(graphs).num_batches({"a": 9}, batch_size=6)
    with pytest.raises(MucoError, match="holds 4 neighbours of each sample, fewer than `range_max` 5"):
        mined(graphs, range_max=5).num_batches({"a": 9}, batch_size=4)
    with pytest.raises(MucoError, match="the graph has 9 samples, the data set 10"):
        mined(graphs).num_batches({"a": 10}, batch_size=4)
    with pytest.raises(MucoError, match="the data set 'b' has no graph"):
        mined(graphs).num_batches({"a": 9, "b": 3}, batch_size=4)
    with pytest.raises(MucoError, match="no data set named 'a'"):
        mined(graphs).num_batches({"b": 3}, batch_size=4)
    with pytest.raises(ValueError, match="outside an epoch of 9"):
        mined(graphs).plan({"a": 9}, batch_size=4, seed=0, epoch=0, position=3)
