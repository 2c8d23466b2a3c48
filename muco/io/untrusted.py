"""Files and JSON of any origin; only regular files are opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from muco.core.errors import DataError


def read_file(path: Path) -> bytes:
    """Return the bytes of a file; raise ValueError if the path has a null character.

    Raise OSError if it is missing, cannot be read, or is no regular file: a named pipe would be waited for.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file")
    return path.read_bytes()


def refuse_special_files(folder: Path) -> None:
    """Raise DataError if a named pipe or a device is in a folder: a library that opens it may wait."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"{path} is no regular file; remove it")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raise ValueError if it is none, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
