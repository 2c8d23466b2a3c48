"""The names and captions of a run, in a temporary file: memory may not hold those of all images."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from muco.core.errors import MucoError


class Spool:
    """Texts by name, in a temporary file that is deleted when it is closed."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(
            "PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; PRAGMA cache_size = -16000; -- KiB\n"
            "CREATE TABLE texts (name TEXT UNIQUE, text TEXT); BEGIN"
        )

    def add(self, name: str, text: str = "") -> bool:
        """Add a text, or return False if the name has one; raise MucoError if the disk is full."""
        with _errors():
            return self._db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (name, text)).rowcount == 1

    def get(self, name: str) -> str | None:
        """Return the text of a name; None if it has none."""
        row = self._db.execute("SELECT text FROM texts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def any_name(self) -> str | None:
        """Return one of the names; None if there is none."""
        row = self._db.execute("SELECT name FROM texts LIMIT 1").fetchone()
        return row[0] if row else None

    def close(self) -> None:
        """Delete the file."""
        self._db.close()


@contextmanager
def _errors() -> Generator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        message = f"the temporary folder cannot be written: {error}. Set $TMPDIR to another folder"
        raise MucoError(message) from None
