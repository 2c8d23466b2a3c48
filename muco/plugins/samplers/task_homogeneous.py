"""Batches made of runs of one data set, whose samples are negatives of each other."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydantic import PositiveInt

from muco.core.errors import MucoError
from muco.core.sampler import Catalog, SampleRef
from muco.plugins.samplers.epoch_shares import (
    Epoch,
    SharedEpochs,
    SharesConfig,
    run_position,
    shuffled_visit,
)


class TaskHomogeneous(SharedEpochs):
    """Cut every data set into runs, and shuffle the runs into batches.

    With runs as long as a batch, each batch is of one data set. The samples of each data set after its last
    whole run come at the end of the epoch.

    References:
        Jiang et al. 2024, arXiv:2410.05160: VLM2Vec's interleaved sub-batches.
    """

    class Config(SharesConfig):
        run_length: PositiveInt
        """Samples of a run; divides `train.global_batch_size`."""

    def verify_settings(self, datasets: Collection[str], *, batch_size: int) -> None:
        run_length = self.config.run_length
        if batch_size % run_length:
            raise MucoError(
                f"sampler.run_length: {run_length} does not divide train.global_batch_size {batch_size}"
            )
        super().verify_settings(datasets, batch_size=batch_size)

    def refs(self, positions: range, catalog: Catalog, batch_size: int, epoch: Epoch) -> Iterator[SampleRef]:
        quotas = self.quotas(catalog)
        for index in positions:
            name, offset = run_position(quotas, index, run_length=self.config.run_length, epoch=epoch)
            visit = epoch.number * quotas[name] + offset
            yield shuffled_visit(name, visit, size=catalog[name], seed=epoch.seed)
