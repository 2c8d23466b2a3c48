"""Batches drawn from all data sets together, in a share of each that can be set."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from pydantic import NonNegativeFloat

from muco.core.component import ComponentConfig
from muco.core.errors import MucoError, did_you_mean
from muco.core.ids import stable_id
from muco.core.sampler import BatchPlan, Catalog, Sampler, SampleRef
from muco.plugins._shared.permutation import permute


class Mixture(Sampler):
    """Shuffle all samples of all data sets into one epoch.

    Without weights an epoch holds every sample once. With weights it is as long, but each data set
    fills its share: a small one comes again, after every epoch each sample as often or once more, and
    a large one goes on in the next epoch where it stopped.
    """

    class Config(ComponentConfig):
        weights: dict[str, NonNegativeFloat] | None = None
        """Share of each data set by name, in any unit; None takes all samples once an epoch."""

    def __init__(self, config: Config) -> None:
        self.weights = config.weights

    def num_batches(self, catalog: Catalog, *, batch_size: int) -> int:
        return -(-sum(self._quotas(catalog).values()) // batch_size)

    def plan(self, catalog: Catalog, *, batch_size: int, seed: int, epoch: int, position: int) -> BatchPlan:
        quotas = self._quotas(catalog)
        total = sum(quotas.values())
        start = position * batch_size
        if not 0 <= start < total:
            raise ValueError(f"position {position} lies outside an epoch of {total} samples")
        places = np.arange(start, min(start + batch_size, total), dtype=np.int64)
        draws = permute(places, total, seed=stable_id("epoch", str(seed), str(epoch)))
        borders = list(accumulate(quotas.values()))
        owners = np.searchsorted(borders, draws, side="right")
        names = list(quotas)
        refs = []
        for draw, owner in zip(draws.tolist(), owners.tolist(), strict=True):
            name = names[owner]
            visit = epoch * quotas[name] + draw - (borders[owner] - quotas[name])
            refs.append(SampleRef(name, self._sample(name, visit, catalog[name], seed)))
        return BatchPlan(epoch, position, tuple(refs))

    def _sample(self, name: str, visit: int, size: int, seed: int) -> int:
        """Return the sample of a data set's visit, counted over all epochs: each lap takes all once."""
        lap, place = divmod(visit, size)
        if self.weights is None:
            return place
        key = stable_id("lap", str(seed), name, str(lap))
        return int(permute(np.array([place], dtype=np.int64), size, seed=key)[0])

    def _quotas(self, catalog: Catalog) -> dict[str, int]:
        """Return how many samples of each data set an epoch holds."""
        if self.weights is None:
            return dict(catalog)
        for name in self.weights:
            if name not in catalog:
                near = did_you_mean(name, list(catalog))
                raise MucoError(
                    f"sampler.weights: no data set named {name!r}.{near} Data sets: {', '.join(catalog)}"
                )
        weights = {name: self.weights.get(name, 0.0) for name in catalog}
        whole, length = sum(weights.values()), sum(catalog.values())
        if whole <= 0:
            raise MucoError("sampler.weights: at least one data set needs a weight above zero")
        return {name: round(length * weight / whole) for name, weight in weights.items()}
