"""A source turns an outside data set into samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from muco.core.component import Component, Kind
from muco.core.sample import Sample


class Source(Component, ABC):
    """Yield samples in a fixed order; the same settings give the same samples."""

    kind: ClassVar[Kind] = "source"
    version: ClassVar[int] = 1
    """Raised when the same settings would give other samples, so that cached shards are not reused."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def samples(self, start: int = 0) -> Iterator[Sample]:
        """Yield the samples from `start` on."""
