"""Pairs of one's own: rows of JSONL, CSV, TSV or Parquet files."""

from __future__ import annotations

import marshal
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Sample
from muco.core.source import Source
from muco.io.columns import Frames, PairColumns, frames_listed, images_listed, pair_from
from muco.io.image_files import ImageFiles
from muco.io.table_text import text_of
from muco.io.tables import SUFFIXES, Row, rows
from muco.plugins.datasets.table_source import existing, revision_of


@dataclass(frozen=True)
class Group:
    """Rows that make one sample."""

    rows: tuple[Row, ...]


class Pairs(Source):
    """Rows of a query and its target; rows with the same query image become turns of one sample."""

    class Config(ComponentConfig):
        path: str
        """A table, or a folder of tables: JSONL, CSV, TSV or Parquet."""
        columns: PairColumns
        """Which columns hold what."""
        images: str | None = None
        """Where the images lie, as files or in zip and tar archives; by default beside the tables."""
        group_by_image: bool = True
        """Rows with the same query image, and video at the same pace, become turns of one sample,
        wherever they stand."""
        dataset: str = "pairs"
        """What the samples' data set is called."""

    @classmethod
    def needs(cls, config: Any) -> frozenset[Feature]:
        columns = config.columns
        targets: set[Feature] = {"image_targets"} if columns.target_image or columns.target_video else set()
        videos: set[Feature] = {"video"} if columns.has_videos else set()
        return frozenset(targets | videos)

    def __init__(self, config: Config) -> None:
        self.config = config
        path = Path(config.path).expanduser()
        self.folder = path if path.is_dir() else path.parent
        self.images = ImageFiles([Path(config.images).expanduser() if config.images else self.folder])

    def tables(self) -> Sequence[Path]:
        path = existing(self.config.path, what="Name your table, or the folder that it lies in.")
        if path.is_file():
            return [path]
        found = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES)
        if not found:
            raise DataError(f"{path}: no table below it; tables end in {', '.join(SUFFIXES)}")
        return found

    def __len__(self) -> int:
        (number,) = self._spool.execute("SELECT count(DISTINCT first) FROM rows").fetchone()
        return number

    def records(self, start: int = 0) -> Iterator[Group]:
        if start >= len(self):
            return
        found = self._spool.execute(
            "SELECT first, file, number, fault, data FROM rows WHERE first >= "
            "(SELECT DISTINCT first FROM rows ORDER BY first LIMIT 1 OFFSET ?) ORDER BY first, place",
            (start,),
        )
        for _, group in groupby(found, key=lambda row: row[0]):
            yield Group(tuple(_unpacked(*row[1:]) for row in group))

    def sample(self, record: Group) -> Sample:
        made = [
            pair_from(self.config.columns, row.faultless.values, self._image, self.images.names_in)
            for row in record.rows
        ]
        images = made[0][0]
        first = record.rows[0]
        name = f"{first.file}:{first.number}"
        return Sample(name, self.config.dataset, images, tuple(pair for _, pair in made))

    def name_of(self, record: Group) -> str:
        return ", ".join(row.place for row in record.rows)

    def files_of(self, record: Group) -> Iterator[tuple[str, int]]:
        for value in self._images_of(record, self.images.names_in):
            data = _embedded(value)
            if data is not None:
                yield blake2b(data, digest_size=16).hexdigest(), len(data)
            else:
                yield _name(value), self.images.size(_name(value))

    def image_names(self, record: Group) -> Iterator[str]:
        # A folder of frames is no URL: it stands for its frames.
        for value in self._images_of(record, lambda folder: [folder]):
            if _embedded(value) is None:
                yield _name(value)

    def _images_of(self, record: Group, frames: Frames) -> Iterator[Any]:
        columns = self.config.columns
        for row in record.rows:
            sides = (columns.query_image, columns.target_image)
            named = [row.values.get(column) for column in sides if column]
            if columns.negative_image:
                named += images_listed(row.values.get(columns.negative_image))
            for column in (columns.query_video, columns.target_video):
                if column and row.values.get(column):
                    named += frames_listed(row.values[column], frames)
            yield from filter(None, named)

    def revision(self) -> str:
        return revision_of(self.tables())

    def _image(self, value: Any) -> EncodedImage:
        data = _embedded(value)
        return EncodedImage(data) if data is not None else self.images.image(_name(value))

    @cached_property
    def _spool(self) -> sqlite3.Connection:
        """Return all rows, each with the number of the first row that shows its image.

        On disk: rows of one image may stand anywhere, and there may be more than memory holds.
        """
        spool = sqlite3.connect("")  # a file of its own that is gone with the connection
        spool.execute("PRAGMA synchronous = OFF")
        spool.execute("PRAGMA journal_mode = OFF")
        spool.execute("CREATE TABLE firsts (image BLOB PRIMARY KEY, first INT) WITHOUT ROWID")
        spool.execute(
            "CREATE TABLE rows (first INT, place INT, file TEXT, number INT, fault TEXT, data BLOB)"
        )
        for place, row in enumerate(self._rows()):
            line = (self._first(spool, row, place), place, row.file, row.number, *_packed(row))
            spool.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", line)
        spool.execute("CREATE INDEX by_image ON rows (first, place)")
        spool.commit()
        return spool

    def _rows(self) -> Iterator[Row]:
        used = self.config.columns.used()
        for path in self.tables():
            yield from rows(path, used)

    def _first(self, spool: sqlite3.Connection, row: Row, place: int) -> int:
        """Return the place of the first row with this row's query image and video, at its pace.

        A row without either, or that makes no pair, stands alone: it is left out without the others.
        """
        columns = self.config.columns
        shown = [row.values.get(column) for column in (columns.query_image, columns.query_video) if column]
        if not (any(shown) and self.config.group_by_image and _makes_pair(columns, row)):
            return place
        has_video = columns.query_video and row.values.get(columns.query_video)
        pace = row.values.get(columns.seconds_column) if has_video and columns.seconds_column else None
        key = _key(shown) + str(pace or "").encode()
        spool.execute("INSERT OR IGNORE INTO firsts VALUES (?, ?)", (key, place))
        (first,) = spool.execute("SELECT first FROM firsts WHERE image = ?", (key,)).fetchone()
        return first


