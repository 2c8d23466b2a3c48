"""What a conversion has done so far, so that a killed one goes on and ends with the same files."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muco.core.errors import DataError
from muco.data.shards.index import Shard

_TABLES = """
CREATE TABLE IF NOT EXISTS about (text TEXT, position INT);
CREATE TABLE IF NOT EXISTS shards (file TEXT, num_bytes INT, num_samples INT, blake2b TEXT);
CREATE TABLE IF NOT EXISTS samples (shard INT, key INTEGER PRIMARY KEY, start INT, size INT);
CREATE TABLE IF NOT EXISTS images (digest BLOB PRIMARY KEY, name TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS skipped (record INTEGER PRIMARY KEY, name TEXT, reason TEXT);
"""


class Journal:
    """A file of what lies in the shards that are closed; what came after is forgotten with the process."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_TABLES)
        text = json.dumps(about, sort_keys=True)
        found = self._db.execute("SELECT text FROM about").fetchone()
        if found is None:
            self._db.execute("INSERT INTO about VALUES (?, 0)", (text,))
        elif found[0] != text:
            raise DataError(
                f"{path.parent} holds another conversion, unfinished: other settings, or the data changed. "
                "Remove that folder to start over."
            )
        self._db.execute("BEGIN")
        self.num_samples = self._one("SELECT count(*) FROM samples")
        """Samples written, those of the open shard included."""
        self.num_skipped = self._one("SELECT count(*) FROM skipped")
        """Records left out so far."""

    @property
    def position(self) -> int:
        """Records that the closed shards and what was left out account for."""
        return self._one("SELECT position FROM about")

    def shards(self) -> list[Shard]:
        """Return the closed shards in their order."""
        return [Shard(*row) for row in self._db.execute("SELECT * FROM shards ORDER BY file")]

    def rows(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield shard, key, offset and size of each sample, in order."""
        yield from self._db.execute("SELECT shard, key, start, size FROM samples ORDER BY key")

    def skipped(self) -> Iterator[tuple[int, str, str]]:
        """Yield number, name and reason of each record left out, in order."""
        yield from self._db.execute("SELECT record, name, reason FROM skipped ORDER BY record")

    def holder(self, digest: bytes, name: str) -> str:
        """Return the member that holds an image: an earlier one, or `name` from now on."""
        found = self._db.execute("SELECT name FROM images WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            self._db.execute("INSERT INTO images VALUES (?, ?)", (digest, name))
        return found[0] if found else name

    def add(self, shard: int, key: int, start: int, size: int) -> None:
        """Note a sample of the open shard."""
        self._db.execute("INSERT INTO samples VALUES (?, ?, ?, ?)", (shard, key, start, size))
        self.num_samples += 1

    def skip(self, record: int, name: str, reason: str) -> None:
        """Note a record that is left out."""
        self._db.execute("INSERT INTO skipped VALUES (?, ?, ?)", (record, name, reason))
        self.num_skipped += 1

    def close_shard(self, shard: Shard | None, position: int) -> None:
        """Make all of it lasting, once the shard itself is."""
        if shard is not None:
            values = (shard.file, shard.num_bytes, shard.num_samples, shard.blake2b)
            self._db.execute("INSERT INTO shards VALUES (?, ?, ?, ?)", values)
        self._db.execute("UPDATE about SET position = ?", (position,))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def close(self) -> None:
        """Forget what came after the last closed shard."""
        self._db.close()

    def _one(self, query: str) -> int:
        return self._db.execute(query).fetchone()[0]
