"""Batches drawn from all data sets together, in a share of each that can be set."""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muco.core.ids import stable_id
from muco.core.sampler import BatchPlan, Catalog, Sampler, SampleRef
from muco.plugins.samplers.epoch_shares import SharesConfig, quotas_of, shares_of, shuffled_visit
from muco.plugins.samplers.permutation import permute, permute_in_windows


class Mixture(Sampler):
    """Shuffle all samples of all data sets into one epoch.

    Without weights or temperature an epoch holds every sample once. With them it is as long, but each data
    set fills its share: a small one comes again, after every epoch each sample as often or once more, and
    a large one goes on in the next epoch where it stopped.
    """

    class Config(SharesConfig):
        window: Annotated[int, Field(ge=16)] | None = None
        """Shuffle stretches of shards, and samples among those of so many samples: a disk reads nearly in a
        row, and remote shards come one after the other. None shuffles all samples with all."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.window = config.window

    def num_batches(self, catalog: Catalog, *, batch_size: int) -> int:
        return -(-sum(quotas_of(shares_of(self.config, catalog), catalog).values()) // batch_size)

    def plan(self, catalog: Catalog, *, batch_size: int, seed: int, epoch: int, position: int) -> BatchPlan:
        shares = shares_of(self.config, catalog)
        quotas = quotas_of(shares, catalog)
        total = sum(quotas.values())
        start = position * batch_size
        if not 0 <= start < total:
            raise ValueError(f"position {position} lies outside an epoch of {total} samples")
        places = np.arange(start, min(start + batch_size, total), dtype=np.int64)
        draws = self._shuffled(places, total, seed=stable_id("epoch", str(seed), str(epoch)))
        borders = list(accumulate(quotas.values()))
        owners = np.searchsorted(borders, draws, side="right")
        names = list(quotas)
        refs = []
        for draw, owner in zip(draws.tolist(), owners.tolist(), strict=True):
            name = names[owner]
            visit = epoch * quotas[name] + draw - (borders[owner] - quotas[name])
            if shares is None or self.window is not None:
                refs.append(SampleRef(name, visit % catalog[name]))
            else:
                refs.append(shuffled_visit(name, visit, size=catalog[name], seed=seed))
        return BatchPlan(epoch, position, tuple(refs))

    def _shuffled(self, places: NDArray[np.int64], total: int, *, seed: int) -> NDArray[np.int64]:
        if self.window is None:
            return permute(places, total, seed=seed)
        # In the order of the shards: which sample of a batch comes first is all the same.
        return np.sort(permute_in_windows(places, total, window=self.window, seed=seed))
