"""Batches made of runs: neighbours of one data set, so that its samples are each other's negatives."""

from __future__ import annotations

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from muco.core.component import ComponentConfig
from muco.core.errors import MucoError
from muco.core.ids import stable_id
from muco.core.sampler import BatchPlan, Catalog, Sampler, SampleRef
from muco.plugins._shared.permutation import permute
from muco.plugins._shared.visits import owner_of, quotas_of, shuffled_visit


class TaskHomogeneous(Sampler):
    """Cut every data set into runs, and shuffle the runs into batches.

    A run as long as a batch makes batches of one data set each. What is left of each data set after
    its last whole run comes at the end of the epoch.

    References:
        Jiang et al. 2024, arXiv:2410.05160: VLM2Vec's interleaved sub-batches.
    """

    class Config(ComponentConfig):
        run_length: PositiveInt
        """Samples of one data set that stand together; divides `train.samples_per_step`."""
        weights: dict[str, NonNegativeFloat] | None = None
        """Share of each data set by name, in any unit; None takes all samples once an epoch."""

    def __init__(self, config: Config) -> None:
        self.run_length = config.run_length
        self.weights = config.weights

    def num_batches(self, catalog: Catalog, *, batch_size: int) -> int:
        self._check(batch_size)
        return -(-sum(quotas_of(self.weights, catalog).values()) // batch_size)

    def plan(self, catalog: Catalog, *, batch_size: int, seed: int, epoch: int, position: int) -> BatchPlan:
        self._check(batch_size)
        quotas = quotas_of(self.weights, catalog)
        total, start = sum(quotas.values()), position * batch_size
        if not 0 <= start < total:
            raise ValueError(f"position {position} lies outside an epoch of {total} samples")
        refs: list[SampleRef] = []
        for place in range(start, min(start + batch_size, total)):
            name, offset = self._owner(quotas, place, seed=seed, epoch=epoch)
            visit = epoch * quotas[name] + offset
            refs.append(shuffled_visit(name, visit, size=catalog[name], seed=seed))
        return BatchPlan(epoch, position, tuple(refs))

    def _owner(self, quotas: dict[str, int], place: int, *, seed: int, epoch: int) -> tuple[str, int]:
        """Return the data set of a place in the epoch, and the place in that data set's share."""
        runs = {name: quota // self.run_length for name, quota in quotas.items()}
        num_runs = sum(runs.values())
        run, offset = divmod(place, self.run_length)
        if run < num_runs:
            key = stable_id("runs", str(seed), str(epoch))
            drawn = int(permute(np.array([run], dtype=np.int64), num_runs, seed=key)[0])
            name, run_of_it = owner_of(runs, drawn)
            return name, run_of_it * self.run_length + offset
        rest = {name: quota % self.run_length for name, quota in quotas.items()}
        name, offset = owner_of(rest, place - num_runs * self.run_length)
        return name, runs[name] * self.run_length + offset

    def _check(self, batch_size: int) -> None:
        if batch_size % self.run_length:
            raise MucoError(
                f"sampler.run_length: {self.run_length} does not divide train.samples_per_step {batch_size}"
            )
