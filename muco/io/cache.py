"""Files that are made once and kept in the cache folder."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from muco.core.errors import MucoError
from muco.io.lock import alone


def cache_folder() -> Path:
    """Return `$MUCO_CACHE`, or the user's cache folder for muco."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("MUCO_CACHE") or user_cache_path("muco"))


def cached_file(name: str, write: Callable[[Path], None]) -> Path:
    """Return a file of the cache folder, written now unless it was before; other processes wait for it.

    Args:
        name: of the file, below the folder.
        write: makes it at another path; moved to its own when it is whole.

    Raises:
        MucoError: the cache folder cannot be written, or is full.
    """
    place = cache_folder() / name
    if place.is_file():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with alone(place.with_suffix(".lock")):
            if not place.is_file():
                _write(place, write)
    except (OSError, sqlite3.Error) as error:
        raise MucoError(f"{place} cannot be written: {error}. Set $MUCO_CACHE to another folder.") from error
    return place


def cached_database(name: str, write: Callable[[Path], None]) -> sqlite3.Connection:
    """Return the SQLite file that `kept` keeps, open for reading."""
    place = cached_file(name, write)
    return sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _write(place: Path, write: Callable[[Path], None]) -> None:
    beside = place.with_suffix(".partial")
    beside.unlink(missing_ok=True)  # of a process that was killed
    try:
        write(beside)
        beside.rename(place)
    finally:
        beside.unlink(missing_ok=True)
