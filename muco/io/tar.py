"""List the files of an uncompressed tar, and detect one that is cut short."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from muco.core.errors import DataError


def tar_files(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of the regular files of an uncompressed tar, in order and in bounded memory.

    Raises:
        DataError: the tar is missing, broken or cut short. `tarfile` alone accepts a tar that ends between
            two files.
    """
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (entry := tar.next()) is not None:
                # tarfile keeps every member it has seen.
                tar.members = []  # type: ignore[assignment]
                if entry.isreg() and not entry.issparse():
                    if entry.offset_data + entry.size > length:
                        raise DataError(f"{path} is cut short within {entry.name}")
                    yield entry
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: no plain tar that can be read: {error}") from error
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise DataError(f"{path} is cut short: its end mark is missing")
    if any(block):
        raise DataError(f"{path} is broken: no file and no end mark at byte {end:,}")
