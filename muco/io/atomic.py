"""Files and folders that are written whole or not at all.

Each write goes to a new entry of the same folder under a random name, is flushed to the disk and renamed: a
reader sees the old content or the new one. Symbolic links are never written through: a link at the path is
replaced by the file. `open_append` is for files that grow; it refuses links. A process that is killed leaves
`.NAME.HOST-PID-RANDOM.partial` behind; the next write into the folder removes it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from muco.core.errors import DataError, MucoError

_PARTIAL = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{32}\.partial(-.+)?", re.DOTALL)
"""Host, process id; the last group is what a library adds to the name, `-journal` of SQLite."""
_OTHER_HOST_SECONDS = 24 * 3600
_CLOCK_SKEW_SECONDS = 60


def write_text(path: Path, text: str, *, inside: Path | None = None) -> None:
    """Replace a file by UTF-8 text; see `atomic_path`."""
    write_bytes(path, text.encode(), inside=inside)


def write_bytes(path: Path, data: bytes, *, inside: Path | None = None) -> None:
    """Replace a file by these bytes; see `atomic_path`."""
    with atomic_file(path, inside=inside) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path, *, inside: Path | None = None) -> Generator[BinaryIO]:
    """Yield a binary file that replaces `path` when the block ends without an error; see `atomic_path`."""
    with atomic_path(path, inside=inside) as partial, open(partial, "wb") as file:
        yield file


@contextmanager
def atomic_path(path: Path, *, inside: Path | None = None) -> Generator[Path]:
    """Yield the path of an empty file that replaces `path` when the block ends without an error.

    Parent folders are made. Raise DataError if a folder between `inside`, a folder above, and the file is a
    symbolic link, OSError if the disk is full or not writable.
    """
    partial = _partial(path, inside)
    try:
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that only their owner reads
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False, inside: Path | None = None) -> Generator[Path]:
    """Yield an empty folder that is renamed to `path` when the block ends without an error.

    `replace` removes what is at `path` first; else it must not exist, or be empty. Else as `atomic_path`.
    """
    partial = _partial(path, inside)
    try:
        partial.mkdir()
        mode = partial.stat().st_mode & 0o666
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(mode)  # see `atomic_path`
            _sync(file)
        if replace:
            remove_folder(path)
        os.rename(partial, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def write_errors(what: str, remedy: str = "") -> Generator[None]:
    """Raise MucoError if the block cannot write `what`: the disk is full, or a file is in the way."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise MucoError(f"{what} cannot be written: {error}{remedy}") from error


def remove_folder(path: Path) -> None:
    """Rename a folder, then remove it: nobody sees half of it. A link is removed, not what it leads to."""
    partial = _partial(path, None)
    with suppress(FileNotFoundError):
        os.rename(path, partial)
        _remove(partial)


def open_append(path: Path, *, inside: Path | None = None) -> BinaryIO:
    """Open a file for appending, made with its folders; raise DataError for a link or a special file."""
    if inside is not None:
        refuse_links(path.parent, inside)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise DataError(
            f"{path} is a symbolic link or no regular file; nothing is written through it. Remove it."
        )
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    return open(path, "ab", opener=lambda name, _flags: os.open(name, flags, 0o666))


def _partial(path: Path, inside: Path | None) -> Path:
    """Make the parent folder, remove leftovers there, and return a name that is free."""
    if inside is not None:
        refuse_links(path.parent, inside)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{uuid4().hex}.partial")


def refuse_links(folder: Path, inside: Path) -> None:
    """Raise DataError if `folder`, or a folder between it and `inside`, is a symbolic link."""
    while folder != inside:
        if folder.is_symlink():
            raise DataError(
                f"{folder} is a symbolic link. Nothing is written through links inside {inside}; "
                "remove the link or replace it by a folder."
            )
        assert folder != folder.parent, f"{folder} is not inside {inside}"
        folder = folder.parent


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder; each write into the folder does so too."""
    for path in folder.iterdir():
        match = _PARTIAL.fullmatch(path.name)
        if match and _is_abandoned(path, match[1], int(match[2])):
            _remove(path)


def _is_abandoned(path: Path, host: str, pid: int) -> bool:
    """Return whether the process that wrote it has ended; a day is waited for processes of other hosts."""
    import psutil

    try:
        changed = path.lstat().st_ctime  # a copy may have been given an old st_mtime
        if host != _host():
            return time.time() - changed > _OTHER_HOST_SECONDS
        return psutil.Process(pid).create_time() > changed + _CLOCK_SKEW_SECONDS
    except psutil.NoSuchProcess:
        return True
    except (OSError, psutil.Error, OverflowError):
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _host() -> str:
    return blake2b(platform.node().encode(), digest_size=4).hexdigest()


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
