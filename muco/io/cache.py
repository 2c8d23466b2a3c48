"""Files that are written once to the cache folder and used again."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

from muco.io.atomic import atomic_path, write_errors
from muco.io.lock import locked


def cache_folder() -> Path:
    """Return `$MUCO_CACHE`, or the user's cache folder for muco."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("MUCO_CACHE") or user_cache_path("muco"))


def cached_file(name: str, write: Callable[[Path], None]) -> Path:
    """Return the path of the file `name` in the cache folder; write it if it does not exist.

    `write` fills an empty file at a temporary path, which is renamed when it is complete. One process writes,
    others wait. Raise MucoError if the cache folder cannot be written, or is full.
    """
    path = cache_folder() / name
    if path.is_file():
        return path
    with cache_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            if not path.is_file():
                with atomic_path(path) as partial:
                    write(partial)
    return path


def cache_errors(path: Path) -> AbstractContextManager[None]:
    """Raise MucoError if the block cannot write `path`, which is in the cache folder."""
    return write_errors(f"{path}", ". Set $MUCO_CACHE to another folder.")


def cached_database(name: str, fill: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """Return a SQLite file of the cache folder, open for reading; `fill` writes it as in `cached_file`."""

    def write(path: Path) -> None:
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA synchronous = OFF")
            fill(database)
            database.commit()

    path = cached_file(name, write)
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
