"""The progress of a conversion, so that one that was killed continues and ends with the same files."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from muco.core.errors import DataError
from muco.core.printable import printable
from muco.data.shards.index import Row, Shard

_TABLES = """
CREATE TABLE IF NOT EXISTS about (text TEXT, position INT);
CREATE TABLE IF NOT EXISTS shards (file TEXT, num_bytes INT, num_samples INT, blake2b TEXT);
CREATE TABLE IF NOT EXISTS samples (shard INT, key INTEGER PRIMARY KEY, start INT, size INT);
CREATE TABLE IF NOT EXISTS images (digest BLOB PRIMARY KEY, name TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS skipped (record INTEGER PRIMARY KEY, name TEXT, reason TEXT);
"""
_CLEAR = "DELETE FROM about; DELETE FROM samples; DELETE FROM images; DELETE FROM skipped;"


class Journal:
    """A SQLite file about the closed shards; what is noted of the open one is lost with the process."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_TABLES)
        if not self.shards():
            # Nothing to keep: the command may come again with other settings, or after a repair.
            self._db.executescript(_CLEAR)
        text = json.dumps(metadata, sort_keys=True)
        stored = self._db.execute("SELECT text FROM about").fetchone()
        if stored is None:
            self._db.execute("INSERT INTO about VALUES (?, 0)", (text,))
        elif stored[0] != text:
            raise DataError(
                f"{path.parent} holds another, unfinished conversion: other settings, or the data has "
                "changed. Remove that folder to start over."
            )
        self._db.execute("BEGIN")
        self.num_samples = self._value("SELECT count(*) FROM samples")
        """Samples written, those of the open shard included."""
        self.num_skipped = self._value("SELECT count(*) FROM skipped")
        """Records left out so far."""

    @property
    def position(self) -> int:
        """Number of records whose samples are in closed shards or that were skipped."""
        return self._value("SELECT position FROM about")

    def shards(self) -> list[Shard]:
        """Return the closed shards in order."""
        return [Shard(*row) for row in self._db.execute("SELECT * FROM shards ORDER BY file")]

    def rows(self) -> Iterator[Row]:
        """Yield the row of each sample, in order."""
        yield from self._db.execute("SELECT shard, key, start, size FROM samples ORDER BY key")

    def skipped(self) -> Iterator[tuple[int, str, str]]:
        """Yield index, name and reason of each skipped record, in order."""
        yield from self._db.execute("SELECT record, name, reason FROM skipped ORDER BY record")

    def member_of(self, digest: bytes) -> str | None:
        """Return the member that holds an image, if one does."""
        names = self._db.execute("SELECT name FROM images WHERE digest = ?", (digest,))
        return next((name for (name,) in names), None)

    def add(self, row: Row, images: Mapping[bytes, str]) -> None:
        """Note a sample of the open shard, and the members that its new images are in, by digest."""
        self._db.execute("INSERT INTO samples VALUES (?, ?, ?, ?)", row)
        self._db.executemany("INSERT INTO images VALUES (?, ?)", images.items())
        self.num_samples += 1

    def skip(self, record: int, name: str, reason: str) -> None:
        """Note a record that is left out."""
        values = (record, printable(name), printable(reason))  # SQLite refuses lone surrogates
        self._db.execute("INSERT INTO skipped VALUES (?, ?, ?)", values)
        self.num_skipped += 1

    def close_shard(self, shard: Shard | None, position: int) -> None:
        """Commit everything so far; call it when the shard is on the disk."""
        if shard is not None:
            self._db.execute("INSERT INTO shards VALUES (?, ?, ?, ?)", (*vars(shard).values(),))
        self._db.execute("UPDATE about SET position = ?", (position,))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def close(self) -> None:
        """Drop what was noted after the last commit."""
        self._db.close()

    def _value(self, query: str) -> int:
        return self._db.execute(query).fetchone()[0]
