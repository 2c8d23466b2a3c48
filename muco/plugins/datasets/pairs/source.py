"""Pairs of your own, from rows of JSONL, CSV, TSV, Parquet or Arrow files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muco.core.component import ComponentConfig, Feature
from muco.core.sample import Sample
from muco.core.source import Source
from muco.io.columns import PairColumns
from muco.plugins.datasets.pairs.table import Group, PairTable


class Pairs(Source):
    """Rows of a query and its target; rows with the same query image become turns of one sample."""

    version = 2

    class Config(ComponentConfig):
        path: str
        """A table, or a folder of tables: JSONL, CSV, TSV, Parquet or Arrow, as `datasets` saves them."""
        columns: PairColumns
        """The column of each part of a pair."""
        images: str | None = None
        """The folder of the images, as files or in zip and tar archives; by default that of the tables. Of
        several images of one name, the one nearest the folder of the row's table is taken."""
        group_by_image: bool = True
        """Rows with the same query image, or video with the same seconds per frame, become turns of one
        sample, wherever they are in the tables."""
        dataset: str = "pairs"
        """Name of the data set in the samples."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        return config.columns.needs()

    def __init__(self, config: Config) -> None:
        self.config = config
        self._table = PairTable(
            config.path, config.columns, config.images, group_by_image=config.group_by_image
        )
        self.folder, self.images = self._table.folder, self._table.images

    def tables(self) -> Sequence[Path]:
        return self._table.tables()

    def left_out(self) -> Sequence[Path]:
        return self._table.left_out()

    def __len__(self) -> int:
        return self._table.num_groups()

    def records(self, start: int = 0) -> Iterator[Group]:
        return self._table.groups(start)

    def sample(self, record: Group) -> Sample:
        pairs = [self._table.pair(row) for row in record]
        images, _ = pairs[0]
        name = f"{record[0].file}:{record[0].number}"
        return Sample(name, self.config.dataset, images, tuple(pair for _, pair in pairs))

    def name_of(self, record: Group) -> str:
        return ", ".join(row.location for row in record)

    def files_of(self, record: Group) -> Iterator[tuple[str, int]]:
        for row in record:
            yield from self._table.files_of(row)

    def image_names(self, record: Group) -> Iterator[str]:
        for row in record:
            yield from self._table.image_names(row)

    def revision(self) -> str:
        return self._table.revision()
