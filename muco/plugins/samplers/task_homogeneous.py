"""Batches made of runs of one data set, whose samples are negatives of each other."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import PositiveInt

from muco.core.errors import MucoError
from muco.core.ids import stable_id
from muco.core.sampler import BatchPlan, Catalog, Sampler, SampleRef
from muco.plugins.samplers.epoch_shares import (
    SharesConfig,
    batch_positions,
    check_weights,
    quotas_of,
    run_position,
    shares_of,
    shuffled_visit,
)


class TaskHomogeneous(Sampler):
    """Cut every data set into runs, and shuffle the runs into batches.

    With runs as long as a batch, each batch is of one data set. The samples of each data set after its last
    whole run come at the end of the epoch.

    References:
        Jiang et al. 2024, arXiv:2410.05160: VLM2Vec's interleaved sub-batches.
    """

    class Config(SharesConfig):
        run_length: PositiveInt
        """Samples of a run; divides `train.global_batch_size`."""

    def __init__(self, config: Config) -> None:
        self.run_length = config.run_length
        self.config = config

    def verify_settings(self, datasets: Collection[str], *, batch_size: int) -> None:
        self._check(batch_size)
        check_weights(self.config.weights, datasets)

    def num_batches(self, catalog: Catalog, *, batch_size: int) -> int:
        self._check(batch_size)
        return -(-sum(quotas_of(shares_of(self.config, catalog), catalog).values()) // batch_size)

    def plan(self, catalog: Catalog, *, batch_size: int, seed: int, epoch: int, position: int) -> BatchPlan:
        self._check(batch_size)
        quotas = quotas_of(shares_of(self.config, catalog), catalog)
        key = stable_id("runs", str(seed), str(epoch))
        refs: list[SampleRef] = []
        for index in batch_positions(quotas, batch_size, position):
            name, offset = run_position(quotas, index, run_length=self.run_length, key=key)
            visit = epoch * quotas[name] + offset
            refs.append(shuffled_visit(name, visit, size=catalog[name], seed=seed))
        return BatchPlan(epoch, position, tuple(refs))

    def _check(self, batch_size: int) -> None:
        if batch_size % self.run_length:
            raise MucoError(
                f"sampler.run_length: {self.run_length} does not divide train.global_batch_size {batch_size}"
            )
