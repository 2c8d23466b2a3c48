"""List the files of an uncompressed tar, and detect one that is cut short."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from muco.core.errors import DataError

_MAX_HEADER_BYTES = 2**20
"""Longer names and PAX headers are refused; `tarfile` reads one of any size into memory."""


def tar_files(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of files of an uncompressed tar, in order and in bounded memory.

    Links and sparse files are among them: `is_plain_file` says which have their content in the tar. Files
    that only macOS uses are left out. Raise DataError if the tar is missing, broken or cut short.
    """
    if not path.is_file():
        raise DataError(f"{path}: no regular file")
    with _HeaderFile(path) as file:
        yield from _entries(file, path.stat().st_size, str(path), f"{path}: no plain tar that can be read")
        end = file.tell()
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise DataError(f"{path} is cut short: its end mark is missing")
    if any(block):
        raise DataError(f"{path} is broken: no file and no end mark at byte {end:,}")


def tar_contents(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files in a sample's tar entries; raise DataError if they are broken."""
    file = io.BytesIO(data)
    unreadable = f"no tar entries where the index has {name!r}"
    for entry in _entries(file, len(data), "the sample", unreadable):
        if not is_plain_file(entry):
            raise DataError(f"{entry.name} is no plain file; index the tars again")
        yield entry.name, data[entry.offset_data : entry.offset_data + entry.size]
    if file.tell() != len(data):
        raise DataError(f"{unreadable}: an invalid header at byte {file.tell():,}")


def _entries(file: BinaryIO, num_bytes: int, name: str, unreadable: str) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of files, and leave the file where the last one ends.

    `tarfile` alone accepts a tar that ends between two files, or with a broken header.
    """
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (entry := tar.next()) is not None:
                # tarfile keeps every member it has seen.
                tar.members = []  # type: ignore[assignment]
                if entry.size < 0 or tar.offset <= end:
                    raise DataError(f"{name} is broken: {entry.name} has a negative size")
                end = tar.offset
                if is_plain_file(entry) and entry.offset_data + entry.size > num_bytes:
                    raise DataError(f"{name} is cut short within {entry.name}")
                if (entry.isreg() or entry.issym() or entry.islnk()) and not is_macos_file(entry.name):
                    yield entry
            file.seek(tar.offset)
    except DataError:
        raise
    except Exception as error:
        # tarfile raises many kinds on broken headers, RecursionError and IndexError among them.
        raise DataError(f"{unreadable}: {error}") from error


def is_plain_file(entry: tarfile.TarInfo) -> bool:
    """Return whether the entry is a file with its content in the tar, not a link or a sparse file."""
    return entry.isreg() and not entry.issparse()


def is_macos_file(name: str) -> bool:
    """Return whether only macOS uses the file: `__MACOSX/photo.jpg`, `._photo.jpg`, `.DS_Store`."""
    path = PurePosixPath(name)
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name == ".DS_Store"


class _HeaderFile(io.FileIO):
    """A file of which only headers are read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""
