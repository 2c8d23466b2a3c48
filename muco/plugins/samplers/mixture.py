"""Batches drawn from all data sets together, in shares that can be set."""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muco.core.ids import stable_id
from muco.core.sampler import BatchPlan, Catalog, Sampler, SampleRef
from muco.plugins.samplers.epoch_shares import (
    SharesConfig,
    batch_positions,
    check_weights,
    quotas_of,
    shares_of,
    shuffled_visit,
)
from muco.plugins.samplers.permutation import permute, permute_in_windows


class Mixture(Sampler):
    """Shuffle all samples of all data sets into one epoch.

    Without weights or temperature an epoch holds every sample once. With them it is as long, but each data
    set fills its share. A small data set repeats: over the epochs the visits of its samples differ by at most
    one. A large one continues in the next epoch where it stopped.
    """

    class Config(SharesConfig):
        window: Annotated[int, Field(ge=16)] | None = None
        """Shuffle samples within windows of this many, and the blocks that make up a window. Reads are then
        nearly sequential, and remote shards are fetched one after the other. None shuffles all samples."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.window = config.window

    def verify_settings(self, datasets: Collection[str], *, batch_size: int) -> None:
        check_weights(self.config.weights, datasets)

    def num_batches(self, catalog: Catalog, *, batch_size: int) -> int:
        return -(-sum(quotas_of(shares_of(self.config, catalog), catalog).values()) // batch_size)

    def plan(self, catalog: Catalog, *, batch_size: int, seed: int, epoch: int, position: int) -> BatchPlan:
        shares = shares_of(self.config, catalog)
        quotas = quotas_of(shares, catalog)
        indices = np.array(batch_positions(quotas, batch_size, position), dtype=np.int64)
        key = stable_id("epoch", str(seed), str(epoch))
        shuffled = self._shuffled(indices, sum(quotas.values()), seed=key)
        names, ends = list(quotas), list(accumulate(quotas.values()))
        refs = []
        for index, owner in zip(shuffled.tolist(), np.searchsorted(ends, shuffled, "right"), strict=True):
            name = names[owner]
            visit = epoch * quotas[name] + index - (ends[owner] - quotas[name])
            if shares is None or self.window is not None:
                refs.append(SampleRef(name, visit % catalog[name]))
            else:
                refs.append(shuffled_visit(name, visit, size=catalog[name], seed=seed))
        return BatchPlan(epoch, position, tuple(refs))

    def _shuffled(self, indices: NDArray[np.int64], total: int, *, seed: int) -> NDArray[np.int64]:
        if self.window is None:
            return permute(indices, total, seed=seed)
        # Sorted to read in the order of the shards; the order within a batch has no effect.
        return np.sort(permute_in_windows(indices, total, window=self.window, seed=seed))
