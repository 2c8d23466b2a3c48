"""A source turns an outside data set into samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from muco.core.component import Component, Kind
from muco.core.sample import Sample


class Source(Component, ABC):
    """List the records of a data set in a fixed order, and make a sample of each.

    Listing is cheap and done in one process. Making reads images and is done in many, each with a
    source of its own built from the same settings.
    """

    kind: ClassVar[Kind] = "source"
    version: ClassVar[int] = 1
    """Raised when the same settings would give other samples, so that cached shards are not reused."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of records."""

    @abstractmethod
    def records(self, start: int = 0) -> Iterator[Any]:
        """Yield the records from `start` on: picklable, and light, for no image is read."""

    @abstractmethod
    def sample(self, record: Any) -> Sample:
        """Return the sample of a record.

        Raises:
            DataError: there is none: an image is missing, a target is empty, the text is broken.
        """

    def samples(self, start: int = 0) -> Iterator[Sample]:
        """Yield the samples from record `start` on; raises where a record makes none."""
        return map(self.sample, self.records(start))

    def name_of(self, record: Any) -> str:
        """Return where a record lies, in words: file and row."""
        return str(record)

    def image_names(self, record: Any) -> Iterable[str]:
        """Yield the names of the images that a record asks for; those that are URLs can be downloaded."""
        return ()

    def files_of(self, record: Any) -> Iterable[tuple[str, int]]:
        """Yield name and size in bytes of each image file that `sample` would read; to foretell sizes.

        Raises:
            DataError: a file is missing.
        """
        return ()

    def revision(self) -> str:
        """Return what changes when the data does though the settings stay; empty where nothing can."""
        return ""
