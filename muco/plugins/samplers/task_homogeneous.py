"""Batches made of runs: neighbours of one data set, so that its samples are each other's negatives."""

from __future__ import annotations

from pydantic import PositiveInt

from muco.core.errors import MucoError
from muco.core.ids import stable_id
from muco.core.sampler import BatchPlan, Catalog, Sampler, SampleRef
from muco.plugins.samplers.epoch_shares import (
    SharesConfig,
    place_in_runs,
    quotas_of,
    shares_of,
    shuffled_visit,
)


class TaskHomogeneous(Sampler):
    """Cut every data set into runs, and shuffle the runs into batches.

    A run as long as a batch makes batches of one data set each. What is left of each data set after
    its last whole run comes at the end of the epoch.

    References:
        Jiang et al. 2024, arXiv:2410.05160: VLM2Vec's interleaved sub-batches.
    """

    class Config(SharesConfig):
        run_length: PositiveInt
        """Samples of one data set that stand together; divides `train.global_batch_size`."""

    def __init__(self, config: Config) -> None:
        self.run_length = config.run_length
        self.config = config

    def num_batches(self, catalog: Catalog, *, batch_size: int) -> int:
        self._check(batch_size)
        return -(-sum(quotas_of(shares_of(self.config, catalog), catalog).values()) // batch_size)

    def plan(self, catalog: Catalog, *, batch_size: int, seed: int, epoch: int, position: int) -> BatchPlan:
        self._check(batch_size)
        quotas = quotas_of(shares_of(self.config, catalog), catalog)
        total, start = sum(quotas.values()), position * batch_size
        if not 0 <= start < total:
            raise ValueError(f"position {position} lies outside an epoch of {total} samples")
        key = stable_id("runs", str(seed), str(epoch))
        refs: list[SampleRef] = []
        for place in range(start, min(start + batch_size, total)):
            name, offset = place_in_runs(quotas, place, run_length=self.run_length, key=key)
            visit = epoch * quotas[name] + offset
            refs.append(shuffled_visit(name, visit, size=catalog[name], seed=seed))
        return BatchPlan(epoch, position, tuple(refs))

    def _check(self, batch_size: int) -> None:
        if batch_size % self.run_length:
            raise MucoError(
                f"sampler.run_length: {self.run_length} does not divide train.global_batch_size {batch_size}"
            )
