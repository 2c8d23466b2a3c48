"""Base class of the sources that read tables, one sample a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from os.path import expanduser
from pathlib import Path
from typing import Any

from muco.core.errors import DataError
from muco.core.sample import Sample
from muco.core.source import Source
from muco.io.digest import digest_of_states
from muco.io.image_files import ImageFiles
from muco.io.tables import Row, num_rows, rows


class TableSource(Source, ABC):
    """A source whose records are the rows of tables: JSONL, CSV, TSV or Parquet files.

    A subclass writes `tables`, `sample_of` and `image_names_of`, and `columns` where it does not need all
    of them. It may override `__init__`, which then sets `folder` and `images`.
    """

    folder: Path
    """The folder that the tables lie below; `Row.file` is relative to it."""
    images: ImageFiles
    """Where the images of the rows are looked for."""
    limit: int | None = None
    """How many rows of each table are read at most; None for all."""

    def __init__(self, config: Any) -> None:
        """Read `config.path`, a folder or a table, and where the config has them the following.

        `images`: their folder, by default that of the tables; `limit`; `image_decoding`, by default `plain`.
        """
        self.config = config
        path = Path(expanduser(config.path))
        self.folder = path.parent if path.is_file() else path
        self.limit = getattr(config, "limit", None)
        decoding: Any = getattr(config, "image_decoding", "plain")
        self.images = ImageFiles.below(config.images, self.folder, decoding=decoding)

    @abstractmethod
    def tables(self) -> Sequence[Path]:
        """Return the tables in a fixed order; raise DataError with how to get them if there are none."""

    def columns(self) -> Sequence[str] | None:
        """Return the columns to read; None for all."""
        return None

    @abstractmethod
    def sample_of(self, row: Row) -> Sample:
        """Return the sample of a row without `fault`; raise DataError or ValueError if there is none."""

    @abstractmethod
    def image_names_of(self, row: Row) -> Iterable[str]:
        """Yield the names of the images that `sample_of` reads for this row."""

    @cached_property
    def _sizes(self) -> list[int]:
        return [min(num_rows(path), self.limit or 2**62) for path in self.tables()]

    def __len__(self) -> int:
        return sum(self._sizes)

    def records(self, start: int = 0) -> Iterator[Row]:
        for path, size in zip(self.tables(), self._sizes, strict=True):
            if start < size:
                name = path.relative_to(self.folder).as_posix()
                some = islice(rows(path, self.columns(), start=start), size - start)
                yield from (replace(row, file=name) for row in some)
            start = max(0, start - size)

    def sample(self, record: Row) -> Sample:
        try:
            return self.sample_of(record.checked())
        except ValueError as error:
            raise DataError(str(error)) from None

    def name_of(self, record: Row) -> str:
        return record.location

    def files_of(self, record: Row) -> Iterator[tuple[str, int]]:
        yield from ((name, self.images.size(name)) for name in self.image_names(record))

    def image_names(self, record: Row) -> Iterator[str]:
        if not record.fault:
            yield from self.image_names_of(record)

    def revision(self) -> str:
        return f"{revision_of(self.tables())}-{self.images.revision()}"


def revision_of(paths: Iterable[Path]) -> str:
    """Return a hash of the names, sizes and modification times of files."""
    return digest_of_states((path.name, path) for path in paths)


def existing(path: str | Path, *, hint: str) -> Path:
    """Return the path of a file or folder; if it is missing, raise DataError with `hint`, how to get it."""
    expanded = Path(expanduser(path))
    if not (expanded.is_file() or expanded.is_dir()):
        problem = "is no regular file" if expanded.exists() else "does not exist"
        raise DataError(f"{expanded} {problem}. {hint}")
    return expanded
