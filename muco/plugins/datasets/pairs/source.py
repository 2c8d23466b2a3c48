"""Pairs of your own, from rows of JSONL, CSV, TSV or Parquet files."""

from __future__ import annotations

import marshal
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from hashlib import blake2b
from itertools import groupby
from os.path import expanduser
from pathlib import Path, PurePosixPath
from typing import Any

from muco.core.component import ComponentConfig, Feature
from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Pair, Sample
from muco.core.source import Source
from muco.core.video import Visual
from muco.io.columns import ListFrames, PairColumns, frame_list, image_list, pair_from
from muco.io.image_files import ImageFiles
from muco.io.table_source import existing, revision_of
from muco.io.table_text import text_of
from muco.io.tables import SUFFIXES, Row, rows, tables_below

Group = tuple[Row, ...]
"""Rows that make one sample."""


class Pairs(Source):
    """Rows of a query and its target; rows with the same query image become turns of one sample."""

    version = 2

    class Config(ComponentConfig):
        path: str
        """A table, or a folder of tables: JSONL, CSV, TSV or Parquet."""
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
        columns = config.columns
        targets: set[Feature] = {"image_targets"} if columns.target_image or columns.target_video else set()
        videos: set[Feature] = {"video"} if columns.has_videos else set()
        return frozenset(targets | videos)

    def __init__(self, config: Config) -> None:
        self.config = config
        path = Path(expanduser(config.path))
        self.folder = path if path.is_dir() else path.parent
        decoding = config.columns.image_decoding
        self.images = ImageFiles.below(config.images, self.folder, decoding=decoding)

    def tables(self) -> Sequence[Path]:
        path = existing(self.config.path, hint="Name your table, or the folder that holds it.")
        if path.is_file():
            return [path]
        tables, left_out = tables_below(path)
        if not tables:
            others = f". Not read: {', '.join(map(str, left_out[:6]))}" if left_out else ""
            raise DataError(f"{path}: no table below it; tables end in {', '.join(SUFFIXES)}{others}")
        return tables

    def left_out(self) -> Sequence[Path]:
        path = Path(expanduser(self.config.path))
        return tables_below(path)[1] if path.is_dir() else ()

    def __len__(self) -> int:
        (number,) = self._spool.execute("SELECT count(DISTINCT first) FROM rows").fetchone()
        return number

    def records(self, start: int = 0) -> Iterator[Group]:
        if start >= len(self):
            return
        spooled = self._spool.execute(
            "SELECT first, file, number, line, fault, data FROM rows WHERE first >= "
            "(SELECT DISTINCT first FROM rows ORDER BY first LIMIT 1 OFFSET ?) ORDER BY first, position",
            (start,),
        )
        for _, group in groupby(spooled, key=lambda row: row[0]):
            yield tuple(_unpack(*row[1:]) for row in group)

    def sample(self, record: Group) -> Sample:
        pairs = [self._pair(row) for row in record]
        images, _ = pairs[0]
        name = f"{record[0].file}:{record[0].number}"
        return Sample(name, self.config.dataset, images, tuple(pair for _, pair in pairs))

    def _pair(self, row: Row) -> tuple[tuple[Visual, ...], Pair]:
        near, values = _near(row), row.checked().values
        read, list_frames = partial(self._image, near=near), partial(self.images.names_in, near=near)
        return pair_from(self.config.columns, values, read, list_frames)

    def name_of(self, record: Group) -> str:
        return ", ".join(row.location for row in record)

    def files_of(self, record: Group) -> Iterator[tuple[str, int]]:
        for row in record:
            near = _near(row)
            for value in self._images_of(row, partial(self.images.names_in, near=near)):
                if (data := _embedded(value)) is not None:
                    yield blake2b(data, digest_size=16).hexdigest(), len(data)
                else:
                    name = _name(value)
                    yield self.images.location(name, near=near), self.images.size(name, near=near)

    def image_names(self, record: Group) -> Iterator[str]:
        # A folder of frames is not a URL, so its frames need not be listed.
        for row in record:
            for value in self._images_of(row, lambda folder: [folder]):
                if _embedded(value) is None:
                    yield _name(value)

    def _images_of(self, row: Row, list_frames: ListFrames) -> Iterator[Any]:
        columns = self.config.columns
        values = [row.values.get(name) for name in (columns.query_image, columns.target_image) if name]
        if columns.negative_image:
            values += image_list(row.values.get(columns.negative_image))
        for name in (columns.query_video, columns.target_video):
            if name and row.values.get(name):
                values += frame_list(row.values[name], list_frames)
        yield from filter(None, values)

    def revision(self) -> str:
        tables, columns = revision_of(self.tables()), self.config.columns
        has_images = columns.query_image or columns.target_image or columns.negative_image
        return f"{tables}-{self.images.revision()}" if has_images or columns.has_videos else tables

    def _image(self, value: Any, *, near: str) -> EncodedImage:
        data = _embedded(value)
        if data is None:
            return self.images.image(_name(value), near=near)
        return EncodedImage(data).decoded_as(self.images.decoding)

    @cached_property
    def _spool(self) -> sqlite3.Connection:
        """All rows in a database, each with the position of the first row that has its image.

        It is on disk: rows with the same image may be anywhere, and memory may not hold them all.
        """
        spool = sqlite3.connect("")  # a temporary file, deleted when the connection is closed
        spool.execute("PRAGMA synchronous = OFF")
        spool.execute("PRAGMA journal_mode = OFF")
        spool.execute("CREATE TABLE firsts (image BLOB PRIMARY KEY, first INT) WITHOUT ROWID")
        spool.execute(
            "CREATE TABLE rows (first INT, position INT, file TEXT, number INT, line INT, fault TEXT, "
            "data BLOB)"
        )
        used = self.config.columns.used()
        unseen, any_row = set(used), False
        for position, row in enumerate(row for path in self.tables() for row in self._rows(path, used)):
            unseen, any_row = unseen - row.values.keys(), any_row or not row.fault
            first = self._first(spool, row, position)
            values = (first, position, row.file, row.number, row.line, *_pack(row))
            spool.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        if unseen and any_row:
            known = next((", ".join(row.values) for row in rows(self.tables()[0]) if not row.fault), "none")
            missing = ", ".join(sorted(unseen))
            raise DataError(f"{self.config.path}: no row has a column {missing}. Columns: {known}")
        spool.execute("CREATE INDEX by_image ON rows (first, position)")
        spool.commit()
        return spool

    def _rows(self, path: Path, columns: Sequence[str]) -> Iterator[Row]:
        """Yield a table's rows; their file is relative to the folder of the tables, so ids are unique."""
        file = path.relative_to(self.folder).as_posix()
        return (replace(row, file=file) for row in rows(path, columns))

    def _first(self, spool: sqlite3.Connection, row: Row, position: int) -> int:
        """Return the position of the first row with this row's query image, video and seconds per frame.

        A row without image or video, or that makes no pair, is a group of its own, so that skipping it does
        not skip others.
        """
        columns = self.config.columns
        visuals = [row.values.get(name) for name in (columns.query_image, columns.query_video) if name]
        if not (any(visuals) and self.config.group_by_image and _makes_pair(columns, row)):
            return position
        has_video = columns.query_video and row.values.get(columns.query_video)
        seconds = row.values.get(columns.seconds_column) if has_video and columns.seconds_column else None
        key = self._key(visuals, row) + str(seconds or "").encode()
        spool.execute("INSERT OR IGNORE INTO firsts VALUES (?, ?)", (key, position))
        (first,) = spool.execute("SELECT first FROM firsts WHERE image = ?", (key,)).fetchone()
        return first

    def _key(self, visuals: Sequence[Any], row: Row) -> bytes:
        """Return a hash of where a query's image and video are, or of their bytes."""
        digest = blake2b(digest_size=16)
        for value in visuals:
            for part in value if isinstance(value, list) else filter(None, [value]):
                location = _embedded(part) or self._location(_name(part), _near(row)).encode()
                digest.update(blake2b(location, digest_size=16).digest())
            digest.update(b".")
        return digest.digest()

    def _location(self, name: str, near: str) -> str:
        """Return where an image is. Names are enough if all tables are in one folder."""
        if not self._several_folders:
            return name
        try:
            return self.images.location(name, near=near)
        except DataError:
            return f"{near}/{name}"  # missing, or the folder of a video's frames

    @cached_property
    def _several_folders(self) -> bool:
        return len({path.parent for path in self.tables()}) > 1


