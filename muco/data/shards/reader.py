"""Reading samples by number."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from muco.core.errors import DataError
from muco.core.sample import Sample
from muco.data.shards.format import from_members, parse_tar, tar_entries
from muco.data.shards.index import ShardIndex
from muco.data.shards.storage import place_of
from muco.data.shards.webdataset import foreign_sample, key_number, split_name
from muco.io.columns import PairColumns

_MOST_OPEN = 64
"""Shards that a process keeps open."""


class ShardReader:
    """Any sample of a folder of shards, by its number in the index; picklable, for data workers."""

    def __init__(
        self,
        place: str | Path,
        *,
        columns: PairColumns | None = None,
        cache_bytes: int = 50 * 2**30,
        dataset: str = "",
    ) -> None:
        """Open a folder, or the URL of one.

        Args:
            place: where the shards lie.
            columns: what makes a pair of a record that another tool wrote; for such shards alone.
            cache_bytes: of remote shards on this machine's disk, at most.
            dataset: what samples of another tool's shards are said to come from.

        Raises:
            DataError: no index, a broken one, or shards that do not fit it.
            MucoError: a place that would run a program.
        """
        self._arguments: dict[str, Any] = {
            "place": place,
            "columns": columns,
            "cache_bytes": cache_bytes,
            "dataset": dataset,
        }
        self._place = place_of(place, cache_bytes=cache_bytes)
        self.index: ShardIndex = self._place.index()
        if columns is not None and columns.has_videos:
            raise DataError(f"{self._place.name}: videos are read from tables, not from another tool's tars")
        self._columns, self._dataset = columns, dataset
        if self.index.layout == "webdataset" and columns is None:
            raise DataError(
                f"{self._place.name}: tars of another tool need `columns` in the recipe, which say what is "
                "query and what is target"
            )
        if self.index.layout == "muco" and columns is not None:
            raise DataError(f"{self._place.name}: these are muco's own shards; leave `columns` out")
        self._files: dict[int, int] = {}
        self._owner = os.getpid()

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def name(self, number: int) -> str:
        """Return where a sample lies, in words: `shard-000002.tar:000012345`."""
        row = self.index.rows[number]
        key = f"{row['key']:09d}" if self._columns is None else f"{row['offset']}"
        return f"{self.index.shards[row['shard']].file}:{key}"

    def __getitem__(self, number: int) -> Sample:
        """Read one sample; its images stay encoded.

        Raises:
            DataError: it cannot be read; the message says where it lies.
        """
        try:
            if self._columns is not None:
                return self._foreign(number, self._columns)
            return from_members(self._members(number), fetch=self._elsewhere)
        except (DataError, OSError) as error:
            raise DataError(f"{self._place.name}/{self.name(number)}: {error}") from error

    def _members(self, number: int) -> dict[str, bytes]:
        return parse_tar(self._entries(number), key=f"{self.index.rows[number]['key']:09d}")

    def _elsewhere(self, name: str) -> bytes:
        """Return an image that another sample holds: `000000003.0.jpg`."""
        key, _, suffix = name.partition(".")
        if not key.isdecimal() or int(key) >= len(self):
            raise KeyError(name)
        return self._members(int(key))[suffix]

    def _foreign(self, number: int, columns: PairColumns) -> Sample:
        expected = int(self.index.rows[number]["key"])
        members: dict[str, bytes] = {}
        key = ""
        for file, content in tar_entries(self._entries(number), what=self.name(number)):
            key, suffix = split_name(file)
            if key_number(key) != expected:
                raise DataError(f"the index says that another sample than {key!r} lies here; index anew")
            members[suffix] = content
        shard = self.index.shards[self.index.rows[number]["shard"]].file
        return foreign_sample(members, columns, name=f"{shard}:{key}", dataset=self._dataset)

    def _entries(self, number: int) -> bytes:
        row = self.index.rows[number]
        size = int(row["size"])
        data = os.pread(self._file(int(row["shard"])), size, int(row["offset"]))
        if len(data) != size:
            raise DataError(f"cut short: {len(data)} of {size} bytes")
        return data

    def _file(self, shard: int) -> int:
        """Return the shard's descriptor, opened in this process; the one opened first goes for a new one."""
        if self._owner != os.getpid():
            self._files, self._owner = {}, os.getpid()
        if shard not in self._files:
            if len(self._files) >= _MOST_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = self._place.open(self.index.shards[shard])
        return self._files[shard]
