"""Batches of samples that a teacher finds alike, so that they are each other's hard negatives."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from muco.core.component import ComponentConfig
from muco.core.errors import MucoError, did_you_mean
from muco.core.ids import stable_id
from muco.core.sampler import BatchPlan, Catalog, Sampler, SampleRef
from muco.io.neighbor_graph import NeighbourGraph
from muco.plugins.samplers.communities import communities
from muco.plugins.samplers.epoch_shares import place_in_runs
from muco.plugins.samplers.permutation import permute


class Mined(Sampler):
    """Part each data set into communities of near neighbours, and draw a batch's communities from one.

    An epoch holds every sample once. Communities are made once, of the graph alone, and shuffled every
    epoch. What is left of each data set after its last whole batch comes at the end of the epoch.

    References:
        Thirukovalluru et al. 2025, arXiv:2505.11293: B3.
    """

    class Config(ComponentConfig):
        graphs: dict[str, str]
        """File of neighbours of each data set, by name."""
        skip: NonNegativeInt = 30
        """The nearest neighbours of a sample that are left out: likely right answers to its query."""
        keep: PositiveInt = 100
        """The neighbours after those that count as near."""
        community_size: PositiveInt = 32
        """Samples that stand together; divides `train.global_batch_size`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def verify_data(self, fingerprints: Mapping[str, str]) -> None:
        for name in sorted(self.config.graphs.keys() & fingerprints.keys()):
            graph, fingerprint = self._graph(name), fingerprints[name]
            if graph.data != fingerprint:
                raise MucoError(
                    f"sampler.graphs.{name}: {self.config.graphs[name]} was made of other data (it says "
                    f"{graph.data}, data.{name} is {fingerprint}). Mine the graph anew."
                )

    def num_batches(self, catalog: Catalog, *, batch_size: int) -> int:
        self._check(catalog, batch_size)
        return -(-sum(catalog.values()) // batch_size)

    def plan(self, catalog: Catalog, *, batch_size: int, seed: int, epoch: int, position: int) -> BatchPlan:
        self._check(catalog, batch_size)
        total, start = sum(catalog.values()), position * batch_size
        if not 0 <= start < total:
            raise ValueError(f"position {position} lies outside an epoch of {total} samples")
        key = stable_id("runs", str(seed), str(epoch))
        refs: list[SampleRef] = []
        for place in range(start, min(start + batch_size, total)):
            name, offset = place_in_runs(catalog, place, run_length=batch_size, key=key)
            refs.append(SampleRef(name, self._member(name, offset, seed=seed, epoch=epoch)))
        return BatchPlan(epoch, position, tuple(refs))

    def _member(self, name: str, offset: int, *, seed: int, epoch: int) -> int:
        """Return the sample at a place of a data set's epoch: whole communities shuffled, then the rest."""
        order, size = self._orders[name], self.config.community_size
        place, within = divmod(offset, size)
        whole = len(order) // size
        if place < whole:
            key = stable_id("communities", str(seed), str(epoch), name)
            place = int(permute(np.array([place], dtype=np.int64), whole, seed=key)[0])
        return int(order[place * size + within])

    @cached_property
    def _orders(self) -> dict[str, NDArray[np.int64]]:
        """Each data set's samples, community by community."""
        first, last = self.config.skip, self.config.skip + self.config.keep
        size = self.config.community_size
        return {
            name: communities(self._graph(name).neighbours[:, first:last], size)
            for name in self.config.graphs
        }

    def _graph(self, name: str) -> NeighbourGraph:
        path = self.config.graphs[name]
        graph = NeighbourGraph.read(Path(path).expanduser())
        ranks = graph.neighbours.shape[1]
        if ranks < self.config.skip + self.config.keep:
            raise MucoError(
                f"sampler.graphs.{name}: {path} holds {ranks} neighbours a sample; `skip` {self.config.skip} "
                f"and `keep` {self.config.keep} want {self.config.skip + self.config.keep}"
            )
        return graph

    def _check(self, catalog: Catalog, batch_size: int) -> None:
        size = self.config.community_size
        if batch_size % size:
            raise MucoError(
                f"sampler.community_size: {size} does not divide train.global_batch_size {batch_size}"
            )
        for name in self.config.graphs:
            if name not in catalog:
                near = did_you_mean(name, list(catalog))
                raise MucoError(f"sampler.graphs: no data set named {name!r}.{near}")
        for name, number in catalog.items():
            if name not in self.config.graphs:
                raise MucoError(f"sampler.graphs: the data set {name!r} has no graph")
            if len(self._orders[name]) != number:
                raise MucoError(
                    f"sampler.graphs.{name}: a graph of {len(self._orders[name]):,} samples for {number:,}"
                )
