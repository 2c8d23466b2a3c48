"""Locks between processes."""

from __future__ import annotations

import os
import platform
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from muco.core.errors import MucoError


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Generator[None]:
    """Hold the lock file `path`, which names this host and process id, and is removed at the end.

    The system frees the lock of a process that dies. Raise MucoError if another thread or process of this
    machine holds it and `wait` is false, OSError if the file cannot be made.
    """
    lock = FileLock(path, timeout=-1 if wait else 0, poll_interval=0.02)
    try:
        lock.acquire()
    except Timeout:
        holder = ""
        with suppress(OSError, UnicodeDecodeError):
            holder = path.read_text(encoding="utf-8").strip()[:200]
        raise MucoError(f"{path} is held by {holder or 'another process'}") from None
    try:
        path.write_text(f"host {platform.node()}, process {os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        # Removed while it is held: a process that waits sees that its file is gone and opens a new one.
        # Windows refuses to remove an open file, which then stays.
        with suppress(OSError):
            path.unlink()
        lock.release()
