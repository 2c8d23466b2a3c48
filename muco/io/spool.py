"""A temporary file of byte strings, for images that tables hold: memory need not hold them all."""

from __future__ import annotations

import os
import weakref
from tempfile import TemporaryFile


class BytesSpool:
    """Byte strings by name, in a file that is deleted when this object is."""

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._ranges: dict[str, tuple[int, int]] = {}
        self._end = 0

    def add(self, name: str, data: bytes) -> None:
        """Store the bytes under a name."""
        self._file.write(data)
        self._ranges[name] = self._end, len(data)
        self._end += len(data)

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a name; None if it has none."""
        if name not in self._ranges:
            return None
        start, length = self._ranges[name]
        self._file.flush()
        return os.pread(self._file.fileno(), length, start)