def _near(row: Row) -> str:
    """Return the folder of a row's table, relative to the folder of the tables."""
    return str(PurePosixPath(row.file).parent)


def _makes_pair(columns: PairColumns, row: Row) -> bool:
    """Return whether a row makes a pair, as far as this is known before its images are read."""

    def unread(value: Any) -> EncodedImage:
        return EncodedImage(_embedded(value) or _name(value).encode())

    try:
        pair_from(columns, row.checked().values, unread, lambda folder: [folder])
    except (DataError, ValueError):
        return False
    return True


def _embedded(value: Any) -> bytes | None:
    """Return an image that is in the table itself: bytes, or a mapping as `datasets` writes it."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def _name(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("path")
    if not isinstance(value, str):
        raise DataError(f"an image is a {type(value).__name__}, not a path, a URL or bytes")
    return text_of(value, "the image's name")


def _pack(row: Row) -> tuple[str, bytes]:
    """Return a row's fault and values for the spool."""
    for name, value in row.values.items():
        try:
            marshal.dumps(value)
        except ValueError:
            return f"{name} is a {type(value).__name__}, or holds what is neither text nor bytes", b""
    return row.fault, marshal.dumps(row.values)


def _unpack(file: str, number: int, line: int, fault: str, data: bytes) -> Row:
    return Row(file, number, marshal.loads(data) if data else {}, fault, line)
