"""Writing samples as WebDataset shards."""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from muco.core.errors import DataError
from muco.core.sample import Sample
from muco.data.shards.format import TAR_END, Elsewhere, tar_entry, to_members
from muco.data.shards.index import Row, Shard, write_index
from muco.io.atomic import atomic_folder

MAX_SHARD_BYTES = 256 * 2**20


def write_shards(
    samples: Iterable[Sample],
    folder: Path,
    *,
    metadata: dict[str, Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `samples` to `folder`, which appears only when all of it is written.

    The samples are read once, and the index numbers them in this order. `folder` must not exist, unless
    another process wrote the same in the meantime. `metadata`, JSON values, says what made the samples; the
    index stores it as `about`. A shard is closed once it is larger than `max_shard_bytes`. Raise DataError if
    the disk is full or not writable.
    """
    try:
        with atomic_folder(folder) as partial, ShardWriter(partial, max_shard_bytes) as writer:
            rows: list[Row] = []
            shards: list[Shard] = []
            for sample in samples:
                rows.append(writer.write(sample))
                if writer.is_full:
                    shards.append(writer.close_shard())
            if writer.is_open:
                shards.append(writer.close_shard())
            write_index(partial, shards, rows, metadata)
    except OSError as error:
        if not folder.is_dir():
            raise DataError(f"{folder}: the shards cannot be written: {error}") from error


class ShardWriter:
    """Appends samples to `shard-000000.tar` and so on in a folder.

    Used within `with`: after an error the open shard stays without its end.
    """

    def __init__(
        self, folder: Path, max_shard_bytes: int, *, num_shards: int = 0, num_samples: int = 0
    ) -> None:
        """Write to a folder that exists, after the shards and samples that are closed already."""
        self._folder = folder
        self._max_shard_bytes = max_shard_bytes
        self._num_shards = num_shards
        self.num_samples = num_samples
        """Samples written, those of earlier writers included; the key of the next one."""
        self._file: Any = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def is_open(self) -> bool:
        """Whether a shard has samples and is not closed."""
        return self._file is not None

    @property
    def is_full(self) -> bool:
        """Whether the open shard has reached its size."""
        return self.is_open and self._num_bytes >= self._max_shard_bytes

    def write(self, sample: Sample, *, elsewhere: Elsewhere | None = None) -> Row:
        """Append a sample and return its row of the index; `elsewhere` as in `to_members`.

        Raise ValueError, and write nothing, if a text cannot be encoded as UTF-8.
        """
        members = to_members(sample, elsewhere=elsewhere)
        entries = b"".join(tar_entry(f"{self.num_samples:09d}.{it.suffix}", it.data) for it in members)
        if self._file is None:
            self._path = self._folder / f"shard-{self._num_shards:06d}.tar"
            self._file = open(self._path, "wb")  # noqa: SIM115 - closed with the shard
            self._num_bytes, self._first, self._digest = 0, self.num_samples, blake2b(digest_size=16)
        row = (self._num_shards, self.num_samples, self._num_bytes, len(entries))
        self._append(entries)
        self.num_samples += 1
        return row

    def close_shard(self) -> Shard:
        """End the open tar, flush it to the disk and return its line of the index."""
        self._append(TAR_END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._num_shards += 1
        num_samples = self.num_samples - self._first
        return Shard(self._path.name, self._num_bytes, num_samples, self._digest.hexdigest())

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._num_bytes += len(data)
