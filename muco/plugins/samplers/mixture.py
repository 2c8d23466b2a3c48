"""Batches drawn from all data sets together, in shares that can be set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muco.core.sampler import Catalog, SampleRef
from muco.plugins.samplers.epoch_shares import Epoch, SharedEpochs, SharesConfig, shuffled_visit
from muco.plugins.samplers.permutation import permute, permute_in_windows


class Mixture(SharedEpochs):
    """Shuffle all samples of all data sets into one epoch.

    Without weights or temperature an epoch holds every sample once. With them it is as long, but each data
    set fills its share. A small data set repeats: over the epochs the visits of its samples differ by at most
    one. A large one continues in the next epoch where it stopped.
    """

    class Config(SharesConfig):
        window: Annotated[int, Field(ge=16)] | None = None
        """Shuffle samples within windows of this many, and the blocks that make up a window. Reads are then
        nearly sequential, and remote shards are fetched one after the other. None shuffles all samples."""

    def refs(self, positions: range, catalog: Catalog, batch_size: int, epoch: Epoch) -> Iterator[SampleRef]:
        quotas = self.quotas(catalog)
        has_shares = self.config.weights is not None or self.config.temperature is not None
        indices = np.array(positions, dtype=np.int64)
        shuffled = self._shuffled(indices, sum(quotas.values()), seed=epoch.key("epoch"))
        names, ends = list(quotas), list(accumulate(quotas.values()))
        for index, owner in zip(shuffled.tolist(), np.searchsorted(ends, shuffled, "right"), strict=True):
            name = names[owner]
            visit = epoch.number * quotas[name] + index - (ends[owner] - quotas[name])
            if has_shares and self.config.window is None:
                yield shuffled_visit(name, visit, size=catalog[name], seed=epoch.seed)
            else:
                yield SampleRef(name, visit % catalog[name])

    def _shuffled(self, indices: NDArray[np.int64], total: int, *, seed: int) -> NDArray[np.int64]:
        window = self.config.window
        if window is None:
            return permute(indices, total, seed=seed)
        # Sorted to read in the order of the shards; the order within a batch has no effect.
        return np.sort(permute_in_windows(indices, total, window=window, seed=seed))
