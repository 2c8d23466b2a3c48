"""Rows of pairs in JSONL, CSV, TSV, Parquet or Arrow files: read by the source and by the suite."""

from __future__ import annotations

import marshal
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from hashlib import blake2b
from itertools import groupby
from os.path import expanduser
from pathlib import Path, PurePosixPath
from typing import Any

from muco.core.errors import DataError
from muco.core.image import EncodedImage
from muco.core.sample import Pair
from muco.core.video import Visual
from muco.io.columns import (
    ListFrames,
    PairColumns,
    embedded_image,
    frame_list,
    has_image,
    image_list,
    image_name,
    pair_from,
)
from muco.io.image_files import ImageFiles
from muco.io.table_source import existing, revision_of
from muco.io.tables import SUFFIXES, Row, rows, tables_below

Group = tuple[Row, ...]
"""Rows that make one sample."""

ImagesAndPair = tuple[tuple[Visual, ...], Pair]
"""The query's images and the pair of a row."""


class PairTable:
    """A table, or all tables in a folder, whose rows are pairs."""

    def __init__(
        self, path: str, columns: PairColumns, images: str | None, *, group_by_image: bool = False
    ) -> None:
        """Take a table or a folder of tables, and the folder of the images; nothing is opened yet."""
        self.path = Path(expanduser(path))
        self.columns = columns
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self.images = ImageFiles.below(images, self.folder, decoding=columns.image_decoding)
        self.group_by_image = group_by_image

    def tables(self) -> Sequence[Path]:
        """Return the tables in a fixed order; raise DataError if there are none."""
        path = existing(self.path, hint="Name your table, or the folder that holds it.")
        if path.is_file():
            return [path]
        tables, left_out = tables_below(path)
        if not tables:
            others = f". Not read: {', '.join(map(str, left_out[:6]))}" if left_out else ""
            raise DataError(f"{path}: no table below it; tables end in {', '.join(SUFFIXES)}{others}")
        return tables

    def left_out(self) -> Sequence[Path]:
        """Return the files of the folder that may be tables but are not read."""
        return tables_below(self.path)[1] if self.path.is_dir() else ()

    def num_groups(self) -> int:
        """Return the number of groups: rows, or with `group_by_image` distinct query images."""
        (number,) = self._spool.execute("SELECT count(DISTINCT first) FROM rows").fetchone()
        return number

    def groups(self, start: int = 0) -> Iterator[Group]:
        """Yield the groups from number `start` on, in the order of their first rows."""
        if start >= self.num_groups():
            return
        spooled = self._spool.execute(
            "SELECT first, file, number, line, fault, data FROM rows WHERE first >= "
            "(SELECT DISTINCT first FROM rows ORDER BY first LIMIT 1 OFFSET ?) ORDER BY first, position",
            (start,),
        )
        for _, group in groupby(spooled, key=lambda row: row[0]):
            yield tuple(_unpack(*row[1:]) for row in group)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield position and row of each, in the order of the tables."""
        query = "SELECT position, file, number, line, fault, data FROM rows ORDER BY position"
        for position, *row in self._spool.execute(query):
            yield position, _unpack(*row)

    def row(self, position: int) -> Row:
        """Return the row at a position."""
        query = "SELECT file, number, line, fault, data FROM rows WHERE position = ?"
        return _unpack(*self._spool.execute(query, (position,)).fetchone())

    def pair(self, row: Row) -> ImagesAndPair:
        """Return a row's pair; raise DataError if it has none, or an image is missing or broken."""
        near, values = _near(row), row.checked().values
        read, list_frames = partial(self._image, near=near), partial(self.images.names_in, near=near)
        return pair_from(self.columns, values, read, list_frames)

    def outline(self, row: Row) -> ImagesAndPair:
        """Return a row's pair with a hash in place of each image, equal for equal places or bytes.

        No image is read. Raise DataError if the row has no pair.
        """

        def unread(value: Any) -> EncodedImage:
            data = embedded_image(value) or self._location(image_name(value), _near(row)).encode()
            return EncodedImage(blake2b(data, digest_size=16).digest())

        return pair_from(self.columns, row.checked().values, unread, lambda folder: [folder])

    def files_of(self, row: Row) -> Iterator[tuple[str, int]]:
        """Yield place and size in bytes of each image of a row; raise DataError if one is missing."""
        near = _near(row)
        for value in self._images_of(row, partial(self.images.names_in, near=near)):
            if (data := embedded_image(value)) is not None:
                yield blake2b(data, digest_size=16).hexdigest(), len(data)
            else:
                name = image_name(value)
                yield self.images.location(name, near=near), self.images.size(name, near=near)

    def image_names(self, row: Row) -> Iterator[str]:
        """Yield the names of a row's images; a folder of frames is not listed, because it is no URL."""
        for value in self._images_of(row, lambda folder: [folder]):
            if embedded_image(value) is None:
                yield image_name(value)

    def _images_of(self, row: Row, list_frames: ListFrames) -> Iterator[Any]:
        columns = self.columns
        values = [row.values.get(name) for name in (columns.query_image, columns.target_image) if name]
        if columns.negative_image:
            values += image_list(row.values.get(columns.negative_image))
        for name in (columns.query_video, columns.target_video):
            if name and row.values.get(name):
                values += frame_list(row.values[name], list_frames)
        yield from filter(has_image, values)

    def revision(self) -> str:
        """Return a hash of names, sizes and times of the tables, and of the images if there are any."""
        tables, columns = revision_of(self.tables()), self.columns
        has_images = columns.query_image or columns.target_image or columns.negative_image
        return f"{tables}-{self.images.revision()}" if has_images or columns.has_videos else tables

    def _image(self, value: Any, *, near: str) -> EncodedImage:
        data = embedded_image(value)
        if data is None:
            return self.images.image(image_name(value), near=near)
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
            "CREATE TABLE rows (first INT, position INTEGER PRIMARY KEY, file TEXT, number INT, line INT, "
            "fault TEXT, data BLOB)"
        )
        used = self.columns.used()
        unseen, any_row = set(used), False
        for position, row in enumerate(row for path in self.tables() for row in self._rows(path, used)):
            unseen, any_row = unseen - row.values.keys(), any_row or not row.fault
            first = self._first(spool, row, position)
            values = (first, position, row.file, row.number, row.line, *_pack(row))
            spool.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        if unseen and any_row:
            known = next((", ".join(row.values) for row in rows(self.tables()[0]) if not row.fault), "none")
            missing = ", ".join(sorted(unseen))
            raise DataError(f"{self.path}: no row has a column {missing}. Columns: {known}")
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
        columns = self.columns
        visuals = [row.values.get(name) for name in (columns.query_image, columns.query_video) if name]
        if not (any(map(has_image, visuals)) and self.group_by_image and self._makes_pair(row)):
            return position
        has_video = columns.query_video and row.values.get(columns.query_video)
        seconds = row.values.get(columns.seconds_column) if has_video and columns.seconds_column else None
        key = self._key(visuals, row) + str(seconds or "").encode()
        spool.execute("INSERT OR IGNORE INTO firsts VALUES (?, ?)", (key, position))
        (first,) = spool.execute("SELECT first FROM firsts WHERE image = ?", (key,)).fetchone()
        return first

    def _makes_pair(self, row: Row) -> bool:
        """Return whether a row makes a pair, as far as this is known before its images are read."""
        try:
            self.outline(row)
        except (DataError, ValueError):
            return False
        return True

    def _key(self, visuals: Sequence[Any], row: Row) -> bytes:
        """Return a hash of where a query's image and video are, or of their bytes."""
        digest = blake2b(digest_size=16)
        for value in visuals:
            for part in value if isinstance(value, list) else filter(has_image, [value]):
                location = embedded_image(part) or self._location(image_name(part), _near(row)).encode()
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
