"""What the sources that read tables have in common: files in order, rows as records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from muco.core.errors import DataError
from muco.core.sample import Sample
from muco.core.source import Source
from muco.io.image_files import ImageFiles
from muco.io.tables import Row, num_rows, rows


class TableSource(Source, ABC):
    """A source whose records are the rows of some files."""

    folder: Path
    """What rows' files are named from."""
    images: ImageFiles
    """Where the rows' images lie."""
    limit: int | None = None
    """The most rows of each file."""

    def __init__(self, config: Any) -> None:
        """Take a folder, `path`, in which or in `images` the images lie too, and the first `limit` rows."""
        self.config = config
        self.folder = Path(config.path).expanduser()
        self.limit = config.limit
        self.images = ImageFiles([Path(config.images or config.path).expanduser()])

    @abstractmethod
    def tables(self) -> Sequence[Path]:
        """Return the files in their order; raise DataError, saying how to get them, if there are none."""

    @abstractmethod
    def columns(self) -> Sequence[str] | None:
        """Return the columns that are read; None for all."""

    @abstractmethod
    def sample_of(self, row: Row) -> Sample:
        """Return the sample of a row that could be read."""

    @abstractmethod
    def names_in(self, row: Row) -> Iterable[str]:
        """Yield the names of the images that `sample_of` reads."""

    @cached_property
    def _sizes(self) -> list[int]:
        return [min(num_rows(path), self.limit or 2**62) for path in self.tables()]

    def __len__(self) -> int:
        return sum(self._sizes)

    def records(self, start: int = 0) -> Iterator[Row]:
        for path, size in zip(self.tables(), self._sizes, strict=True):
            if start < size:
                name = path.relative_to(self.folder).as_posix()
                found = rows(path, self.columns(), start=start)
                yield from (replace(row, file=name) for row in islice(found, size - start))
            start = max(0, start - size)

    def sample(self, record: Row) -> Sample:
        try:
            return self.sample_of(record.faultless)
        except ValueError as error:
            raise DataError(str(error)) from None

    def name_of(self, record: Row) -> str:
        return record.place

    def files_of(self, record: Row) -> Iterator[tuple[str, int]]:
        yield from ((name, self.images.size(name)) for name in self.image_names(record))

    def image_names(self, record: Row) -> Iterator[str]:
        if not record.fault:
            yield from self.names_in(record)

    def revision(self) -> str:
        return revision_of(self.tables())


def revision_of(paths: Iterable[Path]) -> str:
    """Return a hash that changes when a file does."""
    digest = blake2b(digest_size=8)
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def existing(path: str, *, what: str) -> Path:
    """Return a path that is there; raise DataError with how to get it."""
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{found} is not there. {what}")
    return found
