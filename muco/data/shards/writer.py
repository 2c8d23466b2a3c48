"""Writing samples as WebDataset shards, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

from muco.core.errors import DataError
from muco.core.sample import Sample
from muco.data.shards.format import tar_bytes, to_members
from muco.data.shards.index import Shard, write_index


def write_shards(
    samples: Iterable[Sample],
    folder: Path,
    *,
    about: dict[str, Any],
    max_shard_bytes: int = 256 * 2**20,
) -> None:
    """Write `samples` to `folder`, which appears only when all of it is written.

    Args:
        samples: in the order in which the index will number them.
        folder: must not exist, or be replaced by another process that wrote the same meanwhile.
        about: what made the samples; kept in the index.
        max_shard_bytes: a shard is closed once it is larger.

    Raises:
        DataError: the disk is full or not writable.
    """
    beside = folder.parent / f".{folder.name}.{uuid4().hex}"
    try:
        beside.mkdir(parents=True)
        _write(samples, beside, about, max_shard_bytes)
        try:
            os.rename(beside, folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        raise DataError(f"{folder}: the shards cannot be written: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(samples: Iterable[Sample], folder: Path, about: dict[str, Any], max_shard_bytes: int) -> None:
    shards: list[Shard] = []
    rows: list[tuple[int, int, int, int]] = []
    pending = iter(samples)
    sample = next(pending, None)
    while sample is not None:
        with OpenShard(folder / f"shard-{len(shards):06d}.tar") as shard:
            while sample is not None and shard.num_bytes < max_shard_bytes:
                data = tar_bytes(f"{len(rows):09d}", to_members(sample))
                rows.append((len(shards), len(rows), shard.num_bytes, len(data)))
                shard.append(data)
                sample = next(pending, None)
        assert shard.closed is not None
        shards.append(shard.closed)
    write_index(folder, shards, rows, about)


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
