"""The interface of sources, which convert an outside data set to samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from muco.core.component import Component, Kind
from muco.core.sample import Sample


class Source(Component, ABC):
    """List the records of a data set in a fixed order, and convert each to a sample.

    One process lists the records, which must be cheap. Many processes convert them, which reads the images;
    each builds its own source from the same settings.
    """

    kind: ClassVar[Kind] = "source"
    version: ClassVar[int] = 1
    """Increase it when the same settings give other samples, so that cached shards are made again."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of records."""

    @abstractmethod
    def records(self, start: int = 0) -> Iterator[Any]:
        """Yield the records from index `start` on; picklable and small, without image data."""

    @abstractmethod
    def sample(self, record: Any) -> Sample:
        """Return the sample of a record.

        Raise DataError if it makes none: an image is missing, a target is empty, a text is broken. It is then
        skipped and counted.
        """

    def samples(self, start: int = 0) -> Iterator[Sample]:
        """Yield the samples from record `start` on; raise DataError at a record that makes none."""
        return map(self.sample, self.records(start))

    def name_of(self, record: Any) -> str:
        """Return where a record is, such as file and row, for messages."""
        return str(record)

    def image_names(self, record: Any) -> Iterable[str]:
        """Yield the names of a record's images; `muco data download` fetches those that are URLs."""
        return ()

    def files_of(self, record: Any) -> Iterable[tuple[str, int]]:
        """Yield name and bytes of each image file that `sample` reads; raise DataError if one is missing."""
        return ()

    def left_out(self) -> Sequence[Path]:
        """Return the files of the data set that may hold records but are not read, to name them."""
        return ()

    def revision(self) -> str:
        """Return a text that changes when the data changes under equal settings; empty if it cannot."""
        return ""
