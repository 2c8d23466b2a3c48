"""Every answer of the server, on the disk as soon as it arrives: none is asked or paid for twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

from muco.core.errors import MucoError
from muco.core.printable import printable
from muco.generate.requests import Answer

_TABLES = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, text TEXT, refusal TEXT, finish TEXT,
    prompt_tokens INT, completion_tokens INT, retries INT
);
CREATE TABLE IF NOT EXISTS failures (key BLOB PRIMARY KEY, reason TEXT);
DELETE FROM failures; -- they are asked again
"""


class Journal:
    """A SQLite file of answers, by the hash of their request; a killed process loses open requests only."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Generator[Journal]:
        """Open a journal, made if it is not there.

        Raise MucoError if another process has it open, it is damaged, or the disk is full or not writable.
        """
        try:
            _make_folder(path.parent)
            db = sqlite3.connect(path, isolation_level=None, timeout=0)
            try:
                db.executescript(_TABLES)
                yield cls(db)
            finally:
                db.close()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise MucoError(f"{path}: another process writes this table") from None
            raise MucoError(f"{path}: cannot be written: {error}") from None
        except sqlite3.DatabaseError as error:
            raise MucoError(
                f"{path}: damaged ({error}). Move it and its table away to ask for everything again."
            ) from None

    def is_empty(self) -> bool:
        """Return whether there is no answer at all."""
        return self._db.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is None

    def answer(self, key: bytes) -> Answer | None:
        """Return the answer of a request; None if there is none yet."""
        query = "SELECT text, refusal, finish, prompt_tokens, completion_tokens, retries FROM answers"
        row = self._db.execute(f"{query} WHERE key = ?", (key,)).fetchone()
        return Answer(*row) if row else None

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer; it is on the disk when this returns."""
        self._db.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", (key, *astuple(answer))
        )

    def failure(self, key: bytes) -> str | None:
        """Return why a request of this call has no answer."""
        row = self._db.execute("SELECT reason FROM failures WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def fail(self, key: bytes, reason: str) -> None:
        """Note why a request has no answer; the next call asks it again."""
        self._db.execute("INSERT OR REPLACE INTO failures VALUES (?, ?)", (key, printable(reason)))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MucoError(f"{folder}: no folder can be made there: {error.strerror}") from None