def _makes_pair(columns: PairColumns, row: Row) -> bool:
    """Say whether a row makes a pair, as far as can be told without its images."""

    def unread(value: Any) -> EncodedImage:
        return EncodedImage(_embedded(value) or _name(value).encode())

    try:
        pair_from(columns, row.faultless.values, unread, lambda folder: [folder])
    except (DataError, ValueError):
        return False
    return True


def _key(shown: Sequence[Any]) -> bytes:
    """Return what tells a query's image and video from others."""
    digest = blake2b(digest_size=16)
    for value in shown:
        parts = value if isinstance(value, list) else [value]
        for part in parts if value else []:
            digest.update(blake2b(_embedded(part) or _name(part).encode(), digest_size=16).digest())
        digest.update(b".")
    return digest.digest()


def _embedded(value: Any) -> bytes | None:
    """Return an image that lies in the table itself: bytes, or as `datasets` writes it."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def _name(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("path")
    if not isinstance(value, str):
        raise DataError(f"a {type(value).__name__} stands where an image belongs: its path, URL or bytes")
    return text_of(value, "the image's name")


def _packed(row: Row) -> tuple[str, bytes]:
    """Return what is wrong with a row, if anything, and its values as the spool keeps them."""
    for name, value in row.values.items():
        try:
            marshal.dumps(value)
        except ValueError:
            return f"{name} is a {type(value).__name__}, or holds what is neither text nor bytes", b""
    return row.fault, marshal.dumps(row.values)


def _unpacked(file: str, number: int, fault: str, packed: bytes) -> Row:
    return Row(file, number, marshal.loads(packed) if packed else {}, fault)
