"""Batches of samples that a teacher model ranks as near neighbours: hard negatives of each other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from os.path import expanduser
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt, model_validator

from muco.core.component import ComponentConfig
from muco.core.errors import MucoError
from muco.core.sampler import Catalog, SampleRef
from muco.io.neighbor_graph import NeighbourGraph
from muco.plugins.samplers.communities import communities
from muco.plugins.samplers.epoch_shares import Epoch, EpochSampler, check_known, run_position
from muco.plugins.samplers.permutation import permute_one


class Mined(EpochSampler):
    """Group each data set into communities of near neighbours; a batch has communities of one data set.

    An epoch holds every sample once. The communities depend only on the graph and are shuffled every epoch.
    The samples of each data set after its last whole batch come at the end of the epoch.

    References:
        Thirukovalluru et al. 2025, arXiv:2505.11293: B3.
    """

    class Config(ComponentConfig):
        graphs: dict[str, str]
        """Neighbour file of each data set, by name."""
        range_min: NonNegativeInt = 30
        """Leave out this many nearest neighbours of a sample, which are likely positives."""
        range_max: PositiveInt = 130
        """Keep neighbours up to this rank."""
        community_size: PositiveInt = 32
        """Samples of a community; divides `train.global_batch_size`."""

        @model_validator(mode="after")
        def _range_holds_a_rank(self) -> Mined.Config:
            if self.range_max <= self.range_min:
                raise ValueError(
                    f"`range_max` {self.range_max} must be greater than `range_min` {self.range_min}"
                )
            return self

    def verify_settings(self, datasets: Collection[str], *, batch_size: int) -> None:
        size = self.config.community_size
        if batch_size % size:
            raise MucoError(
                f"sampler.community_size: {size} does not divide train.global_batch_size {batch_size}"
            )
        check_known("sampler.graphs", self.config.graphs, datasets)
        for name in datasets:
            if name not in self.config.graphs:
                raise MucoError(f"sampler.graphs: the data set {name!r} has no graph")

    def verify_data(self, fingerprints: Mapping[str, str]) -> None:
        for name in sorted(self.config.graphs.keys() & fingerprints.keys()):
            graph, fingerprint = self._graph(name), fingerprints[name]
            if graph.data != fingerprint:
                raise MucoError(
                    f"sampler.graphs.{name}: {self.config.graphs[name]} was made of other data (fingerprint "
                    f"{graph.data}, data.{name} has {fingerprint}). Run `muco mine` again."
                )

    def quotas(self, catalog: Catalog) -> dict[str, int]:
        for name, num_samples in catalog.items():
            if len(self._orders[name]) != num_samples:
                raise MucoError(
                    f"sampler.graphs.{name}: the graph has {len(self._orders[name]):,} samples, "
                    f"the data set {num_samples:,}"
                )
        return dict(catalog)

    def refs(self, positions: range, catalog: Catalog, batch_size: int, epoch: Epoch) -> Iterator[SampleRef]:
        size = self.config.community_size
        for index in positions:
            name, offset = run_position(catalog, index, run_length=batch_size, epoch=epoch)
            # Shuffled communities, then the rest.
            order, (community, within) = self._orders[name], divmod(offset, size)
            num_whole = len(order) // size
            if community < num_whole:
                community = permute_one(community, num_whole, seed=epoch.key("communities", name))
            yield SampleRef(name, int(order[community * size + within]))

    @cached_property
    def _orders(self) -> dict[str, NDArray[np.int64]]:
        """The samples of each data set, ordered by community."""
        first, last, size = self.config.range_min, self.config.range_max, self.config.community_size
        return {
            name: communities(self._graph(name).neighbours[:, first:last], size)
            for name in self.config.graphs
        }

    def _graph(self, name: str) -> NeighbourGraph:
        path = self.config.graphs[name]
        graph = NeighbourGraph.read(Path(expanduser(path)))
        ranks = graph.neighbours.shape[1]
        if ranks < self.config.range_max:
            raise MucoError(
                f"sampler.graphs.{name}: {path} holds {ranks} neighbours of each sample, fewer than "
                f"`range_max` {self.config.range_max}. Lower `range_max`, or mine more neighbours."
            )
        return graph
