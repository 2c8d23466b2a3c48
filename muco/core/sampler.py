"""The sampler plans batches; it reads nothing and keeps no state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from muco.core.component import Component, Kind

Catalog = Mapping[str, int]
"""Number of samples by data set name, in the recipe's order."""


@dataclass(frozen=True)
class SampleRef:
    """A sample that a plan asks for: the data set's name and the position in its index."""

    dataset: str
    index: int


@dataclass(frozen=True)
class BatchPlan:
    """The global batch of one step; the engine splits it over ranks."""

    epoch: int
    position: int
    samples: tuple[SampleRef, ...]


class Sampler(Component, ABC):
    """Plan batches as a pure function of the arguments, at the same cost for any position."""

    kind: ClassVar[Kind] = "sampler"

    def verify_data(self, fingerprints: Mapping[str, str]) -> None:
        """Accept any data; a sampler that was made for particular data refuses others here.

        Args:
            fingerprints: a hash of each data set's samples, by name.

        Raises:
            MucoError: the data are others.
        """

    @abstractmethod
    def num_batches(self, catalog: Catalog, *, batch_size: int) -> int:
        """Return the number of batches of an epoch; the last one may be smaller, never padded."""

    @abstractmethod
    def plan(self, catalog: Catalog, *, batch_size: int, seed: int, epoch: int, position: int) -> BatchPlan:
        """Return the batch at `position` of `epoch`, in samples over all ranks.

        Raises:
            ValueError: `position` is not below `num_batches`.
        """
