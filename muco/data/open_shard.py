"""A shard while it is written."""

from __future__ import annotations

import os
import tarfile
from hashlib import blake2b
from pathlib import Path

from muco.data.index import Shard

_END = b"\0" * (2 * tarfile.BLOCKSIZE)


class OpenShard:
    """Takes samples' entries, and ends the tar on leaving; one without samples is no file in the end."""

    closed: Shard | None = None
    """What the index says of it, once it is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes, self.num_samples = 0, 0
        self._digest = blake2b(digest_size=16)

    def __enter__(self) -> OpenShard:
        self._file = open(self.path, "wb")
        return self

    def append(self, entries: bytes) -> None:
        """Write the entries of one sample."""
        self._write(entries)
        self.num_samples += 1

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file:
            if kind is not None:
                return
            self._write(_END)
            self._file.flush()
            os.fsync(self._file.fileno())
        if self.num_samples:
            self.closed = Shard(self.path.name, self.num_bytes, self.num_samples, self._digest.hexdigest())
        else:
            self.path.unlink()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)
