"""Locks between processes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock file `path`; other threads and processes of this machine wait.

    The system frees the lock of a process that dies. The file is removed at the end.
    """
    with FileLock(path, poll_interval=0.02):
        try:
            yield
        finally:
            # Removed while it is held: a process that waits sees that its file is gone and opens a new one.
            # Windows refuses to remove an open file, which then stays.
            with suppress(OSError):
                path.unlink()
