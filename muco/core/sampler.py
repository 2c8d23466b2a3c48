"""A sampler plans batches. It reads no data and has no state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from muco.core.component import Component, Kind

Catalog = Mapping[str, int]
"""Number of samples by data-set name, in the recipe's order."""


@dataclass(frozen=True)
class SampleRef:
    """A sample of a plan: the data set's name and the position in its index."""

    dataset: str
    index: int


@dataclass(frozen=True)
class BatchPlan:
    """The global batch of one step; the engine splits it over ranks."""

    epoch: int
    position: int
    samples: tuple[SampleRef, ...]


class Sampler(Component, ABC):
    """Plan batches as a pure function of the arguments. Every position must cost the same."""

    kind: ClassVar[Kind] = "sampler"

    def verify_settings(self, datasets: Collection[str], *, batch_size: int) -> None:
        """Raise MucoError if the settings do not fit these data sets or this batch size over all ranks.

        By default all are accepted.
        """

    def verify_data(self, fingerprints: Mapping[str, str]) -> None:
        """Raise MucoError if the sampler was made for other data; by default any data is accepted.

        A sampler that depends on particular data, a neighbour graph for example, overrides this. By
        name, `fingerprints` has a hash of each data set's samples.
        """

    @abstractmethod
    def num_batches(self, catalog: Catalog, *, batch_size: int) -> int:
        """Return the number of batches in an epoch. The last one may be smaller; it is never padded."""

    @abstractmethod
    def plan(self, catalog: Catalog, *, batch_size: int, seed: int, epoch: int, position: int) -> BatchPlan:
        """Return batch `position` of `epoch`, of all ranks; raise ValueError beyond `num_batches`."""
