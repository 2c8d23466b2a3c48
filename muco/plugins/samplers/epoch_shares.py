"""How many samples of each data set an epoch holds, and which sample is at which position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from muco.core.component import ComponentConfig
from muco.core.errors import MucoError, did_you_mean
from muco.core.ids import stable_id
from muco.core.sampler import BatchPlan, Catalog, Sampler, SampleRef
from muco.plugins.samplers.permutation import permute_one


class SharesConfig(ComponentConfig):
    """The share of an epoch that each data set fills."""

    weights: dict[str, NonNegativeFloat] | None = None
    """Share of each data set by name, in any unit; None takes every sample once an epoch."""
    temperature: PositiveFloat | None = None
    """Instead of weights: shares proportional to size ** (1 / temperature). 1: as the sizes; higher values
    make the shares more equal."""

    @model_validator(mode="after")
    def _one_of_both(self) -> SharesConfig:
        if self.weights is not None and self.temperature is not None:
            raise ValueError("give `weights` or `temperature`, not both")
        return self


class Epoch(NamedTuple):
    """The epoch whose batches are planned."""

    seed: int
    number: int

    def key(self, purpose: str, *names: str) -> int:
        """Return the seed of a shuffle of this epoch."""
        return stable_id(purpose, str(self.seed), str(self.number), *names)


class EpochSampler(Sampler, ABC):
    """A sampler whose epoch holds a number of samples of each data set. A subclass orders them."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def quotas(self, catalog: Catalog) -> dict[str, int]:
        """Return how many samples of each data set an epoch holds."""

    @abstractmethod
    def refs(self, positions: range, catalog: Catalog, batch_size: int, epoch: Epoch) -> Iterable[SampleRef]:
        """Return the samples at these positions of the epoch."""

    def num_batches(self, catalog: Catalog, *, batch_size: int) -> int:
        self.verify_settings(catalog, batch_size=batch_size)
        return -(-sum(self.quotas(catalog).values()) // batch_size)

    def plan(self, catalog: Catalog, *, batch_size: int, seed: int, epoch: int, position: int) -> BatchPlan:
        self.verify_settings(catalog, batch_size=batch_size)
        total, start = sum(self.quotas(catalog).values()), position * batch_size
        if not 0 <= start < total:
            raise ValueError(f"position {position} is outside an epoch of {total} samples")
        positions = range(start, min(start + batch_size, total))
        refs = self.refs(positions, catalog, batch_size, Epoch(seed, epoch))
        return BatchPlan(epoch, position, tuple(refs))


class SharedEpochs(EpochSampler, ABC):
    """A sampler with the settings of `SharesConfig`."""

    def verify_settings(self, datasets: Collection[str], *, batch_size: int) -> None:
        weights = self.config.weights
        check_known("sampler.weights", weights or (), datasets)
        if weights is not None and not any(weights.values()):
            raise MucoError("sampler.weights: at least one data set needs a weight above zero")

    def quotas(self, catalog: Catalog) -> dict[str, int]:
        """Return all samples of each data set, or about as many in total in proportion to the shares."""
        weights = self.config.weights
        if self.config.temperature is not None:
            # Relative to the largest, so that no power overflows.
            largest = max(catalog.values())
            weights = {name: (n / largest) ** (1 / self.config.temperature) for name, n in catalog.items()}
        if weights is None:
            return dict(catalog)
        shares = {name: weights.get(name, 0.0) for name in catalog}
        total, length = sum(shares.values()), sum(catalog.values())
        return {name: round(length * share / total) for name, share in shares.items()}


def check_known(key: str, names: Iterable[str], datasets: Collection[str]) -> None:
    """Raise MucoError if a name of the setting `key` is not that of a data set."""
    for name in names:
        if name not in datasets:
            near = did_you_mean(name, list(datasets))
            raise MucoError(f"{key}: no data set named {name!r}.{near} Data sets: {', '.join(datasets)}")


def run_position(
    quotas: Mapping[str, int], position: int, *, run_length: int, epoch: Epoch
) -> tuple[str, int]:
    """Return the data set of a position in the epoch, and the position within that data set's quota.

    Each quota is cut into runs, and the runs of all data sets are shuffled together. The positions of each
    quota after its last whole run come at the end of the epoch, data set by data set.

    Args:
        quotas: samples of each data set in an epoch.
        position: in the epoch, less than the sum of the quotas.
        run_length: samples of one run.
        epoch: seeds the order of the runs.
    """
    runs = {name: quota // run_length for name, quota in quotas.items()}
    num_runs = sum(runs.values())
    run, offset = divmod(position, run_length)
    if run < num_runs:
        name, run = _find(runs, permute_one(run, num_runs, seed=epoch.key("runs")))
        return name, run * run_length + offset
    rest = {name: quota % run_length for name, quota in quotas.items()}
    name, offset = _find(rest, position - num_runs * run_length)
    return name, runs[name] * run_length + offset


def shuffled_visit(name: str, visit: int, *, size: int, seed: int) -> SampleRef:
    """Return the sample of visit number `visit` of a data set, counted over all epochs.

    Every `size` visits take each sample once, in an order of their own.
    """
    lap, index = divmod(visit, size)
    return SampleRef(name, permute_one(index, size, seed=stable_id("lap", str(seed), name, str(lap))))


def _find(sizes: Mapping[str, int], index: int) -> tuple[str, int]:
    """Return the name whose stretch holds `index`, stretches laid end to end, and the index within it."""
    for name, size in sizes.items():
        if index < size:
            return name, index
        index -= size
    raise ValueError(f"index {index} is beyond the end")
