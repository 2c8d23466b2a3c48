"""Reading samples by index."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from muco.core.errors import DataError
from muco.core.sample import Sample
from muco.data.shards.format import from_members
from muco.data.shards.index import ShardIndex
from muco.data.shards.storage import storage_of
from muco.data.shards.webdataset import foreign_sample, has_column, key_number, split_name
from muco.io.columns import PairColumns
from muco.io.tar import tar_contents

_MAX_OPEN_SHARDS = 64


class ShardReader:
    """The samples of a folder of shards, by index. Picklable, for data workers."""

    def __init__(
        self,
        location: str | Path,
        *,
        columns: PairColumns | None = None,
        cache_bytes: int = 50 * 2**30,
        dataset: str = "",
    ) -> None:
        """Open a folder, or the URL of one.

        `columns` make a pair of a record that another tool wrote, and `dataset` names the data set of such
        samples. Remote shards take at most `cache_bytes` of this machine's disk. Raise DataError for no
        index, a broken one, or shards that do not fit it, MucoError for a location that would run a program.
        """
        self._reopen = partial(
            ShardReader, location, columns=columns, cache_bytes=cache_bytes, dataset=dataset
        )
        self._storage = storage_of(location, cache_bytes=cache_bytes)
        self.index: ShardIndex = self._storage.index()
        self._columns, self._dataset = columns, dataset
        problem = ""
        if columns is not None and columns.has_videos:
            problem = "videos are read from tables, not from another tool's tars"
        elif self.index.layout == "webdataset" and columns is None:
            problem = "tars of another tool need `columns` in the recipe, which say what is query and target"
        elif self.index.layout == "muco" and columns is not None:
            problem = "these are muco's own shards; leave `columns` out"
        if problem:
            raise DataError(f"{self._storage.name}: {problem}")
        self._files: dict[int, int] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reopen, ()

    def name(self, index: int) -> str:
        """Return where a sample is, for messages: `shard-000002.tar:000012345`."""
        row = self.index.rows[index]
        key = f"{row['key']:09d}" if self._columns is None else f"{row['offset']}"
        return f"{self.index.shards[row['shard']].file}:{key}"

    def __getitem__(self, index: int) -> Sample:
        """Read one sample, its images encoded; raise DataError, with its location, if it is broken."""
        try:
            key, members = self._members(index)
            if self._columns is None:
                return from_members(members, fetch=self._elsewhere)
            shard = self.index.shards[self.index.rows[index]["shard"]].file
            return foreign_sample(members, self._columns, name=f"{shard}:{key}", dataset=self._dataset)
        except (DataError, OSError) as error:
            raise DataError(f"{self._storage.name}/{self.name(index)}: {error}") from error

    def verify_columns(self) -> None:
        """Raise DataError if no sample has a column; samples are read until each column was seen."""
        unseen = [] if self._columns is None else self._columns.used()
        for index in range(len(self)):
            if not unseen:
                return
            with suppress(DataError, OSError):  # what cannot be read is counted in training
                members = self._members(index)[1]
                unseen = [column for column in unseen if not has_column(members, column)]
        if unseen:
            raise DataError(f"{self._storage.name}: no sample has a column {', '.join(unseen)}")

    def _members(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Return the key of a sample and its members by suffix."""
        expected, key = int(self.index.rows[index]["key"]), ""
        members: dict[str, bytes] = {}
        for file, content in tar_contents(self._entries(index), self.name(index)):
            key, suffix = split_name(file)
            if self._columns is None and key != f"{expected:09d}":
                raise DataError(f"the tar holds {file!r} where the index has '{expected:09d}'")
            if self._columns is not None and key_number(key) != expected:
                raise DataError(f"the tar holds {key!r} where the index has another sample; index it again")
            members[suffix] = content
        return key, members

    def _elsewhere(self, name: str) -> bytes:
        """Return an image that another sample holds: `000000003.0.jpg`."""
        key, _, suffix = name.partition(".")
        if not key.isdecimal() or int(key) >= len(self):
            raise KeyError(name)
        return self._members(int(key))[1][suffix]

    def _entries(self, index: int) -> bytes:
        row = self.index.rows[index]
        size = int(row["size"])
        data = os.pread(self._file(int(row["shard"])), size, int(row["offset"]))
        if len(data) != size:
            raise DataError(f"cut short: {len(data)} of {size} bytes")
        return data

    def _file(self, shard: int) -> int:
        """Return a descriptor of the shard that this process opened; the oldest is closed for a new one."""
        if self._process != os.getpid():
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            if len(self._files) >= _MAX_OPEN_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = self._storage.open(self.index.shards[shard])
        return self._files[shard]
