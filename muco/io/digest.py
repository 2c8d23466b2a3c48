"""Digests of files, by their bytes or by their sizes and times."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path


def digest_of(path: Path) -> str:
    """Return the hex digest of a file's bytes: blake2b, 16 bytes."""
    with open(path, "rb") as file:
        return file_digest(file, partial(blake2b, digest_size=16)).hexdigest()


def digest_of_states(files: Iterable[tuple[str | Path, Path]]) -> str:
    """Return a hash of the size and the modification time of files, and of a name for each."""
    digest = blake2b(digest_size=8)
    for name, path in files:
        stat = path.stat()
        digest.update(os.fsencode(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))
    return digest.hexdigest()
